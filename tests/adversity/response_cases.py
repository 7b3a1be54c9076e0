"""What a provider may answer, and what the client must see of it.

Each case is a script of raw bytes (see recorder) with an expectation from RFC 9110, RFC 9112 or
docs/http.md. The client sees one of:

    refused   502: nothing of the answer had been passed on
    cut       part of the answer, and an end that no parser takes for the end of the message
    reset     the same for a client of HTTP/1.0, where only a reset tells
    whole     a sound answer of that status and body

Unless `kept`, the provider's connection must be closed and never used again.
"""

from __future__ import annotations

import gzip
from typing import NamedTuple

from tests.adversity.recorder import CLOSE, GO, PAUSE, RESET


class Case(NamedTuple):
    """One case. `request` names one of test_response_cases.REQUESTS. `times` is how often the
    provider may see the request: one that failed on a kept connection before the first byte of an
    answer may be sent once more. `absent` are fields that the client must not see."""

    name: str
    clause: str
    steps: tuple[bytes | str, ...]
    sees: str = "refused"
    status: int = 200
    body: bytes = b""
    request: str = "GET"
    kept: bool = False
    times: tuple[int, ...] = (1,)
    absent: tuple[bytes, ...] = ()


OK = b"HTTP/1.1 200 OK\r\n"
JSON = b'{"a":1}'
SIZED = OK + b"Content-Length: 7\r\n\r\n" + JSON
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
OTHER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


MANY = b"".join(chunk(b"x" * size) for size in range(20, 80))
"""Whole chunks, which are looked at all together."""
TEXTS = b"".join(b"x" * size for size in range(20, 80))

CASES: list[Case] = []
add = CASES.append

# Status line --------------------------------------------------------------------------------

for line in (
    *(b"HTTP/2.0 200 OK", b"HTTP/3.0 200 OK", b"HTTP/0.9 200 OK", b"HTTP/11.1 200 OK"),
    *(b"HTTP/1.10 200 OK", b"HTTP/1 200 OK", b"http/1.1 200 OK", b"HTP/1.1 200 OK"),
    *(b"ICY 200 OK", b"RTSP/1.0 200 OK", b"HTTP/1.1 099 X", b"HTTP/1.1 000 X"),
    *(b"HTTP/1.1 600 X", b"HTTP/1.1 999 X", b"HTTP/1.1 1000 X", b"HTTP/1.1 20 X"),
    *(b"HTTP/1.1 2 X", b"HTTP/1.1 2OO X", b"HTTP/1.1 -200 X", b"HTTP/1.1 +20 X"),
    *(b"HTTP/1.1  200 OK", b"HTTP/1.1\t200 OK", b" HTTP/1.1 200 OK", b"HTTP/1.1200 OK"),
    *(b"HTTP/1.1 200OK", b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1 OK", b"HTTP /1.1 200 OK"),
    *(b"HTTP/1.1 200 O\0K", b"HTTP/1.1 200 O\rK", b"HTTP/1.1 200 O\nK", b"HTTP/1.1 200 \x01"),
    *(b"220 mail.example ESMTP", b"<html>", b"", b"\r\nHTTP/1.1 200 OK", b"\x15\x03\x03\0\2\2\x28"),
):
    steps = (line + b"\r\nContent-Length: 7\r\n\r\n" + JSON,)
    add(Case(f"status line {line.decode('latin-1')!r}", "RFC 9112, 4", steps))
add(Case("no line end at all", "RFC 9112, 4", (b"garbage",)))
add(Case("HTTP/2 settings", "RFC 9113, 3.4", (b"\0\0\x12\4\0\0\0\0\0",)))
add(Case("half a status line", "RFC 9112, 8", (b"HTTP/1.1 20", CLOSE)))
add(Case("head without an end", "RFC 9112, 8", (OK + b"Content-Length: 7\r\n", CLOSE)))
add(Case("head without an end, reset", "RFC 9112, 8", (OK + b"Content-Le", PAUSE, RESET)))
add(Case("no answer", "RFC 9112, 8", (CLOSE,), times=(1, 2)))
add(Case("reset for an answer", "RFC 9112, 8", (RESET,), times=(1, 2)))
add(Case("no answer to a POST", "RFC 9110, 9.2.2", (CLOSE,), request="POST"))
add(Case("reset for an answer to a POST", "RFC 9110, 9.2.2", (RESET,), request="POST"))
add(Case("no answer to a POST without a body", "RFC 9110, 9.2.2", (CLOSE,), request="BODYLESS"))
add(Case("no answer to a stream", "RFC 9110, 9.2.2", (CLOSE,), request="STREAM"))

# Field grammar ------------------------------------------------------------------------------

for field in (
    *(b"X : 1", b"X\t: 1", b" X: 1", b"X", b": 1", b"X Y: 1", b"X(Y): 1", b"X\xe9: 1", b"X\0: 1"),
    *(b"X: 1\r\n 2", b"X: 1\r\n\t2", b"X: a\0b", b"X: a\rb", b"X: a\nb", b"X: a\x01b", b"X: \x7f"),
    *(b"X: a\nSet-Cookie: evil=1", b"X: a\rSet-Cookie: evil=1", b"X: a\r", b"X: \x0b"),
    *(b"X: a\n\nHTTP/1.1 200 OK", b"X: a\r\r\n"),
):
    steps = (OK + field + b"\r\nContent-Length: 7\r\n\r\n" + JSON,)
    add(Case(f"field {field.decode('latin-1')!r}", "RFC 9112, 5; RFC 9110, 5.5", steps))
add(Case("bare LF everywhere", "RFC 9112, 2.2", (SIZED.replace(b"\r\n", b"\n"),)))
add(Case("bare LF everywhere, then the end", "RFC 9112, 2.2",
         (SIZED.replace(b"\r\n", b"\n"), CLOSE)))  # fmt: skip
add(Case("head of 70,000 bytes", "docs/http.md", (OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n",)))
add(Case("head that does not end", "docs/http.md", (OK + b"X: " + b"y" * 70_000,)))
add(Case("fields without end", "docs/http.md", (OK + b"X: y\r\n" * 12_000,)))

# Framing ------------------------------------------------------------------------------------

for value in (
    *(b"", b"+7", b"-7", b"0x7", b"7.0", b"7,7", b"7, 7", b"7, 8", b"7 7", b"7;", b"seven"),
    *(b"18446744073709551623", b"9" * 40, b"7\0", b"\xb2", b"1_0", b'"7"'),
):
    steps = (OK + b"Content-Length: " + value + b"\r\n\r\n" + JSON,)
    add(Case(f"Content-Length {value.decode('latin-1')!r}", "RFC 9112, 6.3", steps))
for value in (
    *(b"", b"gzip", b"identity", b"xchunked", b"chunked, chunked", b"gzip, chunked", b",chunked"),
    *(b"chunked, gzip", b"chunked,", b"chunked;q=1", b"\x0bchunked", b'"chunked"'),
):
    data = OK + b"Transfer-Encoding: " + value + b"\r\n\r\n" + chunk(JSON) + b"0\r\n\r\n"
    add(Case(f"Transfer-Encoding {value.decode('latin-1')!r}", "RFC 9112, 6.1 and 6.3",
             (data, CLOSE)))  # fmt: skip
CL, TE = b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n"
for name, fields in {
    "the same length twice": CL + CL,
    "two lengths": CL + b"Content-Length: 8\r\n",
    "two lengths, the second empty": CL + b"content-length:\r\n",
    "length and coding": CL + TE,
    "coding and length": TE + CL,
    "coding and length of zero": TE + b"Content-Length: 0\r\n",
    "coding twice": TE + TE,
    "coding and another": TE + b"Transfer-Encoding: identity\r\n",
}.items():
    add(Case(name, "RFC 9112, 6.3", (OK + fields + b"\r\n" + chunk(JSON) + b"0\r\n\r\n",)))
add(Case("coding in 1.0", "RFC 9112, 6.1",
         (b"HTTP/1.0 200 OK\r\n" + TE + b"\r\n" + chunk(JSON) + b"0\r\n\r\n", CLOSE)))  # fmt: skip
add(Case("coding in 1.0 that keeps", "RFC 9112, 6.1",
         (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + TE + b"\r\n" + chunk(JSON)
          + b"0\r\n\r\n",)))  # fmt: skip

# Chunks: in one piece with the head, and after the client has seen the head -----------------

for name, body in {
    "size in letters": b"zz\r\n" + JSON,
    "size with plus": b"+7\r\n" + JSON + b"\r\n0\r\n\r\n",
    "size with minus": b"-7\r\n" + JSON + b"\r\n0\r\n\r\n",
    "size with 0x": b"0x7\r\n" + JSON + b"\r\n0\r\n\r\n",
    "size with underscore": b"0_7\r\n" + JSON + b"\r\n0\r\n\r\n",
    "size after a blank": b" 7\r\n" + JSON + b"\r\n0\r\n\r\n",
    "size before a blank": b"7 \r\n" + JSON + b"\r\n0\r\n\r\n",
    "size of 32 digits": b"f" * 32 + b"\r\n" + JSON,
    "size of 64 bits and more": b"10000000000000007\r\n" + JSON + b"\r\n0\r\n\r\n",
    "size that ends in LF": b"7\n" + JSON + b"\r\n0\r\n\r\n",
    "size that ends in CR CR LF": b"7\r\r\n" + JSON + b"\r\n0\r\n\r\n",
    "no size": b"\r\n" + JSON,
    "data that ends in LF": b"7\r\n" + JSON + b"\n0\r\n\r\n",
    "data that ends in two other bytes": b"7\r\n" + JSON + b"XX0\r\n\r\n",
    "data longer than its size": b"6\r\n" + JSON + b"\r\n0\r\n\r\n",
    "LF in an extension": b"7;a\nb\r\n" + JSON + b"\r\n0\r\n\r\n",
    "CR in an extension": b"7;a\rb\r\n" + JSON + b"\r\n0\r\n\r\n",
    "20,000 bytes of extensions": b"1;%b\r\na\r\n" % (b"x" * 2_000) * 10,
    "last line ends in LF": chunk(JSON) + b"0\r\n\n",
    "trailer without a colon": chunk(JSON) + b"0\r\nX\r\n\r\n",
    "folded trailer": chunk(JSON) + b"0\r\nX: 1\r\n 2\r\n\r\n",
    "trailer that ends in LF": chunk(JSON) + b"0\r\nX: 1\n\r\n",
    "20,000 bytes of trailers": chunk(JSON) + b"0\r\n" + b"X: y\r\n" * 4_500 + b"\r\n",
    "an answer where a trailer may stand": chunk(JSON) + b"0\r\n" + OTHER,
}.items():
    add(Case(f"chunks: {name}", "RFC 9112, 7.1", (CHUNKED + body,)))
    add(Case(f"chunks, seen: {name}", "RFC 9112, 7.1",
             (CHUNKED + chunk(b"seen"), GO, body), "cut"))  # fmt: skip
    add(Case(f"chunks, behind many: {name}", "RFC 9112, 7.1", (CHUNKED + MANY + body,)))
    add(Case(f"chunks, seen, behind many: {name}", "RFC 9112, 7.1",
             (CHUNKED + chunk(b"seen"), GO, MANY + body), "cut"))  # fmt: skip

# The end before the end ---------------------------------------------------------------------

for end in (CLOSE, RESET):
    for request in ("GET", "POST", "1.0"):
        sees = "reset" if request == "1.0" else "cut"
        add(Case(f"sized, short, {end}, {request}", "RFC 9112, 8",
                 (SIZED[:-3], GO, end), "cut", request=request))  # fmt: skip
        add(Case(f"chunked, no last chunk, {end}, {request}", "RFC 9112, 8",
                 (CHUNKED + chunk(JSON), GO, end), sees, request=request))  # fmt: skip
        add(Case(f"chunked, half a chunk, {end}, {request}", "RFC 9112, 8",
                 (CHUNKED + b"8\r\n" + JSON, GO, end), sees, request=request))  # fmt: skip
    for name, tail in (("last chunk", b"0\r\n"), ("size", b"5"), ("trailers", b"0\r\nX: 1\r\n")):
        add(Case(f"chunked, half the {name}, {end}", "RFC 9112, 8",
                 (CHUNKED + chunk(JSON), GO, tail, PAUSE, end), "cut"))  # fmt: skip
    for name, tail in (("between events", b""), ("within an event", b"1d\r\ndata: {")):
        add(Case(f"stream cut {name}, {end}", "docs/http.md",
                 (STREAM + chunk(EVENT), GO, tail, PAUSE, end), "cut",
                 request="STREAM"))  # fmt: skip
add(Case("until close, reset", "RFC 9112, 8", (OK + b"\r\n" + JSON, GO, RESET), "cut"))
add(Case("until close, reset, 1.0", "RFC 9112, 8", (OK + b"\r\n" + JSON, GO, RESET), "reset",
         request="1.0"))  # fmt: skip
for request in ("GET", "POST", "1.0"):
    for name, first in {
        "1.1": OK,
        "1.0": b"HTTP/1.0 200 OK\r\n",
        "1.1 that claims to keep": OK + b"Connection: keep-alive\r\n",
    }.items():
        add(Case(f"until close, {name}, to {request}", "RFC 9112, 6.3",
                 (first + b"\r\n" + JSON, PAUSE, JSON, CLOSE), "whole", body=JSON * 2,
                 request=request))  # fmt: skip

# After the end ------------------------------------------------------------------------------

for name, answer in (("sized", SIZED), ("chunked", CHUNKED + chunk(JSON) + b"0\r\n\r\n"),
                     ("empty", OK + b"Content-Length: 0\r\n\r\n")):  # fmt: skip
    body = b"" if name == "empty" else JSON
    for surplus in (b"x", b"\r\n", OTHER, b"0\r\n\r\n"):
        label = {OTHER: "another answer"}.get(surplus, repr(surplus.decode()))
        add(Case(f"{name}, then {label} at once", "RFC 9112, 9.2 and 11.1", (answer + surplus,)))
        add(Case(f"{name}, then {label} while idle", "RFC 9112, 9.2 and 11.1",
                 (answer, GO, PAUSE, surplus), "whole", body=body))  # fmt: skip
add(Case("seen, then another answer", "RFC 9112, 9.2; docs/http.md",
         (SIZED[:-3], GO, SIZED[-3:] + OTHER), "cut"))  # fmt: skip
add(Case("seen in chunks, then another answer", "RFC 9112, 9.2; docs/http.md",
         (CHUNKED + chunk(JSON), GO, b"0\r\n\r\n" + OTHER), "cut"))  # fmt: skip
add(Case("408 while idle", "RFC 9110, 15.5.9", (SIZED, GO, PAUSE, b"HTTP/1.1 408 X\r\n\r\n", CLOSE),
         "whole", body=JSON))  # fmt: skip
add(Case("103 while idle", "RFC 9112, 9.2", (SIZED, GO, PAUSE, b"HTTP/1.1 103 X\r\n\r\n"), "whole",
         body=JSON))  # fmt: skip
add(Case("Connection: close", "RFC 9112, 9.6", (SIZED.replace(b"\r\n\r\n", b"\r\nConnection: X, "
         b"Close\r\n\r\n"),), "whole", body=JSON))  # fmt: skip
add(Case("1.0 does not keep", "RFC 9112, 9.3", (SIZED.replace(b"1.1", b"1.0"),), "whole",
         body=JSON))  # fmt: skip

# No body ------------------------------------------------------------------------------------

for request, status in (("HEAD", 200), ("GET", 204), ("GET", 304), ("HEAD", 404)):
    line = b"HTTP/1.1 %d X\r\n" % status
    for name, fields, kept in (("", b"", True), ("length", CL, True), ("coding", TE, True)):
        add(Case(f"{request} {status} {name}", "RFC 9112, 6.3", (line + fields + b"\r\n",), "whole",
                 status, request=request, kept=kept))  # fmt: skip
    add(Case(f"{request} {status} with a body", "RFC 9112, 6.3 and 11.1", (line + CL + b"\r\n"
             + JSON,), "whole", status, request=request))  # fmt: skip

# Interim answers ----------------------------------------------------------------------------

for status in (100, 103):
    interim = b"HTTP/1.1 %d X\r\nLink: </a>\r\n\r\n" % status
    add(
        Case(f"{status} first", "RFC 9110, 15.2", (interim + SIZED,), "whole", body=JSON, kept=True)
    )
    add(Case(f"{status} first, by itself", "RFC 9110, 15.2", (interim, PAUSE, SIZED), "whole",
             body=JSON, kept=True))  # fmt: skip
    add(Case(f"{status} eight times", "docs/http.md", (interim * 8 + SIZED,), "whole", body=JSON,
             kept=True))  # fmt: skip
    add(Case(f"{status} nine times", "docs/http.md", (interim * 9 + SIZED,)))
    add(Case(f"{status} and no more", "RFC 9110, 15.2", (interim, PAUSE, CLOSE)))
    add(Case(f"{status} and no more to a POST", "RFC 9110, 15.2", (interim, PAUSE, CLOSE),
             request="POST"))  # fmt: skip
add(Case("100 and 103 to a POST", "RFC 9110, 15.2", (b"HTTP/1.1 100 Continue\r\n\r\n", PAUSE,
         b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + SIZED), "whole", body=JSON,
         request="POST", kept=True))  # fmt: skip
for status in (101, 102, 104, 110, 199):
    for request in ("GET", "UPGRADE"):
        add(Case(f"{status} to {request}", "docs/http.md", (b"HTTP/1.1 %d X\r\nUpgrade: x\r\n"
                 b"Connection: Upgrade\r\n\r\n" % status + SIZED,), request=request))  # fmt: skip
add(Case("bad field in a 103", "RFC 9112, 5", (b"HTTP/1.1 103 X\r\nA : b\r\n\r\n" + SIZED,)))

# Sound answers: what is passed on and what is not -------------------------------------------

add(Case("hop-by-hop fields", "RFC 9110, 7.6.1", (
    OK + b"Keep-Alive: timeout=60\r\nConnection: X-Hop\r\nX-Hop: 1\r\nTrailer: X\r\n"
    b"Upgrade: h2c\r\nProxy-Authenticate: x\r\n" + CL + b"\r\n" + JSON,), "whole",
    body=JSON, kept=True, absent=(b"keep-alive", b"x-hop", b"trailer", b"upgrade",
                                  b"proxy-authenticate", b"connection")))  # fmt: skip
add(Case("trailers are not merged", "RFC 9110, 6.5.1", (
    CHUNKED + chunk(JSON) + b"0\r\nX-Evil: 1\r\nContent-Length: 99\r\n\r\n",), "whole", body=JSON,
    kept=True, absent=(b"x-evil",)))  # fmt: skip
add(Case("a redirect is not followed", "docs/http.md", (b"HTTP/1.1 307 X\r\nLocation: http://127.0."
         b"0.1:1/\r\n" + CL + b"\r\n" + JSON,), "whole", 307, JSON, kept=True))  # fmt: skip
for status in (400, 401, 407, 429, 451, 500, 503, 599):
    add(Case(f"{status}", "RFC 9110, 15", (b"HTTP/1.1 %d\r\n" % status + CL + b"\r\n" + JSON,),
             "whole", status, JSON, kept=True, request="POST"))  # fmt: skip
add(Case("gzip that is none", "docs/http.md", (
    OK + b"Content-Encoding: gzip\r\n" + CL + b"\r\n" + JSON,), "whole", body=JSON, request="POST",
    kept=True))  # fmt: skip
LISTED = b'{"object":"list","data":[{"id":"small"},{"id":"poison"}]}'
for name, fields, body in (
    ("gzip", b"Content-Encoding: gzip\r\n", gzip.compress(LISTED, mtime=0)),
    ("a coding that it has not", b"Content-Encoding: br\r\n", LISTED),
    ("gzip that it does not tell", b"", gzip.compress(LISTED, mtime=0)),
    ("no JSON", b"", b"small, poison"),
    ("JSON and more", b"", LISTED + b"x"),
    ("more than 4 MiB", b"", LISTED + b" " * 4 * 1024 * 1024),
):
    for status in (200, 206):
        line = b"HTTP/1.1 %d X\r\n" % status
        add(Case(f"list of models, {name}, {status}", "docs/http.md", (
            line + fields + b"Content-Length: %d\r\n\r\n" % len(body) + body,),
            request="LIST", kept=True))  # fmt: skip
    add(Case(f"list of models, {name}, in chunks", "docs/http.md", (
        OK + fields + TE + b"\r\n" + chunk(body[:9]), PAUSE, chunk(body[9:]) + b"0\r\n\r\n"),
        request="LIST", kept=True))  # fmt: skip
    add(Case(f"list of models, {name}, until close", "docs/http.md", (
        OK + fields + b"\r\n" + body, CLOSE), request="LIST"))  # fmt: skip
add(Case("list of models", "docs/http.md", (
    OK + b"Content-Length: %d\r\n\r\n" % len(LISTED) + LISTED,), "whole",
    body=b'{"object":"list","data":[{"id":"small"}]}', request="LIST", kept=True))  # fmt: skip
add(Case("list of models that breaks off", "RFC 9112, 8", (
    OK + b"Content-Length: 999\r\n\r\n" + LISTED, PAUSE, CLOSE), request="LIST"))  # fmt: skip
add(Case("chunks, many, one holds what looks like chunks", "RFC 9112, 7.1", (
    CHUNKED + MANY + chunk(b"5\r\nhello\r\n0\r\n\r\n") + chunk(b"\r\n") + MANY + b"0\r\n\r\n",),
    "whole", kept=True, body=b"".join(
        (TEXTS, b"5\r\nhello\r\n0\r\n\r\n\r\n", TEXTS))))  # fmt: skip
add(Case("chunks, many, in capitals and with zeros", "RFC 9112, 7.1", (
    CHUNKED + b"".join(b"%X\r\n%b\r\n" % (size, b"x" * size) for size in range(20, 80))
    + b"00a\r\n0123456789\r\n" + MANY + b"0\r\n\r\n",),
    "whole", kept=True, body=TEXTS + b"0123456789" + TEXTS))  # fmt: skip
add(Case("chunks in odd but sound form", "RFC 9112, 7.1", (
    CHUNKED + b"0003;a=b\r\n" + JSON[:3] + b"\r\n004 ; c\r\n", PAUSE, JSON[3:] + b"\r", PAUSE,
    b"\n000\r\n", PAUSE, b"\r\n"), "whole", body=JSON, kept=True))  # fmt: skip
add(Case("a head byte by byte", "RFC 9112, 2.2",
         tuple(step for byte in SIZED for step in (bytes((byte,)), PAUSE))[:-1], "whole", body=JSON,
         kept=True))  # fmt: skip
add(Case("stream", "RFC 9112, 7.1", (STREAM + chunk(EVENT), GO, chunk(DONE) + b"0\r\n\r\n"),
         "whole", body=EVENT + DONE, request="STREAM", kept=True))  # fmt: skip
