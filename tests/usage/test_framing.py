"""Streams that are no server-sent events, at any cut and when they are broken."""

from __future__ import annotations

import json
import struct
import zlib
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.usage.framing import (
    ArrayFramer,
    Framer,
    LineFramer,
    MessageFramer,
    exception,
    message,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text('a"\\{}[],\né', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('a"\\{', max_size=3), inner)
    ),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(st.text("ab", max_size=3), JSON), max_size=4)
CUTS = st.lists(st.integers(0, 400), max_size=8).map(sorted)


def read(framer: Framer, body: bytes, cuts: list[int]) -> list[Any]:
    """The events of a body that comes in pieces."""
    edges = [0, *(min(cut, len(body)) for cut in cuts), len(body)]
    found = []
    for start, end in pairwise(edges):
        found += [orjson.loads(each) for each in framer.payloads(framer.feed(body[start:end]))]
    return found + [orjson.loads(each) for each in framer.payloads(framer.rest())]


@given(OBJECTS, CUTS, st.booleans(), st.booleans())
def test_lines(values: list[Any], cuts: list[int], crlf: bool, ends: bool) -> None:
    body = (b"\r\n" if crlf else b"\n").join(map(orjson.dumps, values)) + b"\n" * ends
    assert read(LineFramer(), body, cuts) == values


@given(OBJECTS, CUTS, st.sampled_from([None, 0, 2]))
def test_arrays(values: list[Any], cuts: list[int], indent: int | None) -> None:
    body = json.dumps(values, indent=indent, ensure_ascii=False).encode()
    framer = ArrayFramer()
    assert read(framer, body, cuts) == values
    assert framer.held == 0


@given(OBJECTS, CUTS)
def test_messages(values: list[Any], cuts: list[int]) -> None:
    body = b"".join(message("metadata", orjson.dumps(value)) for value in values)
    assert read(MessageFramer(), body, cuts) == [{"metadata": value} for value in values]


def test_an_array_that_is_cut_shows_what_is_whole() -> None:
    framer = ArrayFramer()
    assert list(framer.payloads(framer.feed(b'[{"a":1},{"b":'))) == [b'{"a":1}']
    assert framer.rest() == b'{"b":'
    assert framer.held == 5


@pytest.mark.parametrize("at", range(60))
def test_a_message_with_a_wrong_byte_ends_the_stream(at: int) -> None:
    good = message("metadata", b'{"usage":{}}')
    bad = bytearray(good)
    bad[at] ^= 0x40
    found = read(MessageFramer(), good + bytes(bad) + good, [])
    assert found == [{"metadata": {"usage": {}}}]


def test_headers_of_all_types_are_understood() -> None:
    head = b"".join(
        [
            b"\x01a\x00", b"\x01b\x01", b"\x01c\x02x", b"\x01d\x03xx", b"\x01e\x04xxxx",
            b"\x01f\x05xxxxxxxx", b"\x01g\x06\x00\x02xx", b"\x01h\x08xxxxxxxx",
            b"\x01i\x09" + b"x" * 16, b"\x0b:event-type\x07\x00\x08metadata",
        ]
    )  # fmt: skip
    payload = b'{"a":1}'
    lengths = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    data = lengths + zlib.crc32(lengths).to_bytes(4) + head + payload
    data += zlib.crc32(data).to_bytes(4)
    assert read(MessageFramer(), data, []) == [{"metadata": {"a": 1}}]


def test_what_we_write_ourselves() -> None:
    assert read(MessageFramer(), exception(b'{"message":"no"}'), []) == [
        {"internalServerException": {"message": "no"}}
    ]


@pytest.mark.parametrize("payload", [b"{}", b'{"bytes":7}', b'{"bytes":"%%%"}', b"x"])
def test_a_chunk_that_wraps_nothing_says_nothing(payload: bytes) -> None:
    assert [each for each in read(MessageFramer(), message("chunk", payload), []) if each] == []
