"""Sound messages for the fuzzer, and how it changes and cuts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

KEY = b"Host: gateway\r\nAuthorization: Bearer sk-alice-abc123def456\r\n"
CHAT = b'{"model":"m","messages":[]}'
STREAM = b'{"model":"m","messages":[],"stream":true}'


def _sized(path: bytes, body: bytes, more: bytes = b"") -> bytes:
    line = b"POST /openai/%b HTTP/1.1\r\n" % path
    return line + KEY + b"Content-Length: %d\r\n%b\r\n%b" % (len(body), more, body)


def _chunked(path: bytes, body: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    line = b"POST /openai/%b HTTP/1.1\r\n" % path
    size = b"%x\r\n%b\r\n" % (len(body), body)
    return line + KEY + b"Transfer-Encoding: chunked\r\n\r\n" + size + end


REQUESTS: list[bytes] = [
    b"GET /openai/models HTTP/1.1\r\n" + KEY + b"\r\n",
    b"GET /openai/models?a=b HTTP/1.0\r\n" + KEY + b"Connection: keep-alive\r\n\r\n",
    b"HEAD /openai/models HTTP/1.1\r\n" + KEY + b"Accept: */*\r\n\r\n",
    b"GET http://gateway/openai/models HTTP/1.1\r\n" + KEY + b"\r\n",
    b"GET /openai/models HTTP/1.1\r\n" + KEY + b"Connection: close, X-A\r\nX-A: b\r\n\r\n",
    _sized(b"chat/completions", CHAT),
    _sized(b"chat/completions", STREAM),
    _sized(b"files", b"GET /openai/hidden HTTP/1.1\r\n\r\n"),
    _sized(b"files", b"abc", b"Expect: 100-continue\r\n"),
    _chunked(b"chat/completions", CHAT),
    _chunked(b"files", b"0\r\n\r\nGET /openai/hidden HTTP/1.1\r\n" + KEY + b"\r\n"),
    _chunked(b"files", b"abc", b"3;x=y\r\ndef\r\n0\r\nX: y\r\n\r\n"),
]
_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
_EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ANSWERS: list[bytes] = [
    _JSON + b'Content-Length: 9\r\n\r\n{"a":"b"}',
    _JSON + b'Transfer-Encoding: chunked\r\n\r\n9\r\n{"a":"b"}\r\n0\r\n\r\n',
    _JSON + b'Connection: close\r\n\r\n{"a":"b"}',
    b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"a":"b"}',
    b"HTTP/1.1 100 Continue\r\n\r\n" + _JSON + b"Content-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nKeep-Alive: timeout=5\r\n\r\nno!",
    _EVENTS + b"Transfer-Encoding: chunked\r\n\r\n2f\r\n" + _EVENT + b"\r\n0\r\n\r\n",
    _EVENTS + b"Connection: close\r\n\r\n" + _EVENT + b"data: [DONE]\n\n",
]
TOKENS: list[bytes] = [
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"\r\n\r\n", b"\xff", b"\x0b"),
    *(b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n"),
    *(
        b"Transfer-Encoding: identity\r\n",
        b"Content-Length : 5\r\n",
        b"Host: evil\r\n",
        b"0\r\n\r\n",
    ),
    *(b"+", b"-", b"0x", b"3\r\nabc\r\n", b"ffffffff", b"99999999999999999999", b"HTTP/1.0", b"#"),
    *(b"HTTP/1.1", b"HEAD ", b"CONNECT ", b"chunked", b"Expect: 100-continue\r\n", b" folded\r\n"),
    *(b"Connection: close\r\n", b"Upgrade: h2c\r\n", b"HTTP/1.1 103 Early\r\n\r\n", b"101", b"204"),
    *(b"Content-Encoding: gzip\r\n", b"..", b"%2f", b"\\", b"*", b"{", b'"', b"data: [DONE]\n\n"),
]


def mutate(source: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with none to four changes."""
    for _ in range(source.choice((0, 1, 1, 1, 2, 2, 3, 4))):
        at = source.randint(0, len(data))
        # Line ends and the digits near them decide most: aim there half of the time.
        near = data.find(b"\r\n", at)
        if near >= 0 and source.random() < 0.5:
            at = near + source.choice((-2, -1, 0, 1, 2, 2, 2))
        to = min(len(data), at + source.randint(1, source.choice((1, 4, 40))))
        kind = source.randrange(7)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes((data[at] ^ 1 << source.randrange(8),)) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[to:]
        elif kind == 2:
            data = data[:to] + data[at:]
        elif kind == 3:
            other = source.choice(others)
            start = source.randint(0, len(other))
            data = data[:at] + other[start : start + source.randint(1, 60)] + data[to:]
        elif kind == 4:
            data = data[:at] + source.choice(TOKENS) + data[to:]
        elif kind == 5:
            data = (
                data[:at] if source.random() < 0.3 else data[:at] + source.randbytes(1) + data[at:]
            )
        else:
            data = data[:at] + source.choice(TOKENS) + data[at:]
    return data


def pieces(source: random.Random, data: bytes) -> tuple[bytes, ...]:
    """`data` cut as a network may cut it: seldom, often, or at every byte."""
    number = source.choice((0, 0, 1, 2, 5, len(data)))
    cuts = sorted({source.randint(0, len(data)) for _ in range(number)})
    return tuple(
        part
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)
        if (part := data[start:end])
    )
