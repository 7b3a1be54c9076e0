"""What a client may send, and what must come of it.

Each case is raw bytes with an expectation from RFC 9110, RFC 9112 or docs/http.md: the statuses
that the client sees, in order, the error code of the last, whether the connection ends, and the
requests that the provider sees. `@ID@` stands for the name of the case, `@KEY@` for a virtual key.
"""

from __future__ import annotations

from typing import NamedTuple

Fields = tuple[tuple[bytes, bytes], ...]
Statuses = tuple[int | tuple[int, ...], ...]


class Seen(NamedTuple):
    """A request as the provider must see it, beside the fields that all of them have: Host, our
    credential and x-request-id (the case's, with `suffix`). Field names in lower case."""

    target: bytes = b"/v1/models"
    method: bytes = b"GET"
    fields: Fields = ()
    body: bytes = b""
    suffix: str = ""
    complete: bool = True


class Case(NamedTuple):
    """One case. A status may be a tuple of those that the rules allow. `method` says how to
    read the answers: those to HEAD have no body."""

    name: str
    clause: str
    data: bytes
    statuses: Statuses
    code: str = ""
    closes: bool = False
    seen: tuple[Seen, ...] = ()
    method: bytes = b"GET"


LINE = b"GET /openai/models HTTP/1.1"
HOST = b"Host: gateway"
KEY = b"Authorization: Bearer @KEY@"
JSON = b'{"model":"m","messages":[]}'


def head(*fields: bytes, line: bytes = LINE, host: bytes = HOST, key: bytes = KEY) -> bytes:
    """A request head; an empty `host` or `key` leaves that line out."""
    lines = [line, host, key, b"X-Request-Id: @ID@", *fields]
    return b"\r\n".join([each for each in lines if each] + [b"", b""])


def post(*fields: bytes, body: bytes = JSON, path: bytes = b"/openai/chat/completions") -> bytes:
    """A POST whose framing is up to the caller."""
    return head(*fields, line=b"POST " + path + b" HTTP/1.1") + body


def sized(*fields: bytes, body: bytes = JSON, path: bytes = b"/openai/chat/completions") -> bytes:
    return post(*fields, b"Content-Length: %d" % len(body), body=body, path=path)


def chunked(body: bytes, *fields: bytes, path: bytes = b"/openai/chat/completions") -> bytes:
    return post(b"Transfer-Encoding: chunked", *fields, body=body, path=path)


def whole(payload: bytes = JSON, extension: bytes = b"") -> bytes:
    """One chunk, without the last."""
    return b"%x%b\r\n%b\r\n" % (len(payload), extension, payload)


def chat(body: bytes = JSON, fields: Fields = (), suffix: str = "") -> Seen:
    """A chat completion as it must arrive: one Content-Length, whatever framing it had."""
    framing = ((b"accept-encoding", b"identity"), (b"content-length", b"%d" % len(body)))
    return Seen(b"/v1/chat/completions", b"POST", framing + fields, body, suffix)


def refused(
    name: str, clause: str, data: bytes, status: int | tuple[int, ...] = 400, code: str = ""
) -> Case:
    """Refused and closed; nothing reaches the provider."""
    if not code and status == 400:
        code = "malformed_request"
    return Case(name, clause, data, (status,), code, closes=True)


def passed(name: str, clause: str, data: bytes, *seen: Seen, closes: bool = False) -> Case:
    """Answered by the provider."""
    return Case(name, clause, data, (200,) * len(seen), "", closes, seen)


CASES: list[Case] = []
add = CASES.append

# Request line and version -------------------------------------------------------------------

for name, line in {
    "two spaces before the target": b"GET  /openai/models HTTP/1.1",
    "two spaces before the version": b"GET /openai/models  HTTP/1.1",
    "tab for a space": b"GET\t/openai/models HTTP/1.1",
    "space before the method": b" GET /openai/models HTTP/1.1",
    "space after the version": b"GET /openai/models HTTP/1.1 ",
    "tab after the version": b"GET /openai/models HTTP/1.1\t",
    "no target": b"GET HTTP/1.1",
    "four words": b"GET /openai/models x HTTP/1.1",
    "space in the target": b"GET /openai/mo dels HTTP/1.1",
    "lower-case protocol": b"GET /openai/models http/1.1",
    "another protocol": b"GET /openai/models RTSP/1.0",
    "ICE": b"SOURCE /openai/models ICE/1.0",
    "two-digit minor": b"GET /openai/models HTTP/1.10",
    "leading zero in the version": b"GET /openai/models HTTP/01.1",
    "comma in the version": b"GET /openai/models HTTP/1,1",
    "version without minor": b"GET /openai/models HTTP/1",
    "NUL in the method": b"G\0ET /openai/models HTTP/1.1",
    "NUL in the target": b"GET /openai/mod\0els HTTP/1.1",
    "control byte in the target": b"GET /openai/mod\x01els HTTP/1.1",
    "DEL in the target": b"GET /openai/mod\x7fels HTTP/1.1",
    "8-bit byte in the target": b"GET /openai/mod\xe9ls HTTP/1.1",
    "CR in the target": b"GET /openai/mod\rels HTTP/1.1",
    "LF in the target": b"GET /openai/models\nX: HTTP/1.1",
    "fragment": b"GET /openai/models#x HTTP/1.1",
    "fragment in the query": b"GET /openai/models?a=1#x HTTP/1.1",
    "relative target": b"GET openai/models HTTP/1.1",
    "authority-form of GET": b"GET gateway:80 HTTP/1.1",
    "asterisk-form of GET": b"GET * HTTP/1.1",
    "only a query": b"GET ?a=1 HTTP/1.1",
    "HTTP/0.9 with fields": b"GET /openai/models",
}.items():
    add(refused(name, "RFC 9112, 3", head(line=line)))
for version in (b"1.2", b"2.0", b"3.0", b"0.9", b"9.9"):
    line = b"GET /openai/models HTTP/" + version
    add(refused(f"version {version.decode()}", "RFC 9110, 15.6.6", head(line=line), 505,
                "http_version_not_supported"))  # fmt: skip
add(refused("HTTP/0.9", "RFC 9112, 2.3; docs/http.md", b"GET /openai/models\r\n"))
add(refused("HTTP/2 preface", "RFC 9113, 3.4",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", (400, 505)))  # fmt: skip
add(refused("TLS client hello", "docs/http.md", bytes.fromhex("16030102000100")))
add(refused("TLS hello with a line end in it", "docs/http.md", b"\x16\x03\x01\r\n\r\n\r\n"))
add(refused("SSH banner", "docs/http.md", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"))
add(refused("SOCKS", "docs/http.md", b"\x05\x01\x00"))
add(refused("PROXY protocol", "docs/http.md",
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + head()))  # fmt: skip
add(refused("random bytes", "docs/http.md", bytes(range(128, 256)) * 8))
add(refused("a body alone", "docs/http.md", JSON))
add(refused("unknown method", "RFC 9110, 9.1", head(line=b"BREW /openai/models HTTP/1.1"),
            (400, 501)))  # fmt: skip
add(refused("lower-case method", "RFC 9110, 9.1", head(line=b"get /openai/models HTTP/1.1"),
            (400, 501)))  # fmt: skip
for method in (b"CONNECT gateway:443", b"CONNECT /openai/models", b"TRACE /openai/models"):
    add(refused(method.decode(), "docs/http.md", head(line=method + b" HTTP/1.1"),
                (400, 501) if b":" not in method and b"CONN" in method else 501))  # fmt: skip
add(refused("CONNECT and a request behind it", "RFC 9110, 9.3.6",
            head(line=b"CONNECT gateway:443 HTTP/1.1", host=b"Host: gateway:443") + head(),
            501, "not_implemented"))  # fmt: skip
add(refused("OPTIONS *", "RFC 9112, 3.2.4; docs/http.md", head(line=b"OPTIONS * HTTP/1.1"),
            501, "not_implemented"))  # fmt: skip
add(passed("one empty line first", "RFC 9112, 2.2", b"\r\n" + head(), Seen()))
add(refused("bare LF first", "RFC 9112, 2.2", b"\n" + head()))
add(passed("OPTIONS of a path", "RFC 9110, 9.3.7", head(line=b"OPTIONS /openai/models HTTP/1.1"),
           Seen(method=b"OPTIONS")))  # fmt: skip
add(passed("DELETE", "RFC 9110, 9.3.5", head(line=b"DELETE /openai/models HTTP/1.1"),
           Seen(method=b"DELETE")))  # fmt: skip
add(passed("HEAD", "RFC 9110, 9.3.2", head(line=b"HEAD /openai/models HTTP/1.1"),
           Seen(method=b"HEAD"))._replace(method=b"HEAD"))  # fmt: skip
add(Case("HEAD refused has no body", "RFC 9110, 9.3.2",
         head(line=b"HEAD /nowhere HTTP/1.1"), (404,), method=b"HEAD"))  # fmt: skip
for size, status, code in ((16_000, 404, "route_not_found"), (17_000, 414, "target_too_long")):
    line = b"GET /" + b"x" * size + b" HTTP/1.1"
    add(Case(f"target of {size}", "RFC 9112, 3", head(line=line), (status,), code, status == 414))
add(refused("target without an end", "RFC 9112, 3", b"GET /" + b"x" * 17_000, 414,
            "target_too_long"))  # fmt: skip

# Host and the forms of a target -------------------------------------------------------------

for name, host in {
    "no Host": b"",
    "empty Host": b"Host:",
    "two Hosts": b"Host: gateway\r\nHost: other",
    "the same Host twice": b"Host: gateway\r\nhost: gateway",
    "two Hosts in a list": b"Host: gateway, other",
    "user in Host": b"Host: user@gateway",
    "path in Host": b"Host: gateway/x",
    "query in Host": b"Host: gateway?x",
    "backslash in Host": b"Host: gateway\\x",
    "space in Host": b"Host: gate way",
    "port that is no number": b"Host: gateway:8o",
    "two ports": b"Host: gateway:80:80",
    "URL in Host": b"Host: http://gateway",
    "open bracket in Host": b"Host: [::1",
    "folded Host": b"Host:\r\n gateway",
}.items():
    add(refused(name, "RFC 9112, 3.2", head(host=host)))
for host in (b"Host: GateWay", b"Host: gateway:8080", b"Host: [::1]:80", b"host:gateway"):
    add(passed(host.decode(), "RFC 9110, 7.2", head(host=host), Seen()))
for name, line in {
    "absolute-form of another host": b"GET http://other/openai/models HTTP/1.1",
    "absolute-form of another port": b"GET http://gateway:81/openai/models HTTP/1.1",
    "absolute-form with a user": b"GET http://u:p@gateway/openai/models HTTP/1.1",
    "absolute-form with our host as user": b"GET http://gateway@other/openai/models HTTP/1.1",
    "absolute-form without authority": b"GET http:///openai/models HTTP/1.1",
    "absolute-form of ftp": b"GET ftp://gateway/openai/models HTTP/1.1",
    "absolute-form with backslash": b"GET http://gateway\\@other/openai/models HTTP/1.1",
}.items():
    add(refused(name, "RFC 9112, 3.2.2", head(line=line)))
add(refused("absolute-form does not replace Host", "RFC 9112, 3.2",
            head(line=b"GET http://gateway/openai/models HTTP/1.1", host=b"")))  # fmt: skip
for line in (b"http://gateway/openai/models", b"HTTP://GATEWAY/openai/models?a=1"):
    query = b"?a=1" if b"?" in line else b""
    add(passed(line.decode(), "RFC 9112, 3.2.2", head(line=b"GET " + line + b" HTTP/1.1"),
               Seen(b"/v1/models" + query)))  # fmt: skip

# Paths: what is matched is what is sent -----------------------------------------------------

for path in (
    *(b"/openai/../models", b"/openai/./models", b"/openai/models/..", b"/openai/models/."),
    *(b"/../openai/models", b"/openai/..;/models", b"/openai/..;x=1/models", b"/openai/.;/models"),
    *(b"/openai//models", b"//openai/models", b"//other/openai/models", b"/openai/models//"),
    *(b"/openai/%2e%2e/models", b"/openai/%2E./models", b"/openai/.%2e/models"),
    *(b"/openai/%252e%252e/models", b"/openai%2fmodels", b"/openai/a%2Fb", b"/openai/a%5cb"),
    *(b"/openai/a%2eb", b"/openai/a%25b"),
    *(b"/openai/a\\b", b"/openai/..\\models", b"/openai/a%00b", b"/openai/a%0d%0ab"),
    *(b"/openai/a%0Ab", b"/openai/a%7fb", b"/openai/a%zz", b"/openai/a%4", b"/openai/a%"),
    *(b'/openai/a"b', b"/openai/a<b>", b"/openai/a{b}", b"/openai/a|b", b"/openai/a^b"),
    *(b"/openai;x/models", b"/openai/models;v=1", b"/openai/models%3bv=1"),
    *(b"/openai/a`b", b"/openai/a[b]", b"/openai/a%u002fb"),
):
    add(Case(f"path {path.decode()}", "RFC 3986, 6.2.2; RFC 9110, 17.6",
             head(line=b"GET " + path + b" HTTP/1.1"), (400,), "malformed_path"))  # fmt: skip
for path, sent in {
    b"/openai": b"/v1",
    b"/openai/": b"/v1/",
    b"/openai/v1/models": b"/v1/models",
    b"/openai/%6dodels": b"/v1/models",
    b"/%6fpenai/models": b"/v1/models",
    b"/openai/%e2%82%ac": b"/v1/%E2%82%AC",
    b"/openai/%c0%ae%c0%ae/x": b"/v1/%C0%AE%C0%AE/x",
    b"/openai/models/a:b@c,d+e": b"/v1/models/a:b@c,d+e",
    b"/openai/models?": b"/v1/models?",
    b"/openai/models?a=/../b&c=%2e%2e%2f%00": b"/v1/models?a=/../b&c=%2e%2e%2f%00",
    b"/openai/models?a=http://other/?x": b"/v1/models?a=http://other/?x",
}.items():
    add(passed(f"path {path.decode()}", "RFC 3986, 6.2.2", head(line=b"GET " + path + b" HTTP/1.1"),
               Seen(sent)))  # fmt: skip
for path in (b"/", b"/openaix/models", b"/OPENAI/models", b"/v1/models"):
    add(Case(f"path {path.decode()}", "docs/http.md", head(line=b"GET " + path + b" HTTP/1.1"),
             (404,), "route_not_found"))  # fmt: skip

# Field grammar ------------------------------------------------------------------------------

for name, field in {
    "space before the colon": b"X-A : 1",
    "tab before the colon": b"X-A\t: 1",
    "space before the name": b" X-A: 1",
    "folded value": b"X-A: 1\r\n 2",
    "folded by a tab": b"X-A: 1\r\n\tTransfer-Encoding: chunked",
    "folded blank line": b"X-A: 1\r\n \r\nX-B: 2",
    "no colon": b"X-A",
    "no name": b": 1",
    "space in the name": b"X A: 1",
    "bracket in the name": b"X(A): 1",
    "quote in the name": b'"X": 1',
    "slash in the name": b"X/A: 1",
    "8-bit byte in the name": b"X\xe9: 1",
    "NUL in the name": b"X\0A: 1",
    "NUL in the value": b"X-A: 1\x002",
    "control byte in the value": b"X-A: 1\x012",
    "vertical tab in the value": b"X-A: 1\x0b2",
    "form feed in the value": b"X-A: \x0c1",
    "escape in the value": b"X-A: 1\x1b[2J",
    "DEL in the value": b"X-A: 1\x7f2",
    "CR in the value": b"X-A: 1\r2",
    "CR at the end of the value": b"X-A: 1\r",
    "LF in the value": b"X-A: 1\nX-B: 2",
    "LF CR": b"X-A: 1\n\rX-B: 2",
    "bare LF that hides a length": b"X-A: 1\nContent-Length: 5",
    "bare CR that hides a coding": b"X-A: 1\rTransfer-Encoding: chunked",
}.items():
    add(refused(name, "RFC 9112, 2.2 and 5; RFC 9110, 5.5", head(field)))
add(refused("all lines end in LF", "RFC 9112, 2.2", head().replace(b"\r\n", b"\n")))
add(refused("request line ends in LF", "RFC 9112, 2.2", head().replace(b"\r\n", b"\n", 1)))
add(refused("head ends in LF LF", "RFC 9112, 2.2", head()[:-4] + b"\n\n"))
add(refused("head ends in CRLF LF", "RFC 9112, 2.2", head()[:-4] + b"\r\n\n"))
add(passed("empty value, blanks, tabs, obs-text", "RFC 9110, 5.5",
           head(b"X-A:", b"X-B: \t 1 \t ", b"X-C: a\tb", b"X-D: \xe9\xff", b"!#$%&'*+-.^`|~: 1"),
           Seen(fields=((b"x-a", b""), (b"x-b", b"1"), (b"x-c", b"a\tb"), (b"x-d", b"\xe9\xff"),
                        (b"!#$%&'*+-.^`|~", b"1")))))  # fmt: skip
add(passed("names that some servers read as others", "RFC 3875, 4.1.18",
           head(b"Content_Length: 5", b"Transfer_Encoding: chunked", b"X_Forwarded_For: 1.2.3.4",
                b"X-Api_Key: x"),
           Seen()))  # fmt: skip
add(passed("fields that repeat", "RFC 9110, 5.3", head(b"Accept: a", b"X: 1", b"accept: b"),
           Seen(fields=((b"accept", b"a"), (b"x", b"1"), (b"accept", b"b")))))  # fmt: skip
MANY = [b"X-%d: 1" % number for number in range(98)]
add(passed("100 fields", "docs/http.md", head(*MANY[:97]),
           Seen(fields=tuple((b"x-%d" % n, b"1") for n in range(97)))))  # fmt: skip
add(refused("101 fields", "docs/http.md", head(*MANY), 431, "head_too_large"))
add(refused("10,000 short fields", "docs/http.md", head(*[b"A:"] * 10_000), 431, "head_too_large"))
add(refused("head of 70,000 bytes", "RFC 6585, 5", head(b"X: " + b"y" * 70_000), 431,
            "head_too_large"))  # fmt: skip
add(refused("head without an end", "RFC 6585, 5", LINE + b"\r\nX: " + b"y" * 70_000, 431,
            "head_too_large"))  # fmt: skip
add(passed("head of 60,000 bytes", "docs/http.md", head(b"X: " + b"y" * 60_000),
           Seen(fields=((b"x", b"y" * 60_000),))))  # fmt: skip
for field in (
    *(b"Content-Type: a/b\r\nContent-Type: c/d", b"Content-Encoding: a\r\nContent-Encoding: b"),
    b"Expect: 100-continue\r\nExpect: 100-continue",
):
    add(refused("two of " + field.split(b":")[0].decode(), "docs/http.md", sized(field)))
add(refused("Expect of something else", "RFC 9110, 10.1.1", sized(b"Expect: 200-ok"), 417,
            "expectation_failed"))  # fmt: skip
add(refused("Expect of two things", "RFC 9110, 10.1.1", sized(b"Expect: 100-continue, x"), 417,
            "expectation_failed"))  # fmt: skip
add(passed("Expect with the body at once", "RFC 9110, 10.1.1",
           sized(b"Expect: 100-Continue"), chat()))  # fmt: skip
add(passed("Expect of 1.0", "RFC 9110, 10.1.1",
           sized(b"Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0"),
           chat(), closes=True))  # fmt: skip
add(Case("compressed body that must be read", "docs/http.md", sized(b"Content-Encoding: gzip"),
         (415,), "unsupported_encoding"))  # fmt: skip
