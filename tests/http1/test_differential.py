"""h11 as the independent judge: what it rejects we do not accept; what both accept is the same.

The rule is one-sided: fastgw may refuse more (bare LF, folding, lists of equal lengths, control
bytes, versions, odd targets: docs/http.md), never less. The few places where
h11 refuses more, and why we accept:

| h11 refuses                              | we accept because                                  |
| ---------------------------------------- | -------------------------------------------------- |
| blanks before ";" of a chunk extension   | RFC 9112, 7.1.1 calls for it (BWS); it is dropped  |
| trailers whose meaning is wrong          | ours are never merged into the head: grammar alone |
|   (a second or odd Content-Length, ...)  |   counts, then they are dropped                    |
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar

import h11
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgw.errors import Refusal
from fastgw.http1.body import BadChunk, ChunkedDecoder
from fastgw.http1.request import read_request_head
from fastgw.http1.response import CHUNKED, UNTIL_CLOSE, BadResponse, read_response_head

T = TypeVar("T")
LAX_EXTENSION = re.compile(rb"[0-9A-Fa-f][ \t]+;")
"""The first row of the table."""

odd = st.binary(max_size=4) | st.sampled_from(
    [b"\r", b"\n", b"\0", b"\x0b", b"\x7f", b"\xff", b" ", b"\t", b"\r\n ", b":", b",", b"\x01"]
)


def often(usual: st.SearchStrategy[T], other: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """The usual three times of four."""
    return st.one_of(usual, usual, usual, other)


ends = often(st.just(b"\r\n"), st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r\n"]))
spaces = often(st.just(b" "), st.sampled_from([b"", b"  ", b"\t", b"\x0b", b" \t"]))
methods = often(
    st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"]),
    st.sampled_from([b"get", b"CONNECT", b"TRACE", b"PRI", b"M-SEARCH", b"G(T", b"", b"PO ST"]),
)
targets = often(
    st.sampled_from([b"/", b"/x?y=1", b"/a/b%20c", b"http://a/x", b"http://A"]),
    st.sampled_from([b"*", b"a:1", b"/#", b"/\x7f", b"/\xff", b"x", b"", b"http://b/", b'/"<>|'])
    | st.binary(max_size=5),
)
versions = often(
    st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0"]),
    st.sampled_from([b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1", b"HTTP/01.1", b"HTTP/0.9"]),
)
lengths = st.sampled_from(
    [b"0", b"3", b"5", b"+3", b"-1", b"0x3", b"3, 3", b"3,4", b"", b"3 ", b"1_0", b"\xb2"]
) | (st.sampled_from([b"003", b"9" * 18, b"9" * 19, b"9" * 21]))
codings = st.sampled_from(
    [b"chunked", b"chunked", b"Chunked", b"gzip, chunked", b"chunked, chunked", b"identity", b""]
) | st.sampled_from(
    [b"xchunked", b"chunked;q=1", b"\x0bchunked", b"chunked,", b",chunked", b'"chunked"']
)
names = often(
    st.sampled_from([b"X-A", b"Accept", b"X_B", b"Connection", b"content-type", b"Upgrade"]),
    st.sampled_from(
        [b"", b"X A", b"X ", b" X", b"X\0", b"X\xff", b"X(", b"Content-Length ", b"\t"]
    ),
)
values = often(
    st.sampled_from([b"", b"v", b"a b", b"close", b"\xe9", b"a,b", b"\ta "]),
    st.tuples(st.just(b"v"), odd, st.just(b"w")).map(b"".join),
)
fields = st.one_of(
    st.tuples(names, st.just(b":"), spaces, values).map(b"".join),
    lengths.map(lambda value: b"Content-Length: " + value),
    codings.map(lambda value: b"Transfer-Encoding: " + value),
    st.sampled_from([b"no colon", b" folded", b"\tfolded", b"Host: b", b"Expect: 100-continue"]),
)
hosts = often(
    st.just([b"Host: a"]),
    st.sampled_from([[], [b"Host: a", b"Host: a"], [b"Host:"], [b"Host: a b"], [b"host : a"]]),
)


@st.composite
def heads(draw: st.DrawFn, line: st.SearchStrategy[bytes], host: bool) -> bytes:
    """A head as far as the reader gets it: ended by the first blank line."""
    lines = [draw(line), *(draw(hosts) if host else []), *draw(st.lists(fields, max_size=4))]
    raw = b"".join(each + draw(ends) for each in lines) + b"\r\n"
    end = raw.find(b"\r\n\r\n")
    return raw[: end + 4] if end >= 0 else raw.rstrip(b"\r\n") + b"\r\n\r\n"


request_lines = st.tuples(methods, spaces, targets, spaces, versions).map(b"".join)
reasons = often(st.sampled_from([b" OK", b" ", b""]), odd)
codes = often(
    st.sampled_from([b"200", b"204", b"304", b"404", b"500"]),
    st.sampled_from([b"20", b"2000", b"099", b"600", b"2x0", b"\xb200", b"+20", b"101", b"100"]),
)
status_lines = st.tuples(versions, spaces, codes, reasons).map(b"".join)
sizes = often(
    st.sampled_from([b"3", b"03", b"3;x=1", b"3;", b"a", b"A"]),
    st.sampled_from([b"+3", b"0x3", b"", b" 3", b"3 ", b"3 ;x", b"-3", b"3\t", b"f" * 16, b"3;\0"]),
)
chunks = st.tuples(sizes, ends, st.sampled_from([b"abc", b"0123456789", b"ab"]), ends).map(b"".join)
lasts = often(
    st.just(b"0\r\n\r\n"),
    st.sampled_from(
        [b"", b"0\n\n", b"00\r\n\r\n", b"0\r\nX: 1\r\n\r\n", b"0\r\nX : 1\r\n\r\n", b"0\r\n\r"]
    )
    | st.sampled_from(
        [b"0\r\nX\r\n\r\n", b"0\r\n x: 1\r\n\r\n", b"0;e\r\n\r\n", b"0\r\nX: \0\r\n\r\n"]
    )
    | st.sampled_from([b"0\r\nContent-Length: +1\r\n\r\n", b"0 \r\n\r\n"]),
)
bodies = st.tuples(st.lists(chunks, max_size=3).map(b"".join), lasts, odd).map(b"".join)


class Verdict(NamedTuple):
    """What the judge read; `ended` with `rest` where the message is complete."""

    event: h11.Request | h11.Response
    body: bytes
    ended: bool
    error: str
    rest: bytes


def judge(data: bytes, method: bytes = b"") -> Verdict | None:
    """h11's reading of a request, or of an answer to `method`; None where it rejects the head."""
    if method:
        connection = h11.Connection(h11.CLIENT)
        asked = [("host", "a")]
        connection.send(h11.Request(method=method, target="/", headers=asked))
        connection.send(h11.EndOfMessage())
    else:
        connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    head: h11.Request | h11.Response | None = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request | h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return Verdict(head, body, True, "", connection.trailing_data[0])
            else:
                return None if head is None else Verdict(head, body, False, "", b"")
    except h11.RemoteProtocolError as error:
        return None if head is None else Verdict(head, body, False, str(error), b"")


def known(body: bytes, verdict: Verdict) -> bool:
    """Whether the body falls under the first two rows of the table."""
    trailers = b"0\r\n" in body and "Content-Length" in verdict.error
    return LAX_EXTENSION.search(body) is not None or trailers


def decoded(body: bytes, cut: int) -> tuple[bytes, ChunkedDecoder] | None:
    """Our reading of a chunked body in two pieces; None where we reject it."""
    decoder = ChunkedDecoder()
    try:
        payload = decoder.feed(body[:cut])
        if decoder.ended:
            decoder.rest += body[cut:]
        elif body[cut:]:
            payload += decoder.feed(body[cut:])
    except BadChunk:
        return None
    return payload, decoder


def assert_same_body(body: bytes, cut: int, verdict: Verdict) -> None:
    """A chunked body means the same to both, or we refuse it."""
    ours = decoded(body, cut)
    if ours is None or known(body, verdict):
        return
    payload, decoder = ours
    assert not verdict.error, (body, verdict.error)
    assert decoder.ended is verdict.ended
    assert payload == verdict.body
    if decoder.ended:
        assert decoder.rest == verdict.rest


@settings(max_examples=1000, deadline=None)
@given(heads(request_lines, host=True), bodies, st.integers(0, 40))
def test_requests(raw: bytes, body: bytes, cut: int) -> None:
    try:
        head, length = read_request_head(raw, 100)
    except Refusal:
        return
    verdict = judge(raw + body)
    assert verdict is not None, raw
    request = verdict.event
    assert isinstance(request, h11.Request)
    assert head.method == request.method
    assert request.http_version == b"1.%d" % head.minor
    ours = head.path + (b"?" + head.query if head.query is not None else b"")
    theirs = re.sub(rb"(?i)^https?://[^/?]*(?=([/?]?))", b"", request.target)
    assert ours == (theirs if theirs.startswith((b"/", b"*")) else b"/" + theirs)
    assert [(lower, value) for lower, _, value in head.fields] == [
        (bytes(name), value if name != b"transfer-encoding" else as_sent(head.fields, name))
        for name, value in request.headers
    ]
    if head.chunked:
        assert (b"transfer-encoding", b"chunked") in list(request.headers)
        assert_same_body(body, cut, verdict)
    else:
        assert verdict.body == body[:length]
        assert verdict.ended is (len(body) >= length)


def as_sent(fields: list[tuple[bytes, bytes, bytes]], name: bytes) -> bytes:
    """The value as sent: the judge writes codings in lower case."""
    return next(value for lower, _, value in fields if lower == name)


@settings(max_examples=1000, deadline=None)
@given(bodies, st.integers(0, 40))
def test_chunked_bodies(body: bytes, cut: int) -> None:
    verdict = judge(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    assert verdict is not None
    assert_same_body(body, cut, verdict)


@settings(max_examples=1000, deadline=None)
@given(
    heads(status_lines, host=False), bodies, st.integers(0, 40), st.sampled_from([b"GET", b"HEAD"])
)
def test_responses(raw: bytes, body: bytes, cut: int, method: bytes) -> None:
    try:
        head = read_response_head(raw, method)
    except BadResponse:
        return
    if head.status < 200:
        return  # which ones are allowed is the connection's to say
    verdict = judge(raw + body, method)
    assert verdict is not None, raw
    response = verdict.event
    assert response.http_version in (b"1.0", b"1.1")
    assert isinstance(response, h11.Response)
    assert head.status == response.status_code
    theirs = [
        name + b": " + value
        for name, value in response.headers
        if name not in (b"content-length", b"transfer-encoding", b"connection", b"upgrade")
    ]
    named = {
        each.strip(b" \t").lower()
        for name, value in response.headers
        if name == b"connection"
        for each in value.split(b",")
    }
    kept = [each for each in theirs if each.partition(b":")[0] not in named]
    ours = [each.partition(b":") for each in head.fields.split(b"\r\n") if each]
    assert [name.lower() + b": " + value.strip(b" \t") for name, _, value in ours] == kept
    if head.length == CHUNKED:
        assert_same_body(body, cut, verdict)
    elif head.length == UNTIL_CLOSE:
        assert (verdict.body, verdict.ended) == (body, False)
    else:
        assert verdict.body == body[: head.length]
        assert verdict.ended is (len(body) >= head.length)
