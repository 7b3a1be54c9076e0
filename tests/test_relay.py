"""One answer on its way; h11 reads it as a client would and says where it ends."""

from __future__ import annotations

import gzip
import json
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.errors import upstream_failure
from fastgw.http1.body import chunk
from fastgw.http1.request import RequestHead, read_request_head
from fastgw.http1.response import ResponseHead, read_response_head
from fastgw.plan import Plan
from fastgw.relay import MAX_EDITED, EditedRelay, Relay, make_meter, only_models, whole_answer
from fastgw.usage.answer import EventMeter, JsonMeter
from fastgw.usage.bedrock import BEDROCK
from fastgw.usage.dialects import DIALECTS
from fastgw.usage.framing import MessageFramer, message
from fastgw.usage.meter import NO_METER, InflatingMeter, OpaqueMeter
from fastgw.usage.openai import OPENAI

EXTRA = b"x-request-id: r1\r\n"
SSE = b"Content-Type: text/event-stream; charset=utf-8"
JSON = b"Content-Type: application/json"
UNSIZED = b"Transfer-Encoding: chunked"


def asked(method: bytes = b"GET", minor: int = 1) -> RequestHead:
    return read_request_head(b"%b / HTTP/1.%d\r\nHost: a\r\n\r\n" % (method, minor), 10)[0]


def answered(*fields: bytes, status: int = 200, method: bytes = b"GET") -> ResponseHead:
    raw = b"\r\n".join([b"HTTP/1.1 %d x" % status, b"X-Own: 1", *fields, b"", b""])
    return read_response_head(raw, method)


def sized(length: int) -> bytes:
    return b"Content-Length: %d" % length


class Read(NamedTuple):
    """What a client reads; `end` is "" where it cannot take the answer for a whole one."""

    fields: dict[bytes, bytes]
    body: bytes
    end: str


def read(data: bytes, method: bytes = b"GET", minor: int = 1) -> Read:
    """The answer in `data`, which a reset or the end of the connection follows."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "a")], http_version="1.1"))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    fields: dict[bytes, bytes] = {}
    body, closed = b"", False
    while True:
        try:
            event = client.next_event()
        except h11.RemoteProtocolError:
            return Read(fields, body, "")
        if isinstance(event, h11.Response):
            names = [name for name, _ in event.headers]
            fields = dict(event.headers)
            assert len(fields) == len(names), "a field twice"
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert client.trailing_data[0] == b"", "bytes after the answer"
            return Read(fields, body, "closes" if closed or minor == 0 else "stays")
        else:
            assert event is h11.NEED_DATA
            assert not closed
            client.receive_data(b"")
            closed = True


def relay(
    pieces: list[bytes],
    head: ResponseHead,
    request: RequestHead,
    *,
    ended: bool = True,
    **options: bool,
) -> tuple[bytes, Relay]:
    """What the client is sent for a body that comes in these pieces."""
    written: list[bytes] = []
    one = Relay(written.append, request, head, **{"strips": False, "closing": False} | options)
    first, *more = pieces
    one.begin(request, head, EXTRA, first, ended and not more)
    for number, piece in enumerate(more, 1):
        framed = chunk(piece) if piece and number % 2 else None
        one.body(piece, framed, ended and number == len(more))
    return b"".join(written), one


PIECES = st.lists(st.sampled_from([b"", b"a", b"data: x\n\n", b"0\r\n\r\n", b"z" * 20]), min_size=1)


@given(PIECES, st.booleans(), st.booleans(), st.booleans())
def test_every_body_arrives_as_it_is_and_ends_where_it_ends(
    pieces: list[bytes], known: bool, closing: bool, events: bool
) -> None:
    body = b"".join(pieces)
    fields = [SSE if events else JSON, sized(len(body)) if known else UNSIZED]
    data, one = relay(pieces, answered(*fields), asked(), closing=closing)
    found = read(data)
    assert (found.body, one.sent) == (body, len(body))
    assert found.end == "stays"  # known by its framing, not by the close
    assert found.fields.get(b"connection") == (b"close" if closing else None)
    assert one.closes is closing
    assert (b"content-length" in found.fields) is known
    assert found.fields[b"x-request-id"] == b"r1"
    assert found.fields[b"x-own"] == b"1"
    assert (b"x-accel-buffering" in found.fields) is events


@given(PIECES, st.booleans())
def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(
    pieces: list[bytes], known: bool
) -> None:
    size = sum(map(len, pieces)) + 1
    head = answered(SSE, sized(size) if known else UNSIZED)
    data, one = relay(pieces, head, asked(), ended=False)
    assert read(data).end == ""
    written: list[bytes] = []
    one.write = written.append
    one.error_event(upstream_failure("cut"), "openai", b"req_1")
    found = read(data + b"".join(written))
    assert found.end == ""
    if known:
        assert written == []  # would count as the rest of the body
    else:
        event = found.body.removeprefix(b"".join(pieces))
        assert event.startswith(b"data: ")
        assert event.endswith(b"\n\n")
        assert json.loads(event[6:])["error"]["code"] == "upstream_unavailable"


@given(PIECES, st.booleans())
def test_http_1_0_gets_a_length_or_the_end_of_the_connection(
    pieces: list[bytes], known: bool
) -> None:
    """RFC 9112, 6.1: no transfer coding to a client of 1.0."""
    body = b"".join(pieces)
    head = answered(JSON, sized(len(body)) if known else UNSIZED)
    data, one = relay(pieces, head, asked(minor=0))
    found = read(data, minor=0)
    assert found.body == body
    assert b"transfer-encoding" not in found.fields
    assert one.closes is not known
    assert found.fields[b"connection"] == (b"keep-alive" if known else b"close")


@pytest.mark.parametrize("status", [200, 204, 304])
@pytest.mark.parametrize("field", [sized(10), UNSIZED, b"X: y"])
def test_answers_without_a_body_end_with_their_head(status: int, field: bytes) -> None:
    """RFC 9112, 6.3; no length in a 204 (RFC 9110, 8.6)."""
    method = b"HEAD" if status == 200 else b"GET"
    head = answered(field, status=status, method=method)
    for data, closes in (
        relay([b""], head, asked(method)),
        (whole_answer(asked(method), head, EXTRA, b"", False), None),
    ):
        found = read(data, method)
        assert data.endswith(b"\r\n\r\n")
        assert (found.body, found.end) == (b"", "stays")
        assert b"transfer-encoding" not in found.fields
        if status == 204:
            assert b"content-length" not in found.fields
        assert closes is None or not closes.closes


def test_a_stream_that_may_get_shorter_keeps_no_length() -> None:
    data, _ = relay([b"data: 1\n\n"], answered(SSE, sized(99)), asked(), strips=True)
    assert read(data)[1:] == (b"data: 1\n\n", "stays")
    data, one = relay([b"{}"], answered(JSON, sized(2)), asked(), strips=True)
    assert read(data).fields[b"content-length"] == b"2"  # asked for a stream, got none
    assert not one.strips


def test_a_chunk_leaves_in_one_write_as_it_came() -> None:
    """One write for head and first bytes, one for each chunk, one for the last and the end."""
    written: list[bytes] = []
    head, request = answered(SSE, UNSIZED), asked()
    one = Relay(written.append, request, head, strips=False, closing=False)
    one.begin(request, head, EXTRA, b"data: 1\n\n", False)
    framed = chunk(b"data: 2\n\n")
    one.body(b"data: 2\n\n", framed, False)
    one.body(b"data: 3\n\n", None, True)
    assert len(written) == 3
    assert written[1] is framed
    assert read(b"".join(written)).body == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"


@given(st.binary(max_size=50), st.booleans(), st.integers(0, 1))
def test_an_answer_that_is_here_in_full(body: bytes, closes: bool, minor: int) -> None:
    data = whole_answer(asked(minor=minor), answered(JSON, UNSIZED), EXTRA, body, closes)
    found = read(data)
    assert (found.body, found.end) == (body, "stays")
    assert found.fields[b"content-length"] == b"%d" % len(body)
    kept = None if minor else b"keep-alive"
    assert found.fields.get(b"connection") == (b"close" if closes else kept)


def plan(**more: bool) -> Plan:
    one = Plan()
    one.api = OPENAI
    one.reads = one.counts = True
    for name, value in more.items():
        setattr(one, name, value)
    return one


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (answered(JSON), JsonMeter),
        (answered(SSE), EventMeter),
        (answered(SSE, b"Content-Encoding: gzip"), InflatingMeter),
        (answered(JSON, b"Content-Encoding: deflate"), InflatingMeter),
        (answered(JSON, b"Content-Encoding: br"), OpaqueMeter),
        (answered(JSON, b"Content-Encoding: identity"), JsonMeter),
        (answered(JSON, status=429), type(NO_METER)),  # an error of the provider costs nothing
        (answered(SSE, status=500), type(NO_METER)),
    ],
)
def test_who_looks_on(head: ResponseHead, kind: type[Any]) -> None:
    assert type(make_meter(plan(), head, False)) is kind
    assert make_meter(plan(reads=False), head, False) is NO_METER


@pytest.mark.parametrize(
    ("media", "body"),
    [
        (b"application/x-ndjson", b'{"done":true,"prompt_eval_count":3,"eval_count":4}\n'),
        (
            b"application/vnd.amazon.eventstream",
            message("metadata", b'{"usage":{"inputTokens":3,"outputTokens":4}}'),
        ),
        (
            b"application/json",
            b'[{"usageMetadata":{"promptTokenCount":3}},'
            b'{"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":4}}]',
        ),
    ],
)
def test_streams_of_other_framings(media: bytes, body: bytes) -> None:
    one = plan()
    one.api = DIALECTS["auto"].any
    one.streams = True
    meter = make_meter(one, answered(b"Content-Type: " + media), True)
    assert b"".join(meter.feed(bytes((byte,))) for byte in body) == body
    assert meter.finish(True, lambda: 7).usage[:2] == (3, 4)


@pytest.mark.parametrize(
    ("media", "dialect", "event"),
    [
        (b"text/event-stream", "openai", b'data: {"error":{'),
        (b"text/event-stream", "anthropic", b'event: error\ndata: {"type":"error","error":{'),
        (b"text/event-stream", "gemini", b'data: {"error":{"code":502,'),
        (b"application/x-ndjson", "ollama", b'{"error":"the provider ended the stream early"}\n'),
        (b"application/vnd.amazon.eventstream", "bedrock", b"\x00\x00\x00"),
    ],
)
def test_the_event_that_says_why_a_stream_ends(media: bytes, dialect: str, event: bytes) -> None:
    head = answered(b"Content-Type: " + media, UNSIZED)
    written: list[bytes] = []
    one = Relay(written.append, asked(), head, strips=False, closing=False)
    assert one.streams
    one.error_event(upstream_failure("cut"), dialect, b"req_1")
    (data,) = written
    size, _, rest = data.partition(b"\r\n")
    data = rest[: int(size, 16)]
    assert data.startswith(event)
    assert b"ended the stream early" in data
    if dialect == "bedrock":
        (line,) = MessageFramer().feed(data).splitlines()
        assert BEDROCK.failed(json.loads(line))


def test_what_is_not_to_be_counted_is_not() -> None:
    opaque = answered(JSON, b"Content-Encoding: br")
    assert make_meter(plan(counts=False), opaque, False) is NO_METER
    meter = make_meter(plan(counts=False), answered(JSON), False)
    meter.feed(b'{"choices":[{"text":"abcd"}]}')
    assert meter.finish(True, lambda: 7).usage.source == "none"


MODELS = b'{"object":"list","data":[{"id":"a"},{"id":"b","x":1},{"id":"c"}],"more":false}'


def test_a_list_of_models_without_those_that_may_not_be_used() -> None:
    assert json.loads(only_models(lambda name: name != "b", MODELS) or b"") == {
        "object": "list",
        "data": [{"id": "a"}, {"id": "c"}],
        "more": False,
    }


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (
            b'{"data":[{"id":"a"},{"id":"b"}],"has_more":false,"first_id":"a","last_id":"b"}',
            {"data": [{"id": "a"}], "has_more": False, "first_id": "a", "last_id": "a"},
        ),
        (
            b'{"data":[{"id":"b"}],"first_id":"b","last_id":"b"}',
            {"data": [], "first_id": None, "last_id": None},
        ),
        (
            b'{"models":[{"name":"models/a"},{"name":"models/b"}],"nextPageToken":"t"}',
            {"models": [{"name": "models/a"}], "nextPageToken": "t"},
        ),
        (
            b'{"models":[{"name":"a","model":"a"},{"name":"b","model":"b"}]}',
            {"models": [{"name": "a", "model": "a"}]},
        ),
    ],
)  # fmt: skip
def test_lists_of_models_of_other_dialects(body: bytes, left: Any) -> None:
    assert json.loads(only_models(lambda name: name != "b", body) or b"") == left


def test_models_are_taken_out_of_each_list_that_an_answer_has() -> None:
    """llama.cpp lists them twice."""
    body = (
        b'{"models":[{"name":"a"},{"name":"b"},{"id":"a","name":"b"}],"data":[{"id":"b"},{"x":1}]}'
    )
    found = only_models(lambda name: name != "b", body)
    assert found is not None
    assert json.loads(found) == {
        "models": [{"name": "a"}, {"id": "a", "name": "b"}],
        "data": [{"x": 1}],
    }


@pytest.mark.parametrize("body", [b'{"data":null}', b'{"error":{}}'])
def test_what_is_no_list_of_models_stays_as_it_is(body: bytes) -> None:
    assert only_models(lambda name: False, body) == body


@pytest.mark.parametrize(
    "body", [b"not json", b'[{"id":"b"}]', MODELS[:-1], gzip.compress(MODELS, mtime=0)]
)
def test_what_cannot_be_read_is_no_list_without_something(body: bytes) -> None:
    assert only_models(lambda name: False, body) is None


@given(st.lists(st.integers(0, len(MODELS)), max_size=4), st.booleans(), st.integers(0, 1))
def test_an_edited_answer_has_the_length_of_what_it_became(
    cuts: list[int], known: bool, minor: int
) -> None:
    written: list[bytes] = []
    head = answered(JSON, sized(len(MODELS)) if known else UNSIZED)
    request = asked(minor=minor)
    one = EditedRelay(
        written.append, request, head, lambda body: body.replace(b"b", b"beta"), closing=False
    )
    edges = sorted({0, *cuts, len(MODELS)})
    pieces = [MODELS[a:b] for a, b in pairwise(edges)]
    one.begin(request, head, EXTRA, pieces[0], len(pieces) == 1)
    for number, piece in enumerate(pieces[1:], 2):
        assert not one.begun  # a failure may still be answered as one
        assert written == []
        one.body(piece, None, number == len(pieces))
    found = read(b"".join(written))
    expected = MODELS.replace(b"b", b"beta")
    assert (found.body, found.end, one.sent) == (expected, "stays", len(expected))
    assert one.begun
    # the close must be announced where the exchange closes
    assert (found.fields.get(b"connection") == b"close") is one.closes


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (answered(JSON, UNSIZED), MODELS + b" " * MAX_EDITED),
        (answered(JSON, UNSIZED, b"Content-Encoding: gzip"), gzip.compress(MODELS, mtime=0)),
        (answered(JSON, UNSIZED, b"Content-Encoding: br"), MODELS),
        (answered(JSON, UNSIZED), b"\x8b" + MODELS),
    ],
    ids=["too long", "gzip", "another coding", "no JSON"],
)
@pytest.mark.parametrize("size", [65536, 8 * 1024 * 1024])
def test_of_an_answer_that_cannot_be_edited_nothing_is_shown(
    head: ResponseHead, body: bytes, size: int
) -> None:
    written: list[bytes] = []
    edit = partial(only_models, lambda name: name != "b")
    one = EditedRelay(written.append, asked(), head, edit, closing=False)
    one.begin(asked(), head, EXTRA, body[:size], len(body) <= size)
    for at in range(size, len(body), size):
        one.body(body[at : at + size], None, at + size >= len(body))
        assert one._size <= at + size
        assert sum(map(len, one._pieces)) <= MAX_EDITED
    assert (written, one.begun, one.sent) == ([], False, 0)


def test_a_list_of_the_greatest_length_is_edited() -> None:
    written: list[bytes] = []
    head, request = answered(JSON, UNSIZED), asked()
    one = EditedRelay(written.append, request, head, lambda body: body[:9], closing=False)
    one.begin(request, head, EXTRA, b"a" * MAX_EDITED, False)
    one.body(b"", None, True)
    assert read(b"".join(written)).body == b"a" * 9
    assert one.begun
