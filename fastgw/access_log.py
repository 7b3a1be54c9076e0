"""One JSON line for each request, written off the loop.

A request appends bytes to a list. Ten times a second everything collected is handed to a thread
that writes it, so that a slow disk or a reader that stopped holds up nobody; what does not fit into
MAX_PENDING meanwhile is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

import orjson

from fastgw import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

INTERVAL = 0.1
MAX_PENDING = 16 * 1024 * 1024
WHOLE = 4096
"""Bytes that a pipe takes in one piece (PIPE_BUF): lines of several writers do not mix."""

quote: Callable[[Any], bytes] = orjson.dumps
"""A value as JSON: orjson escapes whatever a client wrote, so that no value can break a line."""


class AccessLog:
    """The file of `[access_log] path`: "-" is standard output, "" none."""

    def __init__(self, path: str) -> None:
        self.enabled = path != ""
        self.dropped = 0
        self._path = path
        self._lines: list[bytes] = []
        self._file = -1
        self._reopen = False
        self._torn = False  # a write failed within a line
        self._task: asyncio.Task[Any] | None = None
        self._closing = asyncio.Event()
        self._pending = 0

    def start(self) -> None:
        """Open the file and begin to write. Raises OSError."""
        if self.enabled:
            self._file = self._open()
            self._task = tasks.spawn(self._run(), "access log")

    def write(self, line: bytes) -> None:
        """Log one entry: a JSON object without a line end."""
        self._pending += len(line) + 1
        if self._pending > MAX_PENDING:
            self._pending -= len(line) + 1
            self.dropped += 1
            return
        self._lines.append(line)

    def write_all(self, lines: list[bytes]) -> None:
        """Log several."""
        size = sum(map(len, lines)) + len(lines)
        if self._pending + size > MAX_PENDING:
            for line in lines:
                self.write(line)
            return
        self._pending += size
        self._lines += lines

    def reopen(self) -> None:
        """Use a new file of the same name from the next write on (log rotation)."""
        self._reopen = True

    async def close(self) -> None:
        """Write what is left and close."""
        if self._task is not None:
            self._closing.set()
            await self._task  # never cancelled: a thread may be writing
            self._task = None
        if self._file > 2:
            os.close(self._file)
        self._file = -1

    def _open(self) -> int:
        if self._path == "-":
            return sys.stdout.fileno()
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)

    async def _run(self) -> None:
        closing = False
        while not closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(INTERVAL):
                    await self._closing.wait()
            closing = self._closing.is_set()
            if self._reopen:
                self._reopen = False
                self._swap()
            await self._flush()

    def _swap(self) -> None:
        try:
            new = self._open()
        except OSError as error:
            log.error("access log: cannot reopen: %s; the old file stays", error.strerror)
            return
        old, self._file = self._file, new
        self._torn = self._torn and os.path.sameopenfile(old, new)
        if old > 2:
            os.close(old)

    async def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        start = b"\n" if self._torn else b""  # what is cut is not to spoil the next line
        data = start + b"\n".join(lines) + b"\n"
        written, error = await asyncio.to_thread(_write_all, self._file, data)
        self._pending -= len(data) - len(start)
        if written:
            self._torn = not data.endswith(b"\n", 0, written)
        if error is not None:
            self.dropped += data.count(b"\n", max(written, len(start)))
            log.error("access log: cannot write: %s", error.strerror)


def _write_all(file: int, data: bytes) -> tuple[int, OSError | None]:
    """Bytes that were written, and what was in the way of the rest."""
    start = 0
    try:
        plain = stat.S_ISREG(os.fstat(file).st_mode)
        while start < len(data):
            end = len(data)
            if not plain and end - start > WHOLE:
                # Workers share the pipe of standard output, and only so much is written in one
                # piece.
                end = data.rfind(b"\n", start, start + WHOLE) + 1 or data.find(b"\n", start) + 1
            view = memoryview(data)[start:end]
            while view:
                size = os.write(file, view)
                view = view[size:]
                start += size
    except OSError as error:
        return start, error
    return start, None
