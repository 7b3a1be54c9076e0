"""Time-outs and stalls of all connections of a worker, by one timer a second.

A connection sets no timer and reads no clock while it works: it names how long its present state
may last (`patience`, seconds, 0 = for ever) and marks progress by clearing `expires`. Each sweep
starts the clock of those that were cleared and calls `expired` on those whose time is over; so a
time-out comes up to a second or two late, never early. A sweep over many is spread over half a
second.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol

from fastgw import clock
from fastgw.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

log = logging.getLogger(__name__)

INTERVAL = 1.0
SLICES = 50
SLICE = 100
"""Connections that are looked at in one turn of the loop, or a fiftieth of all if that is more."""


class Watched(Protocol):
    """A connection under time-outs."""

    expires: float
    """Monotonic second at which its patience ends; 0 = the next sweep starts the clock."""

    @property
    def patience(self) -> float:
        """Seconds that the present state may last without progress; 0 = no bound."""

    def expired(self) -> None:
        """The patience is over: answer, cut or close."""


class Spread:
    """Does something to many things within a second, some at a time: 10,000 connections looked at
    in one turn of the loop would hold everybody up for 4 ms."""

    def __init__(self, work: Callable[[Sequence[Any]], None]) -> None:
        self._work = work
        self._waiting: list[Any] = []
        self._size = SLICE
        self._timer: asyncio.TimerHandle | None = None

    def over(self, things: Iterable[Any]) -> None:
        """Begin with `things` as they are now; what is left of an earlier call is done first."""
        if self._waiting:
            self._work(self._waiting)
        self._waiting = list(things)
        self._size = max(SLICE, len(self._waiting) // SLICES + 1)
        self.stop()
        self._turn()

    def stop(self) -> None:
        """End; what is left is not done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        part = self._waiting[-self._size :]
        del self._waiting[-self._size :]
        self._timer = None
        if self._waiting:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(INTERVAL / 2 / SLICES, self._turn)
        if part:
            self._work(part)


class Sweeper:
    """Watches connections; O(1) to add and to remove. `turn`: what they write."""

    def __init__(self) -> None:
        self.turn = Turn()
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._spread = Spread(self._look_at)
        self.add = self._watched.add
        self.discard = self._watched.discard

    def start(self) -> None:
        """Begin to sweep in the running loop."""
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._turn)

    def stop(self) -> None:
        """End."""
        self._spread.stop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __len__(self) -> int:
        return len(self._watched)

    def _turn(self) -> None:
        self.start()
        self._spread.over(self._watched)

    def _look_at(self, some: Sequence[Watched]) -> None:
        self.sweep(clock.monotonic(), some)

    def sweep(self, now: float, some: Iterable[Watched]) -> None:
        """Look at these connections once, as far as they are still watched; `now` in monotonic
        seconds."""
        all_watched = self._watched
        for watched in some:
            if watched.expires == 0.0:
                patience = watched.patience
                if patience:
                    watched.expires = now + patience
            elif now >= watched.expires and watched in all_watched:
                try:
                    watched.expired()
                except Exception:
                    log.exception("a time-out failed")
