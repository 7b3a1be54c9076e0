"""JSON and compressed bytes of others: read if it can be, never raised at the caller."""

from __future__ import annotations

import gzip
import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.usage.payload import Inflater, read_object, read_objects


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
    Inflater().feed(data)


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
    parts = [inflater.feed(packed[at : at + size]) for at in range(0, len(packed), size)]
    assert b"".join(parts) == data
    assert not inflater.failed


@given(st.lists(st.binary(max_size=100), min_size=2, max_size=4), st.integers(1, 50))
def test_the_members_of_a_gzip_body_are_one_text(texts: list[bytes], size: int) -> None:
    """RFC 1952, 2.2: members follow each other, as servers write that compress piece by piece."""
    packed = b"".join(map(gzip.compress, texts))
    for step in (size, len(packed)):
        inflater = Inflater()
        parts = [inflater.feed(packed[at : at + step]) for at in range(0, len(packed), step)]
        assert b"".join(parts) == b"".join(texts)


def test_bytes_that_are_not_compressed_and_bombs_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    inflater = Inflater()
    assert inflater.feed(b"plain text") == b""
    assert inflater.failed
    assert inflater.feed(gzip.compress(b"x")) == b""
    monkeypatch.setattr("fastgw.usage.payload.MAX_INFLATED", 1000)
    bomb = Inflater()
    assert len(bomb.feed(gzip.compress(b"0" * 10_000_000))) == 1000
    assert bomb.failed
