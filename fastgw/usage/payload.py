"""Reads one JSON object from bytes that others wrote, as lenient as it must be."""

from __future__ import annotations

import json  # noqa: TID251 - orjson refuses lone surrogates and NaN, which providers and clients send
import zlib
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_INFLATED = 64 * 1024 * 1024
"""Plain bytes of one compressed answer that are looked at."""

MAX_AT_ONCE = 8 * 1024 * 1024
"""Plain bytes that one read may come to: more holds the loop for longer than 25 ms, and no answer
of a model is packed a hundred to one."""

SLICE = 256 * 1024
"""Plain bytes that are in memory at a time."""


def read_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`, None if it is not one."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(data.decode("utf-8-sig", "replace"))
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def printable(text: str) -> str:
    """The text without lone surrogates, which no log, store or header could carry."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def rewritten(value: Any) -> bytes | None:
    """JSON of what others wrote: with escapes where orjson refuses a lone surrogate; None of what
    is nested too deep."""
    try:
        return orjson.dumps(value)
    except TypeError:
        try:
            return json.dumps(value).encode()
        except (ValueError, RecursionError):
            return None


def written(value: Any) -> str:
    """A JSON value as the text that somebody wrote, a tool's arguments or its schema. Of one that
    cannot be written again (nested too deep, with a lone surrogate) the names and texts in it. Not
    recursive: how deep it is, is for others to choose."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        pass
    found: list[str] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found.append(printable(item))
        elif isinstance(item, dict):
            found.extend(map(printable, item))
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
        else:
            found.append(repr(item))
    return " ".join(found)


def read_objects(pieces: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The JSON objects among `pieces`; what is none is left out. Read as one array where all are
    sound, which is half the cost."""
    waiting = [piece for piece in pieces if piece[:1] == b"{" or piece.lstrip()[:1] == b"{"]
    try:
        values = orjson.loads(b"[%b]" % b",".join(waiting))
    except orjson.JSONDecodeError:
        values = None
    if values is None or len(values) != len(waiting):  # "{},{}" is one piece and two objects
        values = [read_object(piece) for piece in waiting]
    for value in values:
        if value is not None:
            yield value


class Inflater:
    """Opens gzip and deflate bodies for the meter while the client gets the bytes as they came.

    Stops, with `failed` set, at bytes that are not compressed as announced, past MAX_INFLATED bytes
    and past MAX_AT_ONCE of one read: the meter then knows only what it saw.
    """

    __slots__ = ("_left", "_zlib", "failed")

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(47)  # gzip or zlib by their header
        self._left = MAX_INFLATED
        self.failed = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The plain bytes that `data` completes, at most SLICE at a time."""
        at_once = MAX_AT_ONCE
        full = False  # zlib may hold more of what it has taken in
        while (data or full) and not self.failed:
            most = min(SLICE, self._left, at_once)
            try:
                plain = self._zlib.decompress(data, most)
            except zlib.error:
                self.failed = True
                return
            full = len(plain) == most
            data = self._zlib.unconsumed_tail
            if self._zlib.eof:
                data, full = self._zlib.unused_data, False  # of the next member (RFC 1952, 2.2)
                self._zlib = zlib.decompressobj(47)
            self._left -= len(plain)
            at_once -= len(plain)
            if plain:
                yield plain
            self.failed = self._left <= 0 or at_once <= 0
