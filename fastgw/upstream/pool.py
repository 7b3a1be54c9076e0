"""The connections to one provider: every operation O(1).

Idle connections are a stack: the one used last is used next, so that under little load few stay
warm and the others run out. A connection that has waited longer than `keepalive_timeout` (or than
the provider said it would keep it) is not used. When `max_connections` are busy, requests wait in
order, for at most `connect_timeout`.

`acquire` decides at once; only a new connection takes the loop's help. A name is looked up in a
thread of its own, once for all connections that are made meanwhile: the loop has two threads for
that, and two look-ups in a name server that is silent would keep all other providers waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from fastgw import clock, tasks
from fastgw.compiled import mypyc_attr
from fastgw.upstream.connection import UpstreamConnection

if TYPE_CHECKING:
    from fastgw.config.tables import Upstream
    from fastgw.flow_control import Sweeper

log = logging.getLogger(__name__)

MAX_WAITING = 10_000

_NUMERIC: Final = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
_monotonic: Final = clock.monotonic


class Acquirer(Protocol):
    """Who waits for a connection."""

    def on_acquired(self, connection: UpstreamConnection) -> None:
        """Here it is."""

    def on_acquire_failure(self, reason: str) -> None:
        """None to be had: `refused`, `malformed`, `timeout` or `full`."""


@mypyc_attr(allow_interpreted_subclasses=True)  # by tests
class Pool:
    """The connections of a worker to one upstream."""

    def __init__(self, settings: Upstream, sweeper: Sweeper, buffer_size: int) -> None:
        self.settings = settings
        self.buffer_size = buffer_size
        parts = urlsplit(settings.base_url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context(cafile=settings.ca_file or None)
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._sweeper = sweeper
        self._idle: dict[UpstreamConnection, None] = {}  # a stack with O(1) removal
        self._waiting: OrderedDict[Ticket, None] = OrderedDict()  # a line with O(1) removal
        self._all: set[UpstreamConnection] = set()
        self._connecting = 0
        self._lookup: asyncio.Future[list[str] | str] | None = None  # under way
        self._closed = False
        self._retired = False

    @property
    def counts(self) -> dict[str, int]:
        """Connections by state, and requests that wait for one."""
        idle = len(self._idle)
        return {
            "idle": idle,
            "busy": len(self._all) - idle,
            "connecting": self._connecting,
            "waiting": len(self._waiting),
        }

    def acquire(self, acquirer: Acquirer, fresh: bool = False) -> UpstreamConnection | Ticket:
        """A connection at once, or a ticket: then `acquirer` is called later.

        `fresh` asks for a connection that was never used, for a repeat after a stale one.
        """
        idle = self._idle
        if idle and not fresh:
            now = _monotonic()
            while idle:
                connection, _ = idle.popitem()
                if now < connection.idle_until:
                    connection.reused = True
                    return connection
                connection.close()
        ticket = Ticket(acquirer, self._waiting)
        if len(self._all) + self._connecting < self.settings.max_connections:
            self._connecting += 1
            tasks.spawn(self._connect(ticket), f"connect {self.settings.name}")
        elif len(self._waiting) >= MAX_WAITING:
            asyncio.get_running_loop().call_soon(ticket.fail, "full")
        else:
            self._waiting[ticket] = None
            ticket.timer = asyncio.get_running_loop().call_later(
                self.settings.connect_timeout, ticket.fail, "full"
            )
        return ticket

    def adopt(self, connection: UpstreamConnection) -> None:
        """Take in a connection that was made elsewhere, as one that is free."""
        self._all.add(connection)
        self.release(connection, 0)

    def release(self, connection: UpstreamConnection, keep_for: int) -> None:
        """A connection whose exchange ended soundly."""
        if self._closed:
            connection.close()
            return
        if self._waiting:
            ticket, _ = self._waiting.popitem(last=False)
            connection.reused = True
            # In a turn of its own: the exchange that released is not done with its answer.
            asyncio.get_running_loop().call_soon(self._hand_over, ticket, connection)
            return
        if self._retired:
            connection.close()
            return
        timeout = self.settings.keepalive_timeout
        if keep_for:
            timeout = min(timeout, max(0.0, keep_for - 1.0))
        connection.idle_until = _monotonic() + timeout
        self._idle[connection] = None

    def _hand_over(self, ticket: Ticket, connection: UpstreamConnection) -> None:
        if not connection.open:
            if not ticket.done:
                self._waiting[ticket] = None  # it died meanwhile: the next one, or a new one
                self._waiting.move_to_end(ticket, last=False)
            self._serve_next()
        elif ticket.done:
            self.release(connection, 0)
        else:
            ticket.fulfil(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """A connection that is closed."""
        self._all.discard(connection)
        self._idle.pop(connection, None)
        if self._waiting:
            self._serve_next()

    def _serve_next(self) -> None:
        most = self.settings.max_connections
        while self._waiting and not self._closed and len(self._all) + self._connecting < most:
            ticket, _ = self._waiting.popitem(last=False)
            self._connecting += 1
            tasks.spawn(self._connect(ticket), f"connect {self.settings.name}")

    async def _connect(self, ticket: Ticket) -> None:
        reason = ""
        try:
            async with asyncio.timeout(self.settings.connect_timeout):
                connection = await self._open()
        except TimeoutError:
            reason = "timeout"
        except Exception as error:
            reason = "refused"
            log.warning("upstream %s: cannot connect: %s", self.settings.name, error)
        finally:
            self._connecting -= 1
        if reason:
            ticket.fail(reason)
            self._serve_next()
            return
        if not connection.open:
            ticket.fail("malformed")  # it spoke before it was asked
            self._serve_next()
        elif ticket.done or self._closed:
            self.adopt(connection)
            ticket.fail("refused")
        else:
            self._all.add(connection)
            ticket.fulfil(connection)

    async def _open(self) -> UpstreamConnection:
        """A connection to the first of the provider's addresses that takes one."""
        loop = asyncio.get_running_loop()
        failure = OSError("the name has no address")
        for address in await self._addresses():
            try:
                _, connection = await loop.create_connection(
                    lambda: UpstreamConnection(self, self._sweeper),
                    address,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls is not None else None,
                )
            except OSError as error:
                failure = error
            else:
                return connection
        raise failure

    async def _addresses(self) -> list[str]:
        try:
            ipaddress.ip_address(self._host)
        except ValueError:
            pass
        else:
            return [self._host]
        if self._lookup is None:
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._look_up, args=(loop,), daemon=True).start()
            self._lookup = loop.create_future()
        found = await asyncio.shield(self._lookup)  # whose patience ends leaves it to the others
        if isinstance(found, str):
            raise OSError(found)
        return found

    def _look_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: ask for the name, which may take longer than anybody waits."""
        found: list[str] | str
        try:
            entries = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            # of an address that is local to a link the entry has the link apart
            names = [socket.getnameinfo(entry[4], _NUMERIC)[0] for entry in entries]
            found = list(dict.fromkeys(names))
        except Exception as error:  # a name that cannot be encoded raises UnicodeError
            found = str(error)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._looked_up, found)

    def _looked_up(self, found: list[str] | str) -> None:
        """Addresses, or why there are none."""
        lookup, self._lookup = self._lookup, None
        if lookup is not None:
            lookup.set_result(found)

    def expire(self, now: float) -> None:
        """Close connections that waited too long; `now` in monotonic seconds."""
        for connection in [each for each in self._idle if now >= each.idle_until]:
            connection.close()

    def retire(self) -> None:
        """Keep no connection any more; exchanges that know the pool are served to their end."""
        self._retired = True
        for connection in list(self._idle):
            connection.close()

    @property
    def quiet(self) -> bool:
        """Whether it has neither a connection nor anybody who waits for one."""
        return not (self._all or self._connecting or self._waiting)

    def close(self) -> None:
        """Close the idle ones now, the busy ones as their exchanges end."""
        self._closed = True
        for connection in list(self._idle):
            connection.close()

    def abort(self) -> None:
        """Close all now."""
        self.close()
        for connection in list(self._all):
            connection.close()


class Ticket:
    """A place in `line`, which it leaves as it is done. `cancel` when the client is gone."""

    __slots__ = ("_acquirer", "_line", "done", "timer")

    def __init__(self, acquirer: Acquirer, line: OrderedDict[Ticket, None]) -> None:
        self._acquirer: Acquirer | None = acquirer
        self._line = line
        self.done = False
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.done = True
        self._acquirer = None
        self._line.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()

    def fulfil(self, connection: UpstreamConnection) -> None:
        """Hand the connection over."""
        acquirer = self._acquirer
        self.cancel()
        if acquirer is not None:
            acquirer.on_acquired(connection)

    def fail(self, reason: str) -> None:
        """None to be had."""
        acquirer = self._acquirer
        self.cancel()
        if acquirer is not None:
            acquirer.on_acquire_failure(reason)
