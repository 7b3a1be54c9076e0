"""One gateway process: builds every room, joins them, runs them, ends them in order.

The only module that knows every class. Start: store, settlement, admin port, then the data port, so
that whoever can connect is served. End (SIGTERM, SIGINT): stop listening and report not ready; let
running exchanges finish within `drain_timeout`; settle what is pending; close.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import secrets
import signal
import socket
from typing import TYPE_CHECKING, Any

import fastgw
from fastgw import clock
from fastgw.access_log import AccessLog
from fastgw.admin.server import AdminServer, Views
from fastgw.downstream import listener
from fastgw.downstream.connection import Connections, DownstreamConnection
from fastgw.engine import Engine
from fastgw.errors import StoreUnavailable
from fastgw.flow_control import Spread, Sweeper
from fastgw.metrics import Metrics, Sample
from fastgw.plan import Planner
from fastgw.policy.ledger import Ledger
from fastgw.policy.window import read_account_key
from fastgw.recorder import Recorder
from fastgw.reports import budget_rows
from fastgw.settlement import Settlement
from fastgw.store import open_store
from fastgw.upstream.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastgw.config.tables import Config

log = logging.getLogger(__name__)

SQLITE_PACE = 0.02
"""Seconds between two SQLite commits at least: a commit costs 20 times a debit, and its thread
takes the interpreter from the loop some ten times."""

SETTLE_AT_END = 6.0
"""Seconds that a stop goes on trying to settle what is pending."""

FILES_OF_OUR_OWN = 100


class Worker:
    """See the module. `start`, then `run` until a signal, or `stop` from elsewhere."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.addresses: list[str] = []
        """Where the data port listens, after `start`."""
        self.admin_address = ""
        self.unsettled = False
        """After `stop`: debits were lost, since the store was away."""
        self._began = clock.wall()
        self._sweeper = Sweeper()
        self._connections = Connections()
        self._overdue = Spread(self._cut_overdue)
        self._store = open_store(config.store)
        writer = f"{socket.gethostname()[:32]}:{os.getpid()}:{secrets.token_hex(6)}"
        staleness = config.store.max_staleness if self._store.shared else float("inf")
        self._ledger = Ledger(writer, staleness)
        self._metrics = Metrics(config.metrics, fastgw.__version__)
        self._access_log = AccessLog(config.access_log.path)
        self._pools = {
            upstream.name: Pool(upstream, self._sweeper, config.server.buffer_size)
            for upstream in config.upstreams
        }
        self._planner = Planner(config, self._ledger, self._pools, 1)
        self._settlement: Settlement | None = None
        self._engine: Engine | None = None
        self._admin: AdminServer | None = None
        self._servers: list[asyncio.Server] = []
        self._stopping = asyncio.Event()
        self._ready = False
        self._tick: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Open the store and listen. Raises OSError where an address cannot be had, and
        StoreUnavailable where the store cannot be used and `on_failure` is not local or open."""
        config = self.config
        _want_files(
            config.server.max_connections
            + sum(upstream.max_connections for upstream in config.upstreams)
        )
        sockets = [listener.bind(address) for address in config.server.listen]
        try:
            await self._open_store()
            pace = SQLITE_PACE if config.store.url.startswith("sqlite:") else 0.0
            settlement = self._settlement = Settlement(
                self._ledger, self._store, pace=pace, series=self._metrics.store
            )
            settlement.start()
            recorder = Recorder(self._metrics, self._access_log, self._planner)
            engine = self._engine = Engine(
                config, self._planner, self._ledger, settlement, recorder
            )
            self._metrics.add_source(self._samples)
            self._access_log.start()
            self._sweeper.start()
            self._turn()
            if config.admin.listen:
                self._admin = AdminServer(
                    config.admin.listen,
                    config.admin.token,
                    Views(
                        metrics=self._metrics.render,
                        ready=self._readiness,
                        status=self._status,
                        budgets=self._budgets,
                    ),
                )
                await self._admin.start()
                self.admin_address = self._admin.address
            tls = listener.tls_context(config.server)
            server_settings, sweeper, connections = config.server, self._sweeper, self._connections

            def connection() -> DownstreamConnection:
                return DownstreamConnection(engine, server_settings, sweeper, connections)

            for sock in sockets:
                self._servers.append(
                    await listener.serve(sock, connection, tls, server_settings.header_timeout)
                )
                self.addresses.append(listener.name_of(sock))
        except BaseException:
            for sock in sockets:
                sock.close()
            await self._close()
            raise
        self._ready = True

    async def _open_store(self) -> None:
        try:
            await self._store.open()
        except StoreUnavailable as error:
            if not self._store.shared or self.config.store.url.startswith("sqlite:"):
                raise
            log.error(
                "store away at start: %s; going on with on_failure = %s",
                error,
                self.config.store.on_failure,
            )

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._access_log.reopen)
        await self._stopping.wait()
        await self.stop()

    async def stop(self) -> None:
        """Drain, settle, close."""
        self._ready = False
        for server in self._servers:
            server.close()
        await self._connections.drain(self.config.server.drain_timeout)
        await self._close()

    async def _close(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
        self._sweeper.stop()
        self._overdue.stop()
        for pool in self._pools.values():
            pool.abort()
        if self._settlement is not None:
            if not await self._settlement.close(SETTLE_AT_END):
                self.unsettled = True
                log.error(
                    "ended with %d accounts unsettled: the store is away", self._ledger.pending
                )
        if self._admin is not None:
            await self._admin.close()
        await self._access_log.close()
        await self._store.close()

    def _turn(self) -> None:
        """Once a second: what needs no precision."""
        self._tick = asyncio.get_running_loop().call_later(1.0, self._turn)
        now = clock.monotonic()
        for pool in self._pools.values():
            pool.expire(now)
        self._overdue.over(self._connections.all)
        self._metrics.fold()
        self._warn()

    def _cut_overdue(self, connections: Sequence[DownstreamConnection]) -> None:
        now = clock.monotonic()
        for connection in connections:
            exchange = connection.exchange
            if exchange is not None:
                exchange.overdue(now)

    def _warn(self) -> None:
        if not any(rule.limit.warn_at for rule in self._planner.rules):
            return
        for account in self._ledger.accounts():
            limit = account.limit
            if limit.warn_at and account.warned_at != account.start:
                if account.count.spent >= limit.warn_at * limit.amount:
                    account.warned_at = account.start
                    log.warning(
                        "budget %s %s: %d of %d %s used",
                        limit.name,
                        account.values,
                        account.count.spent,
                        limit.amount,
                        limit.unit,
                    )

    # what the operator sees

    def _readiness(self) -> tuple[bool, str]:
        if not self._ready:
            return False, "draining" if self._stopping.is_set() else "starting"
        settlement = self._settlement
        away = settlement is not None and not settlement.up
        if away and self.config.store.on_failure == "closed":
            return False, "store away"
        return True, "ready"

    def _status(self) -> dict[str, Any]:
        settlement = self._settlement
        return {
            "version": fastgw.__version__,
            "uptime_seconds": round(clock.wall() - self._began, 3),
            "pid": os.getpid(),
            "config": self.config.digest,
            "listen": self.addresses,
            "connections": len(self._connections.all),
            "exchanges": sum(1 for each in self._connections.all if each.exchange is not None),
            "body_memory": self._engine.held if self._engine is not None else 0,
            "upstreams": {name: pool.counts for name, pool in self._pools.items()},
            "store": {
                "url": self.config.store.url.partition(":")[0],
                "up": settlement is not None and settlement.up,
                "debits_pending": self._ledger.pending,
            },
            "keys": len(self.config.keys),
            "budgets": len(self.config.budgets),
        }

    async def _budgets(self) -> list[dict[str, Any]]:
        known = {
            account.count.key: account.count.spent - account.count.used
            for account in self._ledger.accounts()
        }
        used = await self._store.accounts()
        for key in known:
            used.setdefault(key, 0)
        merged = {key: value + known.get(key, 0) for key, value in used.items()}
        names = {name: value for key, value in merged.items() if (name := read_account_key(key))}
        return budget_rows(names, self.config.budgets, clock.wall())

    def _samples(self) -> Iterable[Sample]:
        yield Sample("downstream_connections", (), len(self._connections.all))
        yield Sample("downstream_connections_refused_total", (), self._connections.refused)
        for name, pool in self._pools.items():
            for state, number in pool.counts.items():
                yield Sample("upstream_connections", (name, state), number)
        now = clock.wall()
        for account in self._ledger.accounts():
            limit = account.limit
            labels = (limit.name, ",".join(account.values))
            used = account.count.spent if now < account.end else 0
            yield Sample("budget_limit", labels, limit.amount)
            yield Sample("budget_used", labels, used)
            yield Sample("budget_remaining", labels, max(0, limit.amount - used))
        for rule in self._planner.rules:
            yield Sample("budget_refusals_total", (rule.limit.name,), rule.limit.refusals)
        yield Sample("access_log_dropped_total", (), self._access_log.dropped)
        yield Sample("debits_pending", (), self._ledger.pending)
        yield Sample("store_up", (), int(self._settlement is not None and self._settlement.up))


def _want_files(connections: int) -> None:
    """Raise the limit of open files to what so many connections need, as far as it may go."""
    needed = connections + FILES_OF_OUR_OWN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= needed:
        if soft != resource.RLIM_INFINITY and soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    log.warning(
        "this process may open %d files, max_connections ask for %d: raise LimitNOFILE or lower it",
        hard,
        needed,
    )
