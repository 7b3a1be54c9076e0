"""What a client may send, continued: where a body ends, who sends it, what is not passed on, and
what follows a request on its connection. See request_cases for the form of a case."""

from __future__ import annotations

from tests.adversity.request_cases import (
    HOST,
    JSON,
    KEY,
    Case,
    Seen,
    chat,
    chunked,
    head,
    passed,
    post,
    refused,
    sized,
    whole,
)

CASES: list[Case] = []
add = CASES.append
CL = b"Content-Length: %d" % len(JSON)
TE = b"Transfer-Encoding: chunked"
END = b"0\r\n\r\n"
FILES = b"/openai/files"
N = b"%d" % len(JSON)
MANY = b"".join(whole(b" " * size) for size in range(20, 80))
"""Whole chunks, which are looked at all together: blanks before the JSON."""

# Content-Length and Transfer-Encoding -------------------------------------------------------

for name, value in {
    "plus": b"+" + N,
    "minus": b"-" + N,
    "minus zero": b"-0",
    "hexadecimal": b"0x1b",
    "underscore": b"2_7",
    "fraction": b"27.0",
    "exponent": b"27e0",
    "empty": b"",
    "list": N + b", " + N,
    "list of two": N + b", 0",
    "trailing comma": N + b",",
    "two numbers": N + b" 0",
    "parameter": N + b";x",
    "quoted": b'"27"',
    "20 digits": b"18446744073709551643",
    "40 digits": b"9" * 40,
    "superscript": b"\xb2",
    "form feed": b"\x0c27",
    "NUL": N + b"\0",
}.items():
    add(refused(f"Content-Length: {name}", "RFC 9112, 6.2 and 6.3",
                post(b"Content-Length: " + value)))  # fmt: skip
add(refused("Content-Length twice", "RFC 9112, 6.3", post(CL, CL)))
add(refused("two Content-Lengths", "RFC 9112, 6.3", post(CL, b"content-length: 0")))
add(refused("Content-Length with space before the colon", "RFC 9112, 5.1",
            post(b"Content-Length : " + N)))  # fmt: skip
add(refused("Content-Length over the limit", "RFC 9110, 15.5.14",
            post(b"Content-Length: 1048577"), 413, "body_too_large"))  # fmt: skip
add(refused("Content-Length over the limit with Expect", "RFC 9110, 10.1.1",
            post(b"Content-Length: 1048577", b"Expect: 100-continue", body=b""),
            413, "body_too_large"))  # fmt: skip
add(refused("Content-Length of 18 digits", "RFC 9110, 15.5.14",
            post(b"Content-Length: 999999999999999999"), 413, "body_too_large"))  # fmt: skip
add(passed("Content-Length with zeros in front", "RFC 9110, 8.6",
           post(b"Content-Length: 000" + N), chat()))  # fmt: skip
add(passed("Content-Length in blanks", "RFC 9112, 5.1", post(b"Content-Length: \t " + N + b" \t"),
           chat()))  # fmt: skip
for name, line, value in (
    *((f"coding {v.decode()}", TE, v) for v in (
        b"gzip", b"identity", b"xchunked", b"chunkedx", b"chunked, chunked", b"gzip, chunked",
        b"chunked, gzip", b"chunked, identity", b"identity, chunked", b",chunked", b"chunked,",
        b", chunked", b"chunked;q=1", b'"chunked"', b"chunked chunked", b"cow", b"0",
    )),
    ("coding empty", TE, b""),
):  # fmt: skip
    data = post(line.replace(b"chunked", value), body=whole() + END)
    add(refused(name, "RFC 9112, 6.1; docs/http.md", data, (400, 501)))
for name, fields in {
    "coding in control bytes": (b"Transfer-Encoding: \x0bchunked",),
    "coding and NUL": (b"Transfer-Encoding: chunked\0",),
    "coding with space before the colon": (b"Transfer-Encoding : chunked",),
    "coding on a folded line": (b"Transfer-Encoding:\r\n chunked",),
    "coding behind a blank": (b" Transfer-Encoding: chunked",),
    "coding twice": (TE, TE),
    "coding and then another": (TE, b"Transfer-Encoding: identity"),
    "another coding and then it": (b"Transfer-Encoding: identity", TE),
    "length and coding": (CL, TE),
    "coding and length": (TE, CL),
    "coding and length of zero": (TE, b"Content-Length: 0"),
    "coding, length twice": (TE, CL, CL),
    "length and unknown coding": (CL, b"Transfer-Encoding: xchunked"),
    "length and empty coding": (CL, b"Transfer-Encoding:"),
    "length and coding in capitals": (CL, b"TRANSFER-ENCODING: CHUNKED"),
    "bad length and coding": (b"Content-Length: x", TE),
}.items():
    # A second request is hidden in what one reading takes for the body of the first.
    data = post(*fields, body=END + head(line=b"GET /openai/hidden HTTP/1.1"))
    add(refused(name, "RFC 9112, 6.1 and 6.3", data, (400, 501)))
for fields in ((TE,), (TE, CL), (CL, TE), (TE, b"Connection: keep-alive")):
    data = post(*fields, body=whole() + END).replace(b"HTTP/1.1", b"HTTP/1.0")
    names = " and ".join(field.split(b":")[0].decode() for field in fields)
    add(refused(f"{names} in 1.0", "RFC 9112, 6.1", data))
for value in (b"Chunked", b" CHUNKED", b"\t chunked  "):
    data = post(b"Transfer-Encoding:" + value, body=whole() + END)
    add(passed(f"coding {value.decode()!r}", "RFC 9112, 7", data, chat()))
add(Case("no length, so no body", "RFC 9112, 6.3", post(body=b"") + head(), (400, 200),
         "", seen=(Seen(),)))  # fmt: skip
add(passed("GET with a length of zero", "RFC 9110, 9.3.1", head(b"Content-Length: 0"),
           Seen(fields=((b"content-length", b"0"),))))  # fmt: skip
add(passed("GET with a body", "RFC 9110, 9.3.1", head(b"Content-Length: 5") + b"GET /",
           Seen(fields=((b"accept-encoding", b"identity"), (b"content-length", b"5")),
                body=b"GET /")))  # fmt: skip
add(passed("upload of known size", "RFC 9112, 6.2", sized(body=b"\0\r\n\xff" * 50, path=FILES),
           Seen(b"/v1/files", b"POST", ((b"accept-encoding", b"identity"),
                (b"content-length", b"200")), b"\0\r\n\xff" * 50)))  # fmt: skip
UPLOAD = Seen(b"/v1/files", b"POST", ((b"accept-encoding", b"identity"),
              (b"transfer-encoding", b"chunked")), b"abcdefgh")  # fmt: skip
add(passed("upload in chunks", "RFC 9112, 7.1",
           chunked(b"3;x=y\r\nabc\r\n05\r\ndefgh\r\n00\r\nHost: evil\r\n\r\n", path=FILES),
           UPLOAD))  # fmt: skip

# Chunks -------------------------------------------------------------------------------------

for name, body in {
    "size with plus": b"+1b\r\n" + JSON + b"\r\n" + END,
    "size with minus": b"-1b\r\n" + JSON + b"\r\n" + END,
    "size with 0x": b"0x1b\r\n" + JSON + b"\r\n" + END,
    "size with underscore": b"1_b\r\n" + JSON + b"\r\n" + END,
    "size with h": b"1bh\r\n" + JSON + b"\r\n" + END,
    "size after a blank": b" 1b\r\n" + JSON + b"\r\n" + END,
    "size before a blank": b"1b \r\n" + JSON + b"\r\n" + END,
    "size before a tab": b"1b\t\r\n" + JSON + b"\r\n" + END,
    "size in quotes": b'"1b"\r\n' + JSON + b"\r\n" + END,
    "no size": b"\r\n" + JSON + b"\r\n" + END,
    "only an extension": b";x=1\r\n" + JSON + b"\r\n" + END,
    "size of 64 bits and more": b"1000000000000001b\r\n" + JSON + b"\r\n" + END,
    "size of 32 digits": b"f" * 32 + b"\r\n" + JSON + b"\r\n" + END,
    "size that ends in LF": b"1b\n" + JSON + b"\r\n" + END,
    "size that ends in CR": b"1b\r" + JSON + b"\r\n" + END,
    "size that ends in CR CR LF": b"1b\r\r\n" + JSON + b"\r\n" + END,
    "data that ends in LF": b"1b\r\n" + JSON + b"\n" + END,
    "data that ends in CR": b"1b\r\n" + JSON + b"\r" + END,
    "data that ends in two other bytes": b"1b\r\n" + JSON + b"XX" + END,
    "data longer than its size": b"1a\r\n" + JSON + b"\r\n" + END,
    "data shorter than its size": b"1c\r\n" + JSON + b"\r\n" + END,
    "no line end after data": b"1b\r\n" + JSON + END,
    "empty line after data": b"1b\r\n" + JSON + b"\r\n\r\n" + END,
    "LF in an extension": b"1b;a\nb\r\n" + JSON + b"\r\n" + END,
    "CR in an extension": b"1b;a\rb\r\n" + JSON + b"\r\n" + END,
    "NUL in an extension": b"1b;a\0b\r\n" + JSON + b"\r\n" + END,
    "extension that ends in LF": b"1b;a=b\n" + JSON + b"\r\n" + END,
    "extension of 5,000 bytes": whole(extension=b";" + b"x" * 5_000) + END,
    "20,000 bytes of extensions": b"".join(
        b"1;%b\r\n \r\n" % (b"x" * 2_000) for _ in range(10)) + whole() + END,
    "last chunk ends in LF": whole() + b"0\n\r\n",
    "last line ends in LF": whole() + b"0\r\n\n",
    "trailer that ends in LF": whole() + b"0\r\nX: 1\n\r\n",
    "trailer without a colon": whole() + b"0\r\nX\r\n\r\n",
    "trailer with a blank before the colon": whole() + b"0\r\nX : 1\r\n\r\n",
    "trailer without a name": whole() + b"0\r\n: 1\r\n\r\n",
    "folded trailer": whole() + b"0\r\nX: 1\r\n 2\r\n\r\n",
    "NUL in a trailer": whole() + b"0\r\nX: \0\r\n\r\n",
    "CR in a trailer": whole() + b"0\r\nX: a\rb\r\n\r\n",
    "trailer of 5,000 bytes": whole() + b"0\r\nX: " + b"y" * 5_000 + b"\r\n\r\n",
    "20,000 bytes of trailers": whole() + b"0\r\n" + b"X: y\r\n" * 4_500 + b"\r\n",
    "a request where a trailer may stand": whole() + b"0\r\n" + head(),
}.items():  # fmt: skip
    add(refused(f"chunks: {name}", "RFC 9112, 7.1", chunked(body)))
    add(refused(f"chunks, behind many: {name}", "RFC 9112, 7.1", chunked(MANY + body)))
add(refused("chunks over the limit", "RFC 9110, 15.5.14",
            chunked(whole(b" " * 70_000) * 16), 413, "body_too_large"))  # fmt: skip
for name, body in {
    "one": whole() + END,
    "size in capitals": whole().replace(b"1b", b"1B") + END,
    "zeros before the size": b"000" + whole() + b"0000\r\n\r\n",
    "a byte each": b"".join(b"1\r\n%c\r\n" % byte for byte in JSON) + END,
    "extensions": whole(extension=b';a;b=c;d="e;f"') + b"0;g\r\n\r\n",
    "extension in blanks": whole(extension=b" ; a = b") + END,
    "trailer Authorization": whole() + b"0\r\nAuthorization: Bearer sk-evil\r\n\r\n",
    "trailer Host": whole() + b"0\r\nHost: evil\r\n\r\n",
    "trailer Content-Length": whole() + b"0\r\nContent-Length: 99\r\n\r\n",
    "trailer Transfer-Encoding": whole() + b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "trailer Connection": whole() + b"0\r\nConnection: close\r\n\r\n",
    "trailer X-Request-Id": whole() + b"0\r\nX-Request-Id: evil\r\n\r\n",
    "trailer X-Forwarded-For": whole() + b"0\r\nX-Forwarded-For: evil\r\nX-Evil: 1\r\n\r\n",
}.items():
    add(passed(f"chunks: {name}", "RFC 9112, 7.1; RFC 9110, 6.5", chunked(body), chat()))
add(Case("bad chunk of an upload under way", "RFC 9112, 7.1 and 8",
         chunked(b"3\r\nabc\r\nzz\r\n", path=FILES), (400,), "malformed_request", closes=True,
         seen=(UPLOAD._replace(body=b"", complete=False),)))  # fmt: skip

# Credentials --------------------------------------------------------------------------------

OTHER = b"sk-bob-xyz789uvw012"
for name, fields in {
    "two Authorizations": (KEY, KEY),
    "two Authorizations of different keys": (KEY, KEY.replace(b"@KEY@", OTHER)),
}.items():
    add(refused(name, "docs/http.md", head(*fields, key=b"")))
for name, fields, query in (
    ("different keys in two fields", (KEY, b"X-Api-Key: " + OTHER), b""),
    ("key and nonsense in two fields", (KEY, b"X-Api-Key: x"), b""),
    ("different keys in one field name", (b"X-Api-Key: @KEY@", b"x-api-key: " + OTHER), b""),
    ("different keys in a list", (b"X-Api-Key: @KEY@, " + OTHER,), b""),
    ("different keys in field and query", (KEY,), b"?api_key=" + OTHER),
    ("different keys in the query", (), b"?api_key=@KEY@&api_key=" + OTHER),
    ("different keys in field and cookie", (KEY, b"Cookie: gateway_key=" + OTHER), b""),
    ("wrong key", (KEY + b"x",), b""),
    ("key cut short", (KEY.replace(b"@KEY@", OTHER[:-1]),), b""),
    ("key of the provider", (b"Authorization: Bearer sk-upstream-secret",), b""),
    ("admin token", (b"Authorization: Bearer admin-token-for-tests",), b""),
    ("8-bit key", (b"Authorization: Bearer \xff\xfe",), b""),
):
    line = b"GET /openai/models" + query + b" HTTP/1.1"
    add(Case(name, "docs/http.md", head(*fields, line=line, key=b""), (401,), "invalid_api_key"))
for name, fields in {
    "no key": (),
    "another scheme": (b"Authorization: Basic @KEY@",),
    "key without a scheme": (b"Authorization: @KEY@",),
    "empty key": (b"Authorization: Bearer ", b"X-Api-Key:"),
    "key in an unknown place": (b"Api-Key: @KEY@",),
    "key in Proxy-Authorization": (b"Proxy-Authorization: Bearer @KEY@",),
}.items():
    add(Case(name, "RFC 9110, 11", head(*fields, key=b""), (401,), "missing_api_key"))
for name, fields, query, sent in (
    ("key in another field", (b"X-Api-Key: @KEY@",), b"", b""),
    ("scheme in capitals", (b"authorization: BEARER   @KEY@",), b"", b""),
    ("the same key in all places", (KEY, b"X-Api-Key: @KEY@", b"Cookie: gateway_key=@KEY@"),
     b"?api_key=@KEY@", b""),
    ("key in the query", (), b"?a=1&api_key=@KEY@&b=2", b"?a=1&b=2"),
    ("key in the query, encoded", (), b"?api%5Fkey=%73k-alice-abc123def456&a", b"?a"),
    ("key in a cookie", (b"Cookie: a=1; gateway_key=@KEY@",), b"", b""),
    ("unused places are not passed on", (KEY, b"Api-Key: secret", b"Cookie: a=1"), b"", b""),
):  # fmt: skip
    line = b"GET /openai/models" + query + b" HTTP/1.1"
    add(passed(name, "docs/http.md", head(*fields, line=line, key=b""), Seen(b"/v1/models" + sent)))

# What is not passed on ----------------------------------------------------------------------

KEPT = ((b"x-kept", b"1"),)
for name, fields in {
    "hop-by-hop fields": (b"Keep-Alive: timeout=5", b"Proxy-Connection: keep-alive", b"TE: gzip",
                          b"Trailer: X-Evil", b"Connection: keep-alive, TE"),
    "fields that Connection names": (b"Connection: X-Hop, x-other", b"X-Hop: 1", b"X-OTHER: 2"),
    "fields that two Connections name": (b"Connection: X-Hop", b"connection: ,,X-Other,",
                                         b"X-Hop: 1", b"X-Other: 2"),
    "Connection names our own fields": (b"Connection: authorization, host, x-request-id, via",),
    "Connection names Content-Length": (b"Connection: content-length, transfer-encoding",),
    "Connection names Accept-Encoding": (b"Connection: accept-encoding", b"Accept-Encoding: gzip"),
    "Connection names what is no token": (b'Connection: "x-kept", (x-kept), x-kept;q=1',),
    "fields of proxies": (b"Proxy-Authorization: Basic x", b"Proxy-Authenticate: x", b"Proxy-X: 1",
                          b"X-Forwarded-For: 1", b"X-Forwarded-Host: evil", b"Via: 1.1 evil",
                          b"X-Forwarded-Proto: https", b"X-FORWARDED-EVIL: 1", b"X-Real-IP: 1",
                          b"Forwarded: for=1"),
    "an offer of HTTP/2": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
                           b"HTTP2-Settings: AAMAAABk"),
    "an offer of WebSocket": (b"Connection: Upgrade", b"Upgrade: websocket",
                              b"Connection: Sec-WebSocket-Key", b"Sec-WebSocket-Key: AAAA"),
    "an offer without Connection": (b"Upgrade: foo/1",),
}.items():  # fmt: skip
    add(passed(name, "RFC 9110, 7.6.1 and 7.8", head(b"X-Kept: 1", *fields), Seen(fields=KEPT)))
add(passed("an offer and bytes behind it", "RFC 9110, 7.8",
           head(b"Connection: Upgrade", b"Upgrade: x") + head().replace(b"@ID@", b"@ID@b"),
           Seen(), Seen(suffix="b")))  # fmt: skip
add(passed("an offer with a body", "RFC 9110, 7.8", sized(b"Connection: Upgrade", b"Upgrade: h2c"),
           chat()))  # fmt: skip
add(passed("fields that choose a destination", "docs/http.md",
           head(b"X-Original-URL: /evil", b"X-Rewrite-URL: /evil", b"X-Host: evil"),
           Seen(fields=((b"x-original-url", b"/evil"), (b"x-rewrite-url", b"/evil"),
                        (b"x-host", b"evil")))))  # fmt: skip
add(passed("Accept-Encoding where nothing is read", "RFC 9110, 12.5.3",
           head(b"Accept-Encoding: gzip", b"accept-encoding: br"),
           Seen(fields=((b"accept-encoding", b"gzip, br"),))))  # fmt: skip
add(passed("Accept-Encoding where the answer is read", "docs/http.md",
           sized(b"Accept-Encoding: gzip, br"), chat()))  # fmt: skip

# What follows a request ---------------------------------------------------------------------


def follow(*names: str) -> tuple[bytes, tuple[Seen, ...]]:
    """Requests in one piece, and what the provider sees of them."""
    data = b"".join(head().replace(b"@ID@", b"@ID@" + name.encode()) for name in names)
    return data, tuple(Seen(suffix=name) for name in names)


THREE, SEEN_THREE = follow("a", "b", "c")
ONE, SEEN_ONE = follow("a")
add(passed("pipelined", "RFC 9112, 9.3.2", THREE, *SEEN_THREE))
add(passed("pipelined with bodies", "RFC 9112, 9.3.2",
           sized() + chunked(whole() + END).replace(b"@ID@", b"@ID@b") + ONE,
           chat(), chat(suffix="b"), *SEEN_ONE))  # fmt: skip
add(passed("an empty line between", "RFC 9112, 2.2", ONE + b"\r\n" + sized(),
           *SEEN_ONE, chat()))  # fmt: skip
add(passed("a line end after the body", "RFC 9112, 2.2", sized() + b"\r\n" + ONE,
           chat(), *SEEN_ONE))  # fmt: skip
for name, junk, status in (
    ("garbage", b"garbage\r\n\r\n", (400,)),
    ("binary garbage", b"\0\1\2\3", (400,)),
    ("the rest of a longer body", JSON, (400,)),
    ("a request in lower case", b"get / http/1.1\r\n\r\n", (400, 501)),
    ("a request without Host", b"GET /openai/models HTTP/1.1\r\n\r\n", (400,)),
    ("a request of two lengths", post(CL, TE), (400,)),
    ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 505)),
):
    add(Case(f"then {name}", "RFC 9112, 2.2 and 9.3", ONE + junk, (200, status),
             closes=True, seen=SEEN_ONE))  # fmt: skip
    add(Case(f"body, then {name}", "RFC 9112, 2.2 and 9.3", sized() + junk, (200, status),
             closes=True, seen=(chat(),)))  # fmt: skip
for value in (b"+27", b"-27", b"0x1b", b"", b"27, 27", b"2 7", b"9" * 40, b"\xb2"):
    # The head before it is the same but for the length: whatever is remembered must not be trusted.
    data = sized() + post(b"Content-Length: " + value)
    add(Case(f"body, then the same with length {value.decode('latin-1')!r}", "RFC 9112, 6.3", data,
             (200, 400), "malformed_request", closes=True, seen=(chat(),)))  # fmt: skip
add(Case("body, then the same over the limit", "RFC 9110, 15.5.14",
         sized() + post(b"Content-Length: 1048577"), (200, 413), "body_too_large", closes=True,
         seen=(chat(),)))  # fmt: skip
LONG = JSON[:-1] + b',"user":"u"}'
add(passed("bodies of other sizes in turn", "RFC 9112, 6.3",
           sized() + sized(body=LONG) + sized(), chat(), chat(LONG), chat()))  # fmt: skip
for name, first in {
    "a bad length": post(b"Content-Length: +5", body=b""),
    "two framings": post(CL, TE, body=b""),
    "a bad chunk": chunked(b"zz\r\n"),
    "no Host": head(host=b""),
    "a version of the future": head(line=b"GET / HTTP/3.0"),
}.items():
    data = first + head(line=b"GET /openai/hidden HTTP/1.1")
    add(Case(f"nothing is read after {name}", "RFC 9112, 11.2", data, ((400, 505),), closes=True))
add(passed("nothing is read after Connection: close", "RFC 9112, 9.6",
           head(b"Connection: close") + THREE, Seen(), closes=True))  # fmt: skip
add(passed("Connection: close among others", "RFC 9112, 9.6",
           head(b"Connection: foo, CLOSE ,bar") + ONE, Seen(), closes=True))  # fmt: skip
add(passed("close and keep-alive", "RFC 9112, 9.3",
           head(b"Connection: keep-alive, close") + ONE, Seen(), closes=True))  # fmt: skip
for refusal, code, first in (
    (401, "invalid_api_key", head(key=KEY + b"x")),
    (404, "route_not_found", head(line=b"GET /nowhere HTTP/1.1")),
    (400, "malformed_path", head(line=b"GET /a/../b HTTP/1.1")),
    (400, "invalid_json", sized(body=b"[1]")),
    (401, "missing_api_key", sized().replace(KEY + b"\r\n", b"")),
):
    add(Case(f"go on after {code}", "RFC 9112, 9.3", first + ONE, (refusal, 200), seen=SEEN_ONE))
    add(Case(f"go on before {code}", "RFC 9112, 9.3", ONE + first, (200, refusal), code,
             seen=SEEN_ONE))  # fmt: skip
OLD = head(line=b"GET /openai/models HTTP/1.0", host=b"")
add(passed("1.0", "RFC 9112, 9.3", OLD + ONE, Seen(), closes=True))
add(passed("1.0 with Host", "RFC 9112, 9.3", head(line=b"GET /openai/models HTTP/1.0"), Seen(),
           closes=True))  # fmt: skip
add(passed("1.0 that keeps", "RFC 9112, 9.3 and appendix C.2.2",
           OLD[:-2] + b"Connection: Keep-Alive\r\n\r\n" + ONE, Seen(), *SEEN_ONE))  # fmt: skip
add(passed("1.0 with a body", "RFC 9112, 6.3", sized().replace(b"HTTP/1.1", b"HTTP/1.0"), chat(),
           closes=True))  # fmt: skip
add(refused("1.0 with two Hosts", "RFC 9112, 3.2",
            head(HOST, line=b"GET /openai/models HTTP/1.0")))  # fmt: skip
