"""Time-outs and stalls of all connections of a worker, by one timer a second.

A connection sets no timer and reads no clock while it works: it names how long its present state
may last (`patience`, seconds, 0 = for ever) and marks progress by clearing `expires`. Each sweep
starts the clock of those that were cleared and calls `expired` on those whose time is over; so a
time-out comes up to a second or two late, never early.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from fastgw import clock

log = logging.getLogger(__name__)

INTERVAL = 1.0


class Watched(Protocol):
    """A connection under time-outs."""

    expires: float
    """Monotonic second at which its patience ends; 0 = the next sweep starts the clock."""

    @property
    def patience(self) -> float:
        """Seconds that the present state may last without progress; 0 = no bound."""

    def expired(self) -> None:
        """The patience is over: answer, cut or close."""


class Sweeper:
    """Watches connections; O(1) to add and to remove."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.add = self._watched.add
        self.discard = self._watched.discard

    def start(self) -> None:
        """Begin to sweep in the running loop."""
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._turn)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __len__(self) -> int:
        return len(self._watched)

    def _turn(self) -> None:
        self.start()
        self.sweep(clock.monotonic())

    def sweep(self, now: float) -> None:
        """Look at every connection once; `now` in monotonic seconds."""
        over: list[Watched] = []
        for watched in self._watched:
            if watched.expires == 0.0:
                patience = watched.patience
                if patience:
                    watched.expires = now + patience
            elif now >= watched.expires:
                over.append(watched)
        for watched in over:
            try:
                watched.expired()
            except Exception:
                log.exception("a time-out failed")
