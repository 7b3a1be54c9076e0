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

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_MESSAGE = 24 * 1024 * 1024
"""Bytes of one message of AWS (a payload is 16 MB at most): more is no length."""
_PRELUDE = struct.Struct(">III")
_SMALLEST = 16
"""Bytes of a message without headers and payload."""
_STRUCTURE = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'["\\]')


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

    def drop(self) -> int:
        """Forget the unfinished event; how many bytes were forgotten."""

    def rest(self) -> bytes:
        """The unfinished event, as a block."""

    def payloads(self, block: bytes) -> Iterator[bytes]:
        """The JSON of each event in a block."""

    def matches(self, block: bytes, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
        """Where the events of a block stand that match: start and end of each."""

    def count(self, block: bytes) -> int:
        """Events in a block, about."""


class LineFramer:
    """JSON lines: an event ends at LF."""

    __slots__ = ("_pieces", "held")

    ENDS: ClassVar[tuple[bytes, ...]] = (b"}\n", b"}\r\n")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.held = 0

    def feed(self, data: bytes) -> bytes:
        """See Framer."""
        cut = data.rfind(b"\n") + 1
        if not cut:
            if data:
                self._keep(data)
            return b""
        block = b"".join((*self._pieces, data[:cut]))
        self._pieces = []
        self.held = 0
        if cut < len(data):
            self._keep(data[cut:])
        return block

    def _keep(self, data: bytes) -> None:
        self._pieces.append(data)
        self.held += len(data)

    def drop(self) -> int:
        """See Framer."""
        dropped, self.held = self.held, 0
        self._pieces = []
        return dropped

    def rest(self) -> bytes:
        """See Framer."""
        return b"".join(self._pieces)

    def payloads(self, block: bytes) -> Iterator[bytes]:
        """See Framer."""
        for line in block.split(b"\n"):
            if line := line.strip():
                yield line

    def matches(self, block: bytes, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
        """See Framer."""
        end = 0
        while (match := pattern.search(block, end)) is not None:
            start = block.rfind(b"\n", end, match.start()) + 1 or end
            end = block.find(b"\n", match.end()) + 1 or len(block)
            yield start, end

    def count(self, block: bytes) -> int:
        """See Framer."""
        return block.count(b"\n")


class ArrayFramer(LineFramer):
    """The elements of a JSON array, each an object: how Gemini streams without `alt=sse`."""

    __slots__ = ("_depth", "_escaped", "_quoted")

    ENDS: ClassVar[tuple[bytes, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0  # of objects, and of arrays within them
        self._quoted = False
        self._escaped = False  # the quote that comes first is part of the string

    def feed(self, data: bytes) -> bytes:
        """See Framer."""
        done: list[bytes] = []
        at = start = 0
        size = len(data)
        while at < size:
            if self._quoted:
                at = self._string(data, at)
                continue
            found = _STRUCTURE.search(data, at)
            if found is None:
                break
            mark = found[0]
            at = found.end()
            if mark == b'"':
                self._quoted = self._depth > 0
            elif mark in b"{[":
                if mark == b"{" and not self._depth:
                    start = found.start()
                if self._depth or mark == b"{":
                    self._depth += 1
            elif self._depth:
                self._depth -= 1
                if not self._depth:
                    self._keep(data[start:at])
                    done.append(b"".join(self._pieces).replace(b"\n", b" ").replace(b"\r", b" "))
                    self.drop()
                    start = at
        if self._depth and start < size:
            self._keep(data[start:])
        return b"\n".join((*done, b"")) if done else b""

    def _string(self, data: bytes, at: int) -> int:
        """Go on within a string; returns where to look next."""
        if self._escaped:
            self._escaped = False
            return at + 1
        found = _IN_STRING.search(data, at)
        if found is None:
            return len(data)
        if found[0] == b'"':
            self._quoted = False
        else:
            self._escaped = True
        return found.end()


class MessageFramer(LineFramer):
    """The event stream of AWS: messages of prelude (length, length of headers, CRC), headers,
    payload, CRC, all numbers big-endian.

    An event of type T with payload P becomes the line `{"T":P}`; `chunk` events, whose payload
    wraps the bytes of a model's own event in base64, become those. At a CRC that is wrong the
    stream is given up: what comes after is held as one unfinished event.
    """

    __slots__ = ("_broken",)

    ENDS: ClassVar[tuple[bytes, ...]] = ()

    def __init__(self) -> None:
        super().__init__()
        self._broken = False

    def feed(self, data: bytes) -> bytes:
        """See Framer."""
        self._keep(data)
        if self._broken or self.held < _SMALLEST:
            return b""
        buffer = b"".join(self._pieces)
        lines: list[bytes] = []
        at = 0
        while len(buffer) - at >= _SMALLEST:
            size, head, check = _PRELUDE.unpack_from(buffer, at)
            if (
                zlib.crc32(buffer[at : at + 8]) != check
                or not _SMALLEST + head <= size <= _MAX_MESSAGE
            ):
                self._broken = True
                break
            if len(buffer) - at < size:
                break
            end = at + size - 4
            if zlib.crc32(buffer[at:end]) != int.from_bytes(buffer[end : end + 4]):
                self._broken = True
                break
            payload = at + 12 + head
            if line := _line(buffer[at + 12 : payload], buffer[payload:end]):
                lines.append(line)
            at += size
        rest = buffer[at:]
        self._pieces = [rest] if rest else []
        self.held = len(rest)
        return b"\n".join((*lines, b"")) if lines else b""

    def rest(self) -> bytes:
        """Nothing: half a message says nothing."""
        return b""


def _line(head: bytes, payload: bytes) -> bytes:
    """One message as a line; b"" for one that says nothing."""
    fields = _headers(head)
    kind = fields.get(b":event-type") or fields.get(b":exception-type") or b"exception"
    if fields.get(b":message-type") == b"error":
        kind, payload = (
            b"exception",
            orjson.dumps(fields.get(b":error-code", b"").decode("latin-1")),
        )
    if kind == b"chunk":
        try:
            inner = orjson.loads(payload)["bytes"]
            payload = binascii.a2b_base64(inner)
        except (ValueError, KeyError, TypeError):
            return b""
        return payload.replace(b"\n", b" ").replace(b"\r", b" ")
    payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    return b'{"%b":%b}' % (kind, payload or b"null") if kind.isalnum() else b""


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
