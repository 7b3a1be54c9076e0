"""The client connections of a worker: how many there may be, and how they end with it."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from fastgw.http1.request import HeadCache

if TYPE_CHECKING:
    from fastgw.downstream.connection import DownstreamConnection

_LOOKED_AT = 64
"""Connections that are looked at for an idle one when there is no room for another."""
LAST_WORDS = 1.0
"""Seconds that a client has to take what it is told as it is cut."""
_CUT_TIMEOUT = 5.0
"""An aborted connection is gone within a few turns of the loop; this is a net below that."""


class Connections:
    """The open connections of a worker, and whether it drains."""

    def __init__(self) -> None:
        self.all: set[DownstreamConnection] = set()
        self.draining = False
        self.heads = HeadCache()
        self.refused = 0
        """Connections closed at once because there was no room."""
        self._empty = asyncio.Event()

    def add(self, connection: DownstreamConnection) -> None:
        """A connection opened."""
        self.all.add(connection)

    def discard(self, connection: DownstreamConnection) -> None:
        """A connection closed."""
        self.all.discard(connection)
        if not self.all:
            self._empty.set()

    def has_room(self, limit: int) -> bool:
        """Whether one more may open. A full house gives up one that waits between two requests, as
        nginx does: who holds connections open does not keep others out."""
        if len(self.all) < limit:
            return True
        for connection in itertools.islice(self.all, _LOOKED_AT):
            if connection.give_way():
                return True
        self.refused += 1
        return False

    async def drain(self, within: float) -> None:
        """Close those that wait for a request, the others after their answer; cut what is left
        after `within` seconds. Returns when all are gone: each exchange has had its end."""
        self.draining = True
        for connection in list(self.all):
            connection.drain()
        if not await self._gone(within):
            self.cut()
            if not await self._gone(LAST_WORDS):
                self.cut()
                await self._gone(_CUT_TIMEOUT)

    def cut(self) -> None:
        """End what runs, and tell whom it ends. The second time: those who did not take that."""
        for connection in list(self.all):
            connection.shut_down()

    async def _gone(self, within: float) -> bool:
        if self.all:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), within)
            except TimeoutError:
                return False
        return True
