"""Streams that are no server-sent events, cut into events: JSON lines, a JSON array that is written
bit by bit, the event stream of AWS.

A framer has the interface of `sse.EventFramer`. Those here give blocks of JSON lines, whatever the
bytes looked like; they are for looking only, the client gets the bytes as they came.
"""

from __future__ import annotations

import binascii
import re
import struct
import zlib
from typing import TYPE_CHECKING, ClassVar, Protocol

import orjson

from fastgw.skeleton import Skeleton, Unfinished, string_end

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_MESSAGE = 24 * 1024 * 1024
"""Bytes of one message of AWS (a payload is 16 MB at most): more is no length."""
_PRELUDE = struct.Struct(">III")
_SMALLEST = 16
"""Bytes of a message without headers and payload."""
_QUOTE = ord('"')
_OPENS = b"{["
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_FLAT = rb'(?:[^"{}\[\]]++|%b)*+' % _STRING
for _ in range(3):
    _FLAT = rb'(?:[^"{}\[\]]++|%b|[{\[]%b[}\]])*+' % (_STRING, _FLAT)
_WITHIN = re.compile(rb"(?s)" + _FLAT)
"""All within an element up to a bracket that matters: what is whole and three levels deep at most
is passed over."""
WINDOW = 8 * 1024
"""Bytes that are looked at in one go."""
MOST_MARKS = 8 * 1024
"""Brackets of one read that are looked at, 3 ms: a read of 256 KiB of events has half as many."""
MOST_WHOLE = 256 * 1024
"""A message of AWS up to this size is kept as it is. Events have some hundred bytes."""


_FIELD = re.compile(rb"(?:\xef\xbb\xbf)?\s*+(?:(?:data|event|id|retry)?:|$)")


def begins_events(start: bytes) -> bool:
    """Whether these may be the first bytes of server-sent events: of a field, or of a comment."""
    return _FIELD.match(start) is not None


class Framer(Protocol):
    """Cuts a byte stream into events."""

    ENDS: ClassVar[tuple[bytes, ...]]
    """How bytes end that are whole events, and the block of them, if none is held: the likely one
    first; empty where that cannot be told by the end."""

    @property
    def held(self) -> int:
        """Bytes of the unfinished event."""

    def feed(self, data: bytes) -> bytes:
        """A block of the whole events that end within `data`; or b""."""

    lost: int
    """Bytes of events that were too large to be read, until the meter puts 0 there."""

    @property
    def tail(self) -> bytes:
        """The end of the last that was lost."""

    def event_end(self, data: bytes) -> int:
        """Where in `data` the event that is held ends; 0 if it does not, or it does not matter."""

    def rest(self) -> bytes:
        """The unfinished event, as a block."""

    def payloads(self, block: bytes) -> Iterator[bytes]:
        """The JSON of each event in a block."""

    def matches(
        self, block: bytes, pattern: re.Pattern[bytes], mark: bytes
    ) -> list[tuple[int, int]]:
        """Where the events of a block stand that have the mark and match: start and end of each."""

    def count(self, block: bytes) -> int:
        """Events in a block, about."""


class LineFramer(Unfinished):
    """JSON lines: an event ends at LF."""

    __slots__ = ()

    ENDS: ClassVar[tuple[bytes, ...]] = (b"}\n", b"}\r\n")

    def feed(self, data: bytes) -> bytes:
        """See Framer."""
        cut = data.rfind(b"\n") + 1
        if not cut:
            if data:
                self._keep(data)
            return b""
        first = data.find(b"\n") + 1
        block = self._take(data[:first]) + data[first:cut]
        if cut < len(data):
            self._keep(data[cut:])
        return block

    def event_end(self, data: bytes) -> int:
        """See Framer."""
        return data.find(b"\n") + 1

    def payloads(self, block: bytes) -> Iterator[bytes]:
        """See Framer."""
        for line in block.split(b"\n"):
            if line := line.strip():
                yield line

    def matches(
        self, block: bytes, pattern: re.Pattern[bytes], mark: bytes
    ) -> list[tuple[int, int]]:
        """See Framer."""
        found = []
        end = 0
        while (match := pattern.search(block, end)) is not None:
            start = block.rfind(b"\n", end, match.start()) + 1 or end
            end = block.find(b"\n", match.end()) + 1 or len(block)
            if block.find(mark, start, end) >= 0:
                found.append((start, end))
        return found

    def count(self, block: bytes) -> int:
        """See Framer."""
        return block.count(b"\n")


class ArrayFramer(LineFramer):
    """The elements of a JSON array, each an object: how Gemini streams without `alt=sse`."""

    __slots__ = ("_broken", "_depth", "_escaped", "_quoted")

    ENDS: ClassVar[tuple[bytes, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._broken = False  # what comes is lost
        self._depth = 0  # of objects, and of arrays within them
        self._quoted = False
        self._escaped = False  # the quote that comes first is part of the string

    def feed(self, data: bytes) -> bytes:
        """See Framer."""
        if self._broken:
            self.lost += len(data)
            return b""
        done: list[bytes] = []
        at = start = marks = 0
        size = len(data)
        while at < size:
            if self._quoted:
                at = self._string(data, at)
                continue
            if not self._depth:
                start = at = data.find(b"{", at)
                if at < 0:
                    break
            else:
                limit = min(at + WINDOW, size)
                match = _WITHIN.match(data, at, limit)
                assert match is not None
                at = match.end()
                if at == limit:
                    continue
            mark = data[at]
            at += 1
            marks += 1
            if mark == _QUOTE:
                self._quoted = True
            elif mark in _OPENS:
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    element = self._take(data[start:at])
                    done.append(element.replace(b"\n", b" ").replace(b"\r", b" "))
                    start = at
            if marks == MOST_MARKS:
                self._broken = True
                self.lost += self.held + size - start
                self._pieces, self.held, self._depth = [], 0, 0
                break
        if self._depth and start < size:
            self._keep(data[start:])
        return b"\n".join((*filter(None, done), b"")) if done else b""

    def event_end(self, data: bytes) -> int:
        """Its bytes go to the client as they come, so it does not matter."""
        return 0

    def rest(self) -> bytes:
        """See Framer: one line, as an element that is whole."""
        return super().rest().replace(b"\n", b" ").replace(b"\r", b" ")

    def _string(self, data: bytes, at: int) -> int:
        """Go on within a string; returns where to look next."""
        if self._escaped:
            self._escaped = False
            return at + 1
        end = string_end(data, at)
        if end < len(data):
            self._quoted = data[end] != _QUOTE
            self._escaped = self._quoted
        return end + 1


class MessageFramer(LineFramer):
    """The event stream of AWS: messages of prelude (length, length of headers, CRC), headers,
    payload, CRC, all numbers big-endian.

    An event of type T with payload P becomes the line `{"T":P}`; `chunk` events, whose payload
    wraps the bytes of a model's own event in base64, become those. At a CRC that is wrong the
    stream is given up: what comes after is held as one unfinished event.
    """

    __slots__ = ("_broken", "_large", "_need", "_whole")

    ENDS: ClassVar[tuple[bytes, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._broken = False
        self._whole: list[bytes] = []  # of the message that is unfinished, if it is not large
        self._need = _SMALLEST  # bytes of it
        self._large: _LargeMessage | None = None

    def feed(self, data: bytes) -> bytes:
        """See Framer."""
        if self._broken:
            self.lost += len(data)
            return b""
        lines: list[bytes] = []
        if self._large is not None:
            data = self._go_on(self._large, data, lines)
            if not data or self._broken:
                self.lost += len(data)
                return b"".join(lines)
        self._whole.append(data)
        self.held += len(data)
        if self.held < self._need:
            return b"".join(lines)
        buffer = b"".join(self._whole)
        at = 0
        self._need = _SMALLEST
        while len(buffer) - at >= _SMALLEST:
            size, head, check = _PRELUDE.unpack_from(buffer, at)
            if (
                zlib.crc32(buffer[at : at + 8]) != check
                or not _SMALLEST + head <= size <= _MAX_MESSAGE
            ):
                self._broken = True
                break
            if len(buffer) - at < size:
                self._need = size if size <= MOST_WHOLE else _SMALLEST + head
                if size > MOST_WHOLE and len(buffer) - at >= self._need:
                    self._need = _SMALLEST
                    self._large = _LargeMessage(buffer[at : at + 12 + head], size)
                    self._go_on(self._large, buffer[at + 12 + head :], lines)
                    at = len(buffer)
                break
            end = at + size - 4
            if zlib.crc32(buffer[at:end]) != int.from_bytes(buffer[end : end + 4]):
                self._broken = True
                break
            payload = at + 12 + head
            lines.append(_line(_kind(buffer[at + 12 : payload]), buffer[payload:end]))
            at += size
        rest = buffer[at:]
        if self._broken:  # what is held tells that no event of ours may follow
            self.lost += len(rest) - 1
            rest = rest[:1]
        self._whole = [rest] if rest else []
        self.held = len(rest)
        if self._large is not None:
            self.held = self._large.passed
        return b"".join(lines)

    def _go_on(self, large: _LargeMessage, data: bytes, lines: list[bytes]) -> bytes:
        """The large message goes on with `data`; returns what comes after it."""
        rest = large.feed(data)
        self.held = large.passed
        if large.passed < large.size:
            return b""
        self._large = None
        self.held = 0
        body = b"".join(large.body)
        if not large.sound:
            self._broken = True
            self.held = 1
            self.lost += large.size - 1
        elif large.body.heavy or large.kind == b"chunk":
            self.lost += large.size
        else:
            lines.append(_line(large.kind, body))
        return rest

    def event_end(self, data: bytes) -> int:
        """See ArrayFramer."""
        return 0

    def rest(self) -> bytes:
        """Nothing: half a message says nothing."""
        return b""


class _LargeMessage:
    """A message that is looked at as it passes. `sound`: its CRC is right, `body`: its payload."""

    __slots__ = ("_check", "_end", "body", "kind", "passed", "size")

    def __init__(self, head: bytes, size: int) -> None:
        """`head`: prelude and headers."""
        self._check = zlib.crc32(head)
        self._end = b""
        self.kind = _kind(head[12:])
        self.body = Skeleton()
        self.passed = len(head)
        self.size = size

    @property
    def sound(self) -> bool:
        return int.from_bytes(self._end) == self._check

    def feed(self, data: bytes) -> bytes:
        """Take what belongs to it; returns the rest."""
        left = self.size - self.passed
        part = data[: max(0, left - 4)]
        self._check = zlib.crc32(part, self._check)
        self._end += data[len(part) : left]
        self.body.append(part)
        self.passed += min(len(data), left)
        return data[left:]


def _kind(head: bytes) -> bytes:
    """What a message is, by its headers."""
    fields = _headers(head)
    if fields.get(b":message-type") == b"error":
        code = fields.get(b":error-code", b"").decode("latin-1")
        return b"error" + orjson.dumps(code)
    return fields.get(b":event-type") or fields.get(b":exception-type") or b"exception"


def _line(kind: bytes, payload: bytes) -> bytes:
    """One message as a line; b"" for one that says nothing."""
    if kind.startswith(b'error"'):
        kind, payload = b"exception", kind[5:]
    if kind == b"chunk":
        try:
            inner = orjson.loads(payload)["bytes"]
            payload = binascii.a2b_base64(inner)
        except (ValueError, KeyError, TypeError):
            return b""
        return payload.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"
    payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    return b'{"%b":%b}\n' % (kind, payload or b"null") if kind.isalnum() else b""


_SIZES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Type of a header's value -> its bytes; 6 (bytes) and 7 (text) say their length."""


def _headers(data: bytes) -> dict[bytes, bytes]:
    """The text headers of a message; what cannot be read ends them."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        end = at + 1 + data[at]
        name = data[at + 1 : end]
        if end >= len(data):
            break
        kind = data[end]
        end += 1
        if kind in (6, 7):
            size = int.from_bytes(data[end : end + 2])
            end += 2
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            break
        if kind == 7:
            found[name] = data[end : end + size]
        at = end + size
    return found


def message(kind: str, payload: bytes, sort: str = "event") -> bytes:
    """A message of AWS with a JSON payload; `sort`: event or exception."""
    fields = {
        f":{sort}-type": kind,
        ":content-type": "application/json",
        ":message-type": sort,
    }
    head = b"".join(
        b"%c%b\x07%b%b" % (len(name), name.encode(), len(value).to_bytes(2), value.encode())
        for name, value in fields.items()
    )
    lengths = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    data = lengths + zlib.crc32(lengths).to_bytes(4) + head + payload
    return data + zlib.crc32(data).to_bytes(4)


def exception(payload: bytes) -> bytes:
    """The message of AWS that ends a stream that the provider broke off."""
    return message("internalServerException", payload, "exception")
