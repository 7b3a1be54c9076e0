from __future__ import annotations

import re
from itertools import pairwise, product
from typing import Any, SupportsIndex

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgw.skeleton import (
    LARGE,
    LONG,
    MEMBERS,
    MOST,
    SAMPLE,
    SAMPLES,
    TAIL,
    WINDOW,
    Skeleton,
    Unfinished,
    _readable,
    add_texts,
    string_end,
    text_size,
)
from fastgw.usage.estimate import ByteCounter

VALUES = st.recursive(
    st.none() | st.integers(-5, 5) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)
LONG_TEXTS = st.builds(
    lambda text, size: (text * size)[:size],
    st.sampled_from(["a", '"', "\\", "\n", "漢", "é ", '\\"', "word and word ", "😀"]),
    st.sampled_from([WINDOW + LONG + 1, 3 * WINDOW, 20_000]),
)


def shrunk(body: bytes, cuts: list[int]) -> Skeleton:
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    return Skeleton([body[a:b] for a, b in pairwise(edges)])


@settings(max_examples=200)
@given(VALUES, st.lists(st.integers(0, 3000), max_size=9))
def test_what_has_no_long_string_stays_as_it_is(value: Any, cuts: list[int]) -> None:
    body = orjson.dumps(value)
    assert b"".join(shrunk(body, cuts)) == body


@settings(max_examples=200)
@given(LONG_TEXTS, VALUES, st.lists(st.integers(0, 30_000), max_size=9))
def test_of_a_long_string_its_size_is_left(text: str, value: Any, cuts: list[int]) -> None:
    body = orjson.dumps({"before": value, "text": text, "after": value})
    left = b"".join(shrunk(body, cuts))
    assert len(left) <= len(orjson.dumps([value, value])) + 2 * WINDOW + SAMPLES * SAMPLE * 3
    found = orjson.loads(left)
    assert (found["before"], found["after"]) == (value, value)
    counter = ByteCounter()
    add_texts(counter, ["1234", found["text"], "5678"])
    size = len(text.encode())
    assert counter.total() == pytest.approx(2 + size / 4, rel=0.1)


def test_many_long_strings_are_left_out() -> None:
    texts = ["x" * 5000 + '"', "\\" * 7000, "word " * 3000, "short", "漢" * 9000] * 40
    body = orjson.dumps({"texts": texts, "usage": {"a": 1}})
    for step in (700, 4096, 100_000):
        left = b"".join(shrunk(body, [*range(0, len(body), step)]))
        assert len(left) < len(texts) * 4 * 4 * SAMPLE
        found = orjson.loads(left)
        assert found["usage"] == {"a": 1}
        assert found["texts"][3::5] == ["short"] * 40


def test_every_cut_of_an_escape() -> None:
    body = orjson.dumps({"a": '\\"' * 3000, "b": "c"})
    for at in range(len(body) - 200, len(body)):
        assert orjson.loads(b"".join(shrunk(body, [at, at + 1])))["b"] == "c"


@pytest.mark.parametrize(
    ("data", "end"),
    [(b'ab"c', 2), (b'a\\"b"c', 4), (b"abc", 3), (b"ab\\", 2), (b'\\\\"', 2), (b'\\\\\\"', 4)],
)
def test_where_a_string_ends(data: bytes, end: int) -> None:
    assert string_end(data, 0) == end


@given(
    st.lists(st.sampled_from([b"\\", b"\\\\", b'\\"', b"\\n", b"a", b"b" * 99]), max_size=30),
    st.integers(WINDOW - 40, WINDOW + 9),
    st.booleans(),
)
def test_where_a_long_string_ends(parts: list[bytes], before: int, ends: bool) -> None:
    inside = b"".join(parts)
    data = b"x" * before + inside + b'"' * ends + b"after"
    match = re.match(rb'(?s)(?:[^"\\]|\\.)*', data)
    assert match is not None
    assert string_end(data, 0) == match.end()
    assert string_end(b"\\n" + data, 0) == 2 + match.end()


def test_what_does_not_get_smaller_is_heavy() -> None:
    for body in (b"[" + b"1," * MEMBERS + b"1]", b'["' + b'", "'.join([b"x" * 900] * 900) + b'"]'):
        skeleton = Skeleton()
        for at in range(0, len(body), 10_000):
            skeleton.append(body[at : at + 10_000])
            assert sum(map(len, skeleton._out)) <= MOST
        assert b"".join(skeleton) == b""
        assert skeleton.heavy
        assert skeleton.size == len(body)
        assert skeleton.tail == body[-TAIL:]


def test_nobody_else_can_write_what_stands_for_a_string() -> None:
    counter = ByteCounter()
    add_texts(counter, ["[0123456789abcdef:1000000]"])
    assert counter.total() == 7


def test_an_event_is_kept_as_it_is_until_it_is_large() -> None:
    kept = Unfinished()
    piece = b'"' + b"x" * 30_000 + b'"'
    for number in range(1, 4):
        kept._keep(piece)
        assert kept.rest() == number * piece
    assert kept.held == 3 * len(piece) > LARGE
    for _ in range(100):
        kept._keep(piece)
    assert len(kept.rest()) < 103 * 20_000
    assert kept._take(b"[]").endswith(b"[]")
    assert (kept.held, kept.lost, kept.rest()) == (0, 0, b"")


def test_what_is_lost_is_told_until_it_is_noted() -> None:
    kept = Unfinished()
    for _ in range(40):
        kept._keep(b"1," * 10_000)
    assert kept._take(b"the end") == b""
    assert kept.lost == 40 * 20_000 + 7
    assert kept.tail.endswith(b"1,the end")
    assert kept._take(b"next") == b"next"


class Strict(bytes):
    """Bytes of which no slice may end before it starts: an error where the code is compiled."""

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        if not isinstance(key, slice):
            return super().__getitem__(key)
        start, stop, step = key.indices(len(self))
        assert start <= stop, f"{bytes(self)!r}[{key.start}:{key.stop}]"
        return Strict(super().__getitem__(slice(start, stop, step)))


def test_the_text_of_every_short_sample() -> None:
    for size in range(5):
        for letters in product((b"a", b" ", b"\\", b'"', b"u", b"\xe6", b"\n"), repeat=size):
            raw = Strict(b"".join(letters))
            text, seen = _readable(raw)
            assert seen <= size
            assert len(text) <= size


@pytest.mark.parametrize("size", [*range(8 * 1024 - 2, 8 * 1024 + 3), 8 * 1024 * 40 + 1])
@pytest.mark.parametrize("letter", [b"A", b"\\\\", b" "])
def test_the_last_sample_of_a_long_string_may_be_a_byte(size: int, letter: bytes) -> None:
    body = b'{"a":"' + (letter * size)[: size // len(letter) * len(letter)] + b'"}'
    for cuts in ([], [size], [size + 6], [size // 2, size + 5]):
        left = orjson.loads(b"".join(shrunk(body, cuts)))
        counter = ByteCounter()
        add_texts(counter, [left["a"]])
        assert counter.total() == pytest.approx(len(letter * size) / len(letter) / 4, rel=0.55)


def test_how_much_is_text() -> None:
    numbers = orjson.dumps([number / 7 for number in range(100_000)])
    skeleton = shrunk(numbers, [*range(0, len(numbers), 50_000)])
    assert b"".join(skeleton) == b""
    assert skeleton.heavy
    assert skeleton.text < len(numbers) / 1000  # exponents
    long = b'["' + b"x" * 100_000 + b'"]'
    assert shrunk(long, [3, 70_000]).text == 100_000
    body = b'{"text":' + long[1:-1] + b',"a":' + numbers + b"}"
    skeleton = shrunk(body, [*range(0, len(body), 50_000)])
    assert b"".join(skeleton) == b""
    assert skeleton.text == pytest.approx(100_000, rel=0.04)  # and the samples


def test_the_size_of_a_text_that_is_left_out() -> None:
    left = b"".join(shrunk(b'["' + b"x" * 100_000 + b'"]', []))
    assert text_size(left[2:-2]) == pytest.approx(100_000, rel=0.01)
    assert text_size(b"\xe6\xbc\xa2 1") == 5
    assert text_size(b"") == 0
