import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.sse import BOM, EventFramer, last_end, payloads, split_events

EVENTS = [
    b'data: {"a":1}',
    b": comment",
    b"event: x\ndata: one\ndata: two",
    b"data:",
    b"data: \xe4\xbd\xa0\xe5\xa5\xbd",
    b"data: [DONE]",
]


def stream(end: bytes) -> bytes:
    return b"".join(event.replace(b"\n", end) + end * 2 for event in EVENTS)


def expected() -> list[bytes]:
    return [b'{"a":1}', b"one\ntwo", b"", b"\xe4\xbd\xa0\xe5\xa5\xbd", b"[DONE]"]


def read(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    framer = EventFramer()
    found: list[bytes] = []
    passed = b""
    for piece in pieces:
        block = framer.feed(piece)
        passed += block
        if block:
            found += payloads(block)
    passed += framer.rest()
    found += payloads(framer.rest())
    return found, passed


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("bom", [b"", BOM])
def test_split_at_every_byte(end: bytes, bom: bytes) -> None:
    body = bom + stream(end)
    for first in range(len(body) + 1):
        assert read([body[:first], body[first:]]) == (expected(), body), first
    assert read([body[i : i + 1] for i in range(len(body))]) == (expected(), body)
    assert read([b"", body]) == (expected(), body)


def test_an_unfinished_last_event_is_still_read() -> None:
    assert read([b"data: a\n\ndata: b"]) == ([b"a", b"b"], b"data: a\n\ndata: b")


_FIELD = st.sampled_from([b"data: x", b"data:y", b"data", b": c", b"id: 1", b"\xff", b""])
_LINE_END = st.sampled_from([b"\n", b"\r\n", b"\r"])


def independent(body: bytes) -> list[bytes]:
    """The events of a whole body by the letter of the standard, line by line."""
    lines = re.split(rb"\r\n|\n|\r", body)
    events = []
    data: list[bytes] = []
    for line in lines:
        if not line:
            if data:
                events.append(b"\n".join(data))
            data = []
        elif line == b"data" or line.startswith(b"data:"):
            value = line[5:]
            data.append(value[1:] if value.startswith(b" ") else value)
    if data:
        events.append(b"\n".join(data))
    return events


@given(st.lists(st.tuples(_FIELD, _LINE_END), max_size=30), st.data())
def test_mixed_line_ends_in_any_pieces(
    lines: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    body = b"".join(field + end for field, end in lines)
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=8).map(sorted))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    found, passed = read(pieces)
    assert passed == body
    assert found == independent(body)


@given(st.lists(st.tuples(_FIELD, _LINE_END), max_size=12))
def test_splitting_loses_no_byte(lines: list[tuple[bytes, bytes]]) -> None:
    body = b"".join(field + end for field, end in lines)
    assert b"".join(split_events(body)) == body


def test_last_end() -> None:
    assert last_end(b"data: x\n") == 0
    assert last_end(b"a\n\nb") == 3
    assert last_end(b"a\r\n\r\nb") == 5
    assert last_end(b"a\r\rb") == 3


def test_a_large_event_is_not_copied_once_a_read() -> None:
    framer = EventFramer()
    for _ in range(1000):
        assert framer.feed(b"x" * 100) == b""
    assert framer.held == 100_000
    assert len(framer.feed(b"\n\n")) == 100_002
    assert framer.held == 0


@given(
    st.lists(
        st.sampled_from([b"x", b"MARK", b"HIT", b"HIT MARK", b"HITMARK MARK", b"HI"]), max_size=9
    ),
    st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]),
    st.sampled_from([b"MARK", b""]),
    st.booleans(),
)
def test_events_that_match_are_found_from_either_end(
    texts: list[bytes], end: bytes, mark: bytes, whole: bool
) -> None:
    events = [b"data: " + text + end for text in texts]
    if events and not whole:
        events[-1] = events[-1].removesuffix(end)
    expected = []
    at = 0
    for event in events:
        if b"HIT" in event and mark in event:
            expected.append((at, at + len(event)))
        at += len(event)
    assert EventFramer().matches(b"".join(events), re.compile(b"HIT"), mark) == expected
