"""What connections write in a turn of the loop leaves at its end, one write after the other: all
that was readable has been read and dealt with by then.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)

DIRECT: Final = 64 * 1024
"""A write of more bytes does not wait for the end of the turn: that would keep it in memory."""

TOGETHER: Final = 64
"""Writes that wait at most: more would gain nothing, and the first of them would wait for all."""

FULL_READ: Final = 192 * 1024
"""A read of this size is one of many: uvloop makes up to 32 of 256 KB in one turn."""

LOOK: Final = 16
"""Writes until it is looked whether several come in a turn, and turns until it is believed that
they do not."""


class Turn:
    """What waits for the end of this turn of the loop: what connections have written, then `after`.

    uvloop writes as soon as it is told to, between two reads: the kernel's code for sending and the
    interpreter's push each other out of the caches, and whoever receives falls asleep before the
    next write wakes him again. Together at the end of the turn they cost a JSON request 15 us less.
    Nothing waits longer than for those that were readable at the same time. Where turns have one
    write each (`busy` is False), nothing waits at all.
    """

    __slots__ = ("_left", "_quiet", "after", "awake", "busy", "number", "writes")

    def __init__(self) -> None:
        self.writes: list[tuple[Callable[[bytes], None], bytes]] = []
        self._left: Iterator[tuple[Callable[[bytes], None], bytes]] | None = None
        self.busy = False
        """Whether writes wait."""
        self.number = 0
        """Writes that did not wait, or not to the end, since this was looked at."""
        self._quiet = 0  # turns with one write, one after the other
        self.awake = False
        """Whether the end of this turn is waited for."""
        self.after: Callable[[], None] | None = None

    def wake(self) -> None:
        """Something waits from now on. Needs a running loop."""
        self.awake = True
        self.number = 0
        asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        self.awake = False
        if not self.busy:
            self.busy = self.number > 0  # after the one that had us look
        elif len(self.writes) > 1 or self.number:
            self._quiet = self.number = 0
        else:
            self._quiet += 1
            if self._quiet > LOOK:
                self._quiet, self.busy = 0, False
        self.flush()
        if self.after is not None:
            self.after()

    def flush(self) -> None:
        """Write now, in order. A write may call back, and what it calls may write and flush."""
        writes = self.writes
        if writes:
            self.number += 1
        while writes:
            # One iterator for all who flush meanwhile: it gives each write once, later ones too.
            left = self._left
            if left is None:
                left = self._left = iter(writes)
            for write, data in left:
                try:
                    write(data)
                except RuntimeError:
                    pass  # closed since, by an error: uvloop raises where asyncio drops
                except Exception:
                    log.exception("a write failed")
            if self._left is left:
                self._left = None
                writes.clear()


class Outlet:
    """The transport of a connection, whose writes wait for the end of the turn. Nothing overtakes
    them: what looks at the flow of bytes, or ends it, has them leave first."""

    __slots__ = ("_transport", "_turn", "_write")

    def __init__(self, transport: asyncio.BaseTransport, turn: Turn) -> None:
        # uvloop's transports fulfil the interface without inheriting it
        self._transport = cast("asyncio.Transport", transport)
        self._turn = turn
        self._write: Callable[[bytes], None] = self._transport.write

    def write(self, data: bytes) -> None:
        """Send bytes: at the end of the turn, if it has several writes and these are not large."""
        turn = self._turn
        if turn.busy and len(data) <= DIRECT:
            if not turn.awake:
                turn.wake()
            writes = turn.writes
            writes.append((self._write, data))
            if len(writes) >= TOGETHER:
                turn.flush()
            return
        if turn.writes:
            turn.flush()
        self._write(data)
        turn.number += 1
        if turn.number == LOOK and not turn.awake:
            turn.wake()

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        """Send pieces that are too large to be joined, at once."""
        if self._turn.writes:
            self._turn.flush()
        self._transport.writelines(pieces)

    @property
    def unsent(self) -> int:
        """Bytes that the kernel has not taken yet of what has left."""
        return self._transport.get_write_buffer_size()

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        self._turn.flush()
        return self._transport.get_write_buffer_size()

    def write_eof(self) -> None:
        """Say that no more follows."""
        self._turn.flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Close once all is written."""
        self._turn.flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once; what the kernel took is on its way."""
        self._turn.flush()
        self._transport.abort()

    def can_write_eof(self) -> bool:
        """Whether one direction can be closed alone."""
        return self._transport.can_write_eof()

    def pause_reading(self) -> None:
        """Take no more bytes from the socket."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes from the socket again."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str) -> Any:
        """As the transport says."""
        return self._transport.get_extra_info(name)
