"""JSON of any size that arrives in pieces, kept small: who reads it reads what is left of it.

1. A string longer than LONG is left out as it passes. In its place stands a text of ours that says
   how long it was and has samples of it: members, numbers and short strings stay as they were.
2. Bytes are looked at once, at the speed of C: a window of WINDOW bytes by one expression, the
   inside of a long string by a search for its end. No work is done for a single short string.
3. What is not made of long strings does not get smaller. Past MOST bytes, or MEMBERS values, it is
   `heavy`: it would take too long to read, and only its end is kept, and how much of it is text.
4. Bytes that are no JSON come out damaged, and no worse: they are for looking only.

Strings may be cut by reads anywhere, in the middle of an escape or a character.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING, Protocol

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LARGE = 64 * 1024
"""Bytes that are kept as they are: a skeleton is for more."""

LONG = 1024
"""Bytes of a string that is kept whatever windows it lies in."""

WINDOW = 4096

MOST = 512 * 1024
"""Bytes of a skeleton that is read: 2 ms."""

MEMBERS = 32 * 1024
"""Values, about, of a skeleton that is read: 2.5 ms where each is an object of its own."""

TAIL = 8 * 1024
"""Bytes of the end that are kept of what is heavy."""

SAMPLE = 256
STRIDE = 8 * 1024
"""From a sample of a long string to the next; twice that whenever there are SAMPLES."""
SAMPLES = 48

_OUTSIDE = re.compile(rb'(?s)(?:[^"]*+"[^"\\]*+(?:\\.[^"\\]*+)*+")*+[^"]*+')
"""All up to a string that does not end."""

_SECRET = secrets.token_hex(8)
"""What nobody else can write, so that no text is taken for one of ours."""
_STAND_IN = re.compile(rf"\[{_SECRET}:(\d+)\]")
_NO_TEXT = b'0123456789+-.,:"[]{} \t\r\n'
"""What numbers are made of, and JSON around them."""


def string_end(data: bytes, at: int) -> int:
    """Where the string ends that `at` lies in: the position of its quote, that of a backslash which
    ends `data`, or the size of `data`."""
    quote = data.find(b'"', at)
    slash = data.find(b"\\", at, quote if quote >= 0 else len(data))
    if slash < 0:
        return quote if quote >= 0 else len(data)
    at = slash
    while at < len(data):
        # Escapes of one length with what is put there: a quarter of the time of an expression.
        block = data[at : at + WINDOW].replace(b"\\\\", b"__").replace(b'\\"', b"__")
        quote = block.find(b'"')
        if quote >= 0:
            return at + quote
        at += len(block)
        if block.endswith(b"\\"):  # of a quote, maybe, that is not in this block
            at -= 1
            if at == len(data) - 1:
                break
    return at


class Skeleton:
    """See the module. Takes pieces as a list does and gives what is left of them: `append`, and
    iteration, which ends it."""

    __slots__ = (
        "_carry",
        "_kept",
        "_long",
        "_next",
        "_out",
        "_samples",
        "_stride",
        "heavy",
        "size",
        "tail",
        "text",
    )

    def __init__(self, pieces: Iterable[bytes] = ()) -> None:
        self.size = self.text = 0
        """Bytes that came, and of them text, about: those of long strings, of what is heavy all
        that is no number."""
        self.heavy = False
        self.tail = b""
        """The last bytes, as they came."""
        self._out: list[bytes] = []
        self._kept = 0
        self._carry = b""  # a string that may be short, or a backslash in a long one
        self._long = -1  # bytes left out of the string that we are in; -1: in none
        self._samples: list[bytes] = []
        self._stride = self._next = 0
        for piece in pieces:
            self.append(piece)

    def append(self, data: bytes) -> None:
        """Take the next bytes."""
        self.size += len(data)
        self.tail = data[-TAIL:] if len(data) >= TAIL else (self.tail + data)[-TAIL:]
        if self.heavy:
            self.text += _letters(data)
            return
        if self._carry:
            data, self._carry = self._carry + data, b""
        at, size = 0, len(data)
        while at < size and self._kept <= MOST:
            at = self._skip(data, at) if self._long >= 0 else self._keep(data, at)
        if self._kept > MOST:
            self._give_up()
            self.text += _letters(data[at:])

    def _give_up(self) -> None:
        self.heavy = True
        self.text += sum(map(_letters, self._out))
        self._out.clear()
        self._samples.clear()
        self._carry = b""

    def _keep(self, data: bytes, at: int) -> int:
        """Keep what is outside of long strings, up to the end of the window."""
        size = len(data)
        limit = min(at + WINDOW, size)
        match = _OUTSIDE.match(data, at, limit)
        assert match is not None
        end = match.end()
        if end < limit:  # here a string begins that does not end in the window
            if limit - end > LONG:
                end += 1
                self._long = self._next = 0
                self._stride = STRIDE
            elif limit == size:
                self._carry = data[end:]
                self._write(data[at:end])
                return size
        self._write(data[at:end])
        return end

    def _write(self, data: bytes) -> None:
        self._out.append(data)
        self._kept += len(data)

    def _skip(self, data: bytes, at: int) -> int:
        """Leave out what is left of a long string."""
        end = string_end(data, at)
        self._sample(data, at, end)
        self._long += end - at
        self.text += end - at
        if end == len(data):
            return end
        if data[end] == 0x5C:  # a backslash: what follows it is not here yet
            self._carry = data[end:]
            return len(data)
        self._close()
        self._write(b'"')
        return end + 1

    def _close(self) -> None:
        """The end of a long string: write what stands for it."""
        parts = [*map(_readable, self._samples)]
        text = "".join(each for each, _ in parts)
        seen = sum(size for _, size in parts)
        size = self._long * len(text.encode("utf-8", "replace")) // max(1, seen)
        self._write(orjson.dumps(f"[{_SECRET}:{size}]{text}")[1:-1])
        self._long = -1
        self._samples = []

    def _sample(self, data: bytes, start: int, end: int) -> None:
        """Samples lie evenly; where there are too many, every other one is let go."""
        passed = self._long
        while (at := start + self._next - passed) < end:
            self._samples.append(data[at : min(at + SAMPLE, end)])
            self._next += self._stride
            if len(self._samples) > SAMPLES:
                self._samples = self._samples[::2]
                self._stride *= 2
                self._next = len(self._samples) * self._stride

    def __iter__(self) -> Iterator[bytes]:
        """What is left, as far as it came: nothing of what is heavy."""
        if self._long >= 0:
            self._close()  # a string that has no end
        if self._carry:
            self._write(self._carry)
            self._carry = b""
        if not self.heavy and sum(map(_values, self._out)) > MEMBERS:
            self._give_up()
        return iter(self._out)


def _letters(data: bytes) -> int:
    return len(data.translate(None, _NO_TEXT))


def _values(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _readable(raw: bytes) -> tuple[str, int]:
    """The text of a part of a JSON string, which may begin and end anywhere: its whole words, or
    the escapes that are whole; and how many bytes of `raw` those are."""
    for mark in (b" ", b"\\"):
        first, last = raw.find(mark), raw.rfind(mark)
        if first < last:
            raw = raw[first:last]
            break
    # A slice that ends before it starts is an error where this is compiled.
    for part in (raw, raw[:-1], raw[1:], raw[1:-1] if len(raw) > 1 else b""):
        try:
            text = str(orjson.loads(b'"%b"' % part))
        except ValueError:
            continue
        return text, len(part)
    return raw.decode("utf-8", "ignore"), len(raw)


class Unfinished:
    """The bytes of one event that is not whole: as they came up to LARGE, a skeleton past it.

    `held` counts them. Of an event that got too heavy nothing is left: `lost` has its bytes until
    somebody puts 0 there, `tail` its end.
    """

    __slots__ = ("_pieces", "held", "lost", "tail")

    def __init__(self) -> None:
        self._pieces: list[bytes] | Skeleton = []
        self.held = self.lost = 0
        self.tail = b""

    def rest(self) -> bytes:
        """What there is of it."""
        return b"".join(self._pieces)

    def _keep(self, data: bytes) -> None:
        """It goes on with `data`."""
        if self.held > LARGE and isinstance(self._pieces, list):
            self._pieces = Skeleton(self._pieces)
        self._pieces.append(data)
        self.held += len(data)

    def _take(self, data: bytes) -> bytes:
        """It ends with `data`: the whole of it, b"" where it is lost."""
        pieces = self._pieces
        if not pieces:
            return data
        self._keep(data)
        pieces = self._pieces
        whole = b"".join(pieces)
        if isinstance(pieces, Skeleton) and pieces.heavy:
            self.lost += pieces.size
            self.tail = pieces.tail
            whole = b""
        self._pieces = []
        self.held = 0
        return whole


class Counter(Protocol):
    """What `add_texts` adds to: see usage/estimate."""

    def add(self, text: str) -> None:
        """Take the next piece of text."""

    def add_part(self, text: str, size: int) -> None:
        """Take a text of about `size` bytes, of which only `text` is there."""


def is_part(text: object) -> bool:
    """Whether this is a text of which a part was left out."""
    return isinstance(text, str) and _SECRET in text


def text_size(raw: bytes) -> int:
    """Bytes of the inside of a JSON string, whether it was left out or not."""
    sizes = [int(found[1]) for found in _STAND_IN.finditer(raw.decode("latin-1"))]
    return sum(sizes) if sizes else len(raw)


def add_texts(counter: Counter, texts: Iterable[str]) -> None:
    """Count texts that may have lost long strings."""
    whole = "".join(texts)
    if _SECRET not in whole:
        counter.add(whole)
        return
    for text in texts:
        left = _STAND_IN.sub("", text)
        size = sum(int(found[1]) for found in _STAND_IN.finditer(text))
        if size:
            counter.add_part(left, size)
        else:
            counter.add(left)
