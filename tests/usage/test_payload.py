"""JSON and compressed bytes of others: read if it can be, never raised at the caller."""

from __future__ import annotations

import gzip
import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.usage.payload import (
    MAX_AT_ONCE,
    MAX_INFLATED,
    SLICE,
    Inflater,
    read_object,
    read_objects,
)


def opened(inflater: Inflater, data: bytes) -> bytes:
    return b"".join(inflater.feed(data))


def test_what_orjson_refuses_and_providers_send() -> None:
    assert read_object(b'{"a":"\\ud83d"}') == {"a": "\ud83d"}
    assert read_object(b'\xef\xbb\xbf{"a":1}') == {"a": 1}
    assert read_object(b'\n\n  {"a":1} \n') == {"a": 1}
    found = read_object(b'{"a":NaN}')
    assert found is not None
    assert math.isnan(found["a"])


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"1", b"null", b"[DONE]", b'{"a":1', b"{}{}", b"\xff"]
)
def test_no_object(data: bytes) -> None:
    assert read_object(data) is None


@given(st.binary(max_size=60))
def test_no_bytes_raise(data: bytes) -> None:
    read_object(data)
    list(read_objects([data, b'{"a":1}']))
    b"".join(Inflater().feed(data))


def test_depth_does_not_raise() -> None:
    assert read_object(b'{"a":' + b"[" * 200_000) is None


PIECE = st.sampled_from(
    [b'{"a":1}', b' {"b":2} ', b"[DONE]", b"", b"{},{}", b'{"c":', b'{"d":NaN}', b"[1]", b'"x"',
     b'{"e":1}]', b"{},[", b'1},{"a":2', b'{"a":1},{"f":3', b'"g":4}'],
)  # fmt: skip


@given(st.lists(PIECE, max_size=6))
def test_many_are_read_as_each_would_be(pieces: list[bytes]) -> None:
    alone = [found for piece in pieces if (found := read_object(piece)) is not None]
    assert repr(list(read_objects(pieces))) == repr(alone)


@given(st.binary(max_size=500), st.integers(1, 50), st.booleans())
def test_cuts_do_not_matter(data: bytes, size: int, zipped: bool) -> None:
    packed = gzip.compress(data) if zipped else zlib.compress(data)
    inflater = Inflater()
    parts = [opened(inflater, packed[at : at + size]) for at in range(0, len(packed), size)]
    assert b"".join(parts) == data
    assert not inflater.failed


@given(st.lists(st.binary(max_size=100), min_size=2, max_size=4), st.integers(1, 50))
def test_the_members_of_a_gzip_body_are_one_text(texts: list[bytes], size: int) -> None:
    """RFC 1952, 2.2: members follow each other, as servers write that compress piece by piece."""
    packed = b"".join(map(gzip.compress, texts))
    for step in (size, len(packed)):
        inflater = Inflater()
        parts = [opened(inflater, packed[at : at + step]) for at in range(0, len(packed), step)]
        assert b"".join(parts) == b"".join(texts)


def test_slices_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what zlib has taken in it may still hold a part when a slice is full."""
    for size in (1, 2, 7, 300):
        monkeypatch.setattr("fastgw.usage.payload.SLICE", size)
        for data in (b"x" * 5000, b"abc" * 900, bytes(range(256)) * 5):
            inflater = Inflater()
            found = list(inflater.feed(gzip.compress(data)))
            assert b"".join(found) == data
            assert max(map(len, found)) <= size
            assert not inflater.failed


def test_bytes_that_are_not_compressed_end_it() -> None:
    inflater = Inflater()
    assert opened(inflater, b"plain text") == b""
    assert inflater.failed
    assert opened(inflater, gzip.compress(b"x")) == b""


@pytest.mark.parametrize("bound", ["MAX_INFLATED", "MAX_AT_ONCE"])
def test_bombs_end_it(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(f"fastgw.usage.payload.{bound}", 1000)
    bomb = Inflater()
    assert len(opened(bomb, gzip.compress(b"0" * 10_000_000))) == 1000
    assert bomb.failed


def test_a_read_may_come_to_much_and_all_of_them_to_more() -> None:
    packed = gzip.compress(b"0" * MAX_INFLATED)
    inflater = Inflater()
    size = sum(len(opened(inflater, packed[at : at + 4096])) for at in range(0, len(packed), 4096))
    assert size == MAX_INFLATED
    at_once = Inflater()
    pieces = list(at_once.feed(packed))
    assert sum(map(len, pieces)) == MAX_AT_ONCE
    assert max(map(len, pieces)) == SLICE
    assert at_once.failed
