"""The texts of stream events, without reading each where they differ in nothing but their text.

1. Most server-sent events of a stream are head, text, tail, and head and tail stay the same: a
   `Shape`. Some have a second string that differs, such as OpenAI's `obfuscation`.
2. A shape is learned from two events and proved: an event of that shape whose text is a word that
   nobody else can know must read as that word alone, and as no tool call.
3. Events are cut apart where a tail meets a head. What is between holds no quote but escaped ones,
   or else it is not of this shape and is read as any event. A tail ends with a line, so none can
   stand within a string.

The texts are those that reading each event as JSON gives, for a fifth of the time.
"""

from __future__ import annotations

import secrets
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from fastgw.skeleton import string_end
from fastgw.sse import EventFramer
from fastgw.usage.payload import read_objects

if TYPE_CHECKING:
    from fastgw.usage.api import Api
    from fastgw.usage.framing import Framer

MANY = 4096
"""Bytes of events from which it pays to learn their shape."""

TRIES = 8
"""Shapes that are learned at most in one go: each takes the time of some ten events."""

PATIENCE = 3
"""Blocks of a stream that show no shape, until none is looked for any more."""

_QUOTE: Final = 34
_BACKSLASH: Final = 92
"""Numbers of bytes: see sse.LF."""

_WORD = secrets.token_hex(8)


class Shape(NamedTuple):
    """An event up to its text, and what comes behind it; where a second string differs, what is
    between the two, and what comes behind that."""

    head: bytes
    middle: bytes
    tail: bytes


class Reader:
    """Reads the texts of one stream's events. `calls`: tool calls that began in them."""

    __slots__ = ("_api", "_framer", "_patience", "_shape", "_tries", "calls")

    def __init__(self, api: Api, framer: Framer) -> None:
        self._api = api
        self._framer = framer
        self._shape: Shape | None = None
        self._tries = 0
        self._patience = PATIENCE if isinstance(framer, EventFramer) else 0
        self.calls = 0

    def texts(self, block: bytes) -> list[str]:
        """The texts of a block of whole events, in order, in pieces of any size."""
        self._tries = TRIES if self._patience else 0
        return self._texts(block)

    def _texts(self, block: bytes) -> list[str]:
        """As `texts`, of a part of the block."""
        if len(block) >= MANY and self._tries:
            shape = self._shape
            if shape is None or shape.tail + shape.head not in block:
                self._tries -= 1
                shape = self._learn(block)
                if shape is None:
                    self._tries = 0
                    self._patience -= 1
            if shape is not None:
                self._shape = shape
                return self._split(shape, block)
        return self._read(block)

    def _read(self, block: bytes) -> list[str]:
        """Event by event."""
        api, framer = self._api, self._framer
        found: list[str] = []
        calls = block.find(b"call") >= 0 or block.find(b"tool_use") >= 0
        message = None
        for message in read_objects(framer.payloads(block)):
            found += api.texts(message)
            if calls:
                self.calls += api.calls(message)
        if message is None:  # events of plain text
            found += [
                payload.decode("utf-8", "replace")
                for payload in framer.payloads(block)
                if payload[:1] not in (b"{", b"[")
            ]
        return found

    def _learn(self, block: bytes) -> Shape | None:
        """The shape of the first two events that differ in a text; None if that is another."""
        start = block[:MANY]
        end = b"\r\n\r\n" if start.find(b"\r\n\r\n") >= 0 else b"\n\n"
        events = [event + end for event in start.split(end)[:-1]]
        for first, second in pairwise(events[:5]):
            shape = _common(first, second)
            if shape is None or shape.tail + shape.head not in block:
                continue
            word = _WORD.encode()
            other = word[::-1] if shape.middle else b""
            proof = b"".join((shape.head, word, shape.middle, other, shape.tail))
            messages = [*read_objects(self._framer.payloads(proof))]
            if (
                len(messages) == 1
                and self._api.texts(messages[0]) == [_WORD]
                and not self._api.calls(messages[0])
            ):
                return shape
        return None

    def _split(self, shape: Shape, block: bytes) -> list[str]:
        """The texts of a block that has events of the shape, and perhaps others."""
        head, middle, tail = shape
        parts = block.rsplit(tail + head)  # in half the time of `split`
        whole = block.startswith(head) and block.endswith(tail)
        if whole:
            parts[0] = parts[0][len(head) :]
            parts[-1] = parts[-1][: -len(tail)]
            if not middle and _QUOTE not in (texts := b"".join(parts)):
                return self._decoded([texts])
        found: list[str] = []
        run: list[bytes] = []
        last = len(parts) - 1
        for number, part in enumerate(parts):
            text, second, pad = part.partition(middle) if middle else (part, b"", b"")
            if (
                (whole or 0 < number < last)
                and (_QUOTE not in text or string_end(text, 0) == len(text))
                and (not middle or (second and _QUOTE not in pad and _BACKSLASH not in pad))
            ):
                run.append(text)
                continue
            found += self._decoded(run)
            run = []
            before = head if whole or number else b""
            found += self._texts(b"".join((before, part, tail if whole or number < last else b"")))
        return found + self._decoded(run)

    def _decoded(self, run: list[bytes]) -> list[str]:
        """The texts of strings as JSON writes them, without their quotes, as one."""
        raw = b"".join(run)
        if not raw:
            return []
        try:
            return [orjson.loads(b'"%b"' % raw) if _BACKSLASH in raw else raw.decode()]
        except ValueError:  # a lone surrogate, or no UTF-8: as lenient as for an event
            return [text for each in read_objects([b'{"":"%b"}' % raw]) for text in each.values()]


def _common(first: bytes, second: bytes) -> Shape | None:
    """What two events have in common but for one string, or two."""
    at = first.rfind(b'"', 0, _same(first, second)) + 1
    if not at:
        return None
    head, first, second = first[:at], first[at:], second[at:]
    first, second = first[string_end(first, 0) :], second[string_end(second, 0) :]
    if first == second:
        return Shape(head, b"", first)
    at = first.rfind(b'"', 0, _same(first, second)) + 1
    middle, first, second = first[:at], first[at:], second[at:]
    first, second = first[string_end(first, 0) :], second[string_end(second, 0) :]
    return Shape(head, middle, first) if at > 1 and first == second else None


def _same(first: bytes, second: bytes) -> int:
    """Bytes that two begin with."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[:middle] == second[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
