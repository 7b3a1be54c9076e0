"""Answers that are read on though their client has left: for the usage that they report at the end.

An upstream asks for it with `on_disconnect = "drain"`. So that clients who leave cannot make work
without end, each drain has a bound on bytes and time, and an upstream one on their number; past any
the provider is stopped and what came is charged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw import clock

if TYPE_CHECKING:
    from fastgw.exchange import Exchange


class _Drain:
    __slots__ = ("left", "until", "upstream")

    def __init__(self, upstream: str, left: int, until: float) -> None:
        self.upstream = upstream
        self.left = left
        self.until = until


class Drains:
    """The drains of a worker. `len` is their number."""

    def __init__(self) -> None:
        self._running: dict[Exchange, _Drain] = {}

    def __len__(self) -> int:
        return len(self._running)

    def take(self, exchange: Exchange) -> bool:
        """Whether this exchange is read on from now on."""
        plan = exchange.plan
        if plan is None or plan.informs:
            return False
        settings = plan.pool.settings
        if settings.on_disconnect != "drain" or not exchange.drains:
            return False
        name = settings.name
        if sum(drain.upstream == name for drain in self._running.values()) >= settings.max_drains:
            return False
        until = clock.monotonic() + settings.drain_timeout
        self._running[exchange] = _Drain(name, settings.max_drain_bytes, until)
        return True

    def goes_on(self, exchange: Exchange, size: int) -> bool:
        """So many bytes more have come: whether that is not too much."""
        drain = self._running[exchange]
        drain.left -= size
        return drain.left >= 0

    def over(self, exchange: Exchange) -> None:
        """It has ended."""
        self._running.pop(exchange, None)

    def tick(self) -> None:
        """Once a second: stop those that take too long, and charge the others for what has come."""
        now = clock.monotonic()
        for exchange, drain in list(self._running.items()):
            if now > drain.until:
                exchange.stop_draining()
            else:
                exchange.overdue(now)

    def end(self) -> None:
        """Stop all: the worker ends."""
        for exchange in list(self._running):
            exchange.stop_draining()
