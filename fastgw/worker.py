"""One gateway process: builds every room, joins them, runs them, ends them in order.

The only module that knows every class. Start: store, settlement, admin port, then the data port, so
that whoever can connect is served. End: stop listening and report not ready; let running exchanges
finish within `drain_timeout`; settle what is pending; close. Who calls for the end is `service` or,
where there are several workers, `child`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from typing import TYPE_CHECKING, Any

import fastgw
from fastgw import clock, tasks
from fastgw.access_log import AccessLog
from fastgw.admin.aggregate import AccountRow, account_samples, worker_row
from fastgw.admin.server import AdminServer, Views
from fastgw.bookkeeping import open_book, settle_orphans
from fastgw.config.heap import keep_what_is_freed, let_go
from fastgw.downstream import listener
from fastgw.downstream.connection import DownstreamConnection
from fastgw.downstream.connections import LAST_WORDS, Connections
from fastgw.engine import Engine
from fastgw.errors import StoreUnavailable
from fastgw.flow_control import Spread, Sweeper
from fastgw.metrics import Metrics, Sample
from fastgw.plan import Planner
from fastgw.policy.ledger import MOST
from fastgw.policy.tallies import Tallies
from fastgw.policy.window import USAGE_KEYS
from fastgw.recorder import Recorder
from fastgw.reports import standing_rows
from fastgw.settlement import Settlement
from fastgw.store import open_store
from fastgw.upstream.pool import Pool
from fastgw.usage.vocabulary import names, want, warm
from fastgw.usage_report import usage_rows

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from fastgw.config.tables import Config, Upstream
    from fastgw.exposition import Numbers
    from fastgw.model import Standing
    from fastgw.policy.account import Account, Count

log = logging.getLogger(__name__)

PACES = {"sqlite": 0.02, "memory": 0.0}
REDIS_PACE = 0.005
"""Seconds between two calls of a store at least, unless somebody waits for its answer. A commit of
SQLite costs 20 times a debit, and its thread takes the interpreter from the loop some ten times; an
EVALSHA costs 70 us with both its ends, however few debits it carries."""

SETTLE_AT_END = 6.0
"""Seconds that a stop goes on trying to settle what is pending."""

WARN_SLICE = 10_000
"""Accounts that are looked at in a second for `warn_at`: some 3 ms."""

FILES_OF_OUR_OWN = 100


class Worker:
    """See the module. `start`, then `stop`."""

    def __init__(
        self,
        config: Config,
        *,
        sockets: Sequence[socket.socket] = (),
        admin: socket.socket | None = None,
        generation: int = 1,
        supervised: bool = False,
    ) -> None:
        """`sockets` and `admin`: listening sockets to use instead of those that `config` names.
        `generation` counts configurations. `supervised`: one of several; the supervisor answers
        the admin port."""
        self.config = config
        self._given = tuple(sockets)
        self._admin_socket = admin
        self._supervised = supervised
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
        self._ledger, self._journal = open_book(config.store, self._store)
        self._orphans: asyncio.Task[None] | None = None
        usage = config.usage
        self._tallies = (
            Tallies(self._ledger, usage.retention, usage.max_series) if usage.enabled else None
        )
        self._metrics = Metrics(config.metrics, fastgw.__version__)
        self._access_log = AccessLog(config.access_log.path)
        self._pools = {
            upstream.name: Pool(upstream, self._sweeper, config.server.buffer_size)
            for upstream in config.upstreams
        }
        self._retired: list[Pool] = []
        self._vocabularies = 0  # that are in memory, as far as was told
        self._planner = Planner(config, self._ledger, self._pools, generation)
        self._recorder: Recorder | None = None
        self._tls: ssl.SSLContext | None = None
        self._settlement: Settlement | None = None
        self._engine: Engine | None = None
        self._admin: AdminServer | None = None
        self._servers: list[asyncio.Server] = []
        self._ready = False
        self._stopping = False
        self._at_once = False
        self._tick: asyncio.TimerHandle | None = None
        self._to_look_at: list[Account] = []
        """Accounts that `warn_at` was not looked for since the list was made."""

    async def start(self) -> None:
        """Open the store and listen. Raises OSError where an address cannot be had, and
        StoreUnavailable where the store cannot be used and `on_failure` is not local or open."""
        config = self.config
        _want_files(config)
        keep_what_is_freed()
        sockets = list(self._given)
        try:
            if not sockets:
                sockets += [listener.bind(address) for address in config.server.listen]
            opened = await self._open_store()
            (warm if _counts_always(config) else want)(_models(config))
            self._vocabularies = len(names())
            pace = PACES.get(config.store.url.partition(":")[0], REDIS_PACE)
            settlement = self._settlement = Settlement(
                self._ledger, self._store, pace=pace, series=self._metrics.store, opened=opened
            )
            settlement.start()
            if self._journal is not None:
                self._orphans = tasks.spawn(settle_orphans(config.store), "orphans")
            recorder = self._recorder = Recorder(
                self._metrics, self._access_log, self._planner, self._tallies, self._sweeper.turn
            )
            engine = self._engine = Engine(
                config, self._planner, self._ledger, settlement, recorder
            )
            self._metrics.add_source(self._samples)
            if not self._supervised:
                self._metrics.add_source(self._samples_alone)
            self._access_log.start()
            self._sweeper.start()
            self._turn()
            if not self._supervised and (config.admin.listen or self._admin_socket is not None):
                self._admin = AdminServer(
                    config.admin.listen,
                    config.admin.token,
                    Views(
                        metrics=self._scrape,
                        ready=self.readiness,
                        status=self._status_alone,
                        budgets=self._budgets,
                        usage=self._usage,
                    ),
                )
                await self._admin.start(self._admin_socket)
                self.admin_address = self._admin.address
            self._tls = listener.tls_context(config.server)
            sweeper, connections = self._sweeper, self._connections

            def connection() -> DownstreamConnection:
                return DownstreamConnection(engine, self.config.server, sweeper, connections)

            for sock in sockets:
                self._servers.append(
                    await listener.serve(sock, connection, self._tls, config.server.header_timeout)
                )
                self.addresses.append(listener.name_of(sock))
        except BaseException:
            for sock in sockets:
                sock.close()
            await self._close()
            raise
        self._ready = True

    async def _open_store(self) -> bool:
        """Whether it is there. A server may come later; a file that cannot be opened is raised."""
        try:
            await self._store.open()
        except StoreUnavailable as error:
            if not self._store.remote:
                raise
            log.error(
                "store away at start: %s; going on with on_failure = %s",
                error,
                self.config.store.on_failure,
            )
            return False
        return True

    async def stop(self) -> None:
        """Drain, settle, close."""
        self._stopping = True
        self._ready = False
        for server in self._servers:
            server.close()
        await self._connections.drain(0 if self._at_once else self.config.server.drain_timeout)
        await self._close()

    def hurry(self) -> None:
        """Cut the exchanges that a stop waits for, or will wait for; what they cost is debited."""
        self._at_once = True
        if self._stopping:
            self._connections.cut()
            asyncio.get_running_loop().call_later(LAST_WORDS, self._connections.cut)

    # reload

    async def reload(self, config: Config) -> None:
        """Serve new requests by `config`; what runs goes on by the old one. Settings that need a
        restart must be the same (config.reload). The access log file is opened again.

        Raises OSError (ssl.SSLError is one) and has changed nothing then.
        """
        engine, recorder, old = self._engine, self._recorder, self._planner
        old_keys: list[Any] = list(self.config.keys)
        assert engine is not None
        assert recorder is not None
        listener.tls_context(config.server)
        _want_files(config)
        pools = {upstream.name: self._pool(config, upstream) for upstream in config.upstreams}
        planner = await asyncio.to_thread(Planner, config, self._ledger, pools, old.generation + 1)
        access_log = self._access_log
        if config.access_log.path == self.config.access_log.path:
            access_log.reopen()
        else:
            access_log = AccessLog(config.access_log.path)
            access_log.start()
        # Nothing fails from here on.
        if self._tls is not None:
            self._tls.load_cert_chain(config.server.tls_cert, config.server.tls_key)
        refusals = {rule.limit.name: rule.limit.refusals for rule in old.rules}
        for rule in planner.rules:
            rule.limit.refusals = refusals.get(rule.limit.name, 0)
        for name, pool in self._pools.items():
            if pools.get(name) is not pool:
                pool.retire()
                self._retired.append(pool)
        self._pools, self._planner, self.config = pools, planner, config
        engine.use(config, planner)
        heads = self._connections.heads.let_go()
        recorder.use(planner, access_log)
        if self._admin is not None:
            self._admin.use_token(config.admin.token)
        if access_log is not self._access_log:
            closing, self._access_log = self._access_log, access_log
            access_log.dropped += closing.dropped
            await closing.close()
        old_keys += old.keyring.let_go()
        del old
        await asyncio.to_thread(let_go, heads)
        await asyncio.to_thread(let_go, old_keys)

    def _pool(self, config: Config, upstream: Upstream) -> Pool:
        """The pool that serves this upstream already, or a new one; what `ca_file` holds may have
        changed."""
        have = self._pools.get(upstream.name)
        size = config.server.buffer_size
        if have is not None and have.settings == upstream and not upstream.ca_file:
            have.buffer_size = size
            return have
        return Pool(upstream, self._sweeper, size)

    async def _close(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
        self._sweeper.stop()
        self._overdue.stop()
        if self._engine is not None:
            self._engine.drains.end()
        for pool in (*self._pools.values(), *self._retired):
            pool.abort()
        if self._orphans is not None:
            self._orphans.cancel()
            await asyncio.wait({self._orphans}, timeout=1)
        if self._recorder is not None:
            self._recorder.flush()
        if self._tallies is not None:
            self._tallies.flush()
        if self._settlement is not None:
            if not await self._settlement.close(SETTLE_AT_END):
                self.unsettled = True
                log.error(
                    "ended with %d accounts unsettled, the store is away; %s",
                    self._ledger.pending,
                    "the journal keeps them" if self._journal is not None else "they are lost",
                )
        if self._admin is not None:
            await self._admin.close()
        await self._access_log.close()
        await self._store.close()
        if self._journal is not None:
            self._journal.close()

    def _turn(self) -> None:
        """Once a second: what needs no precision."""
        self._tick = asyncio.get_running_loop().call_later(1.0, self._turn)
        now = clock.monotonic()
        for pool in (*self._pools.values(), *self._retired):
            pool.expire(now)
        self._retired = [pool for pool in self._retired if not pool.quiet]
        self._overdue.over(self._connections.all)
        if self._engine is not None:
            self._engine.drains.tick()
        self._metrics.fold()
        for name in names()[self._vocabularies :]:
            self._vocabularies += 1
            log.info("vocabulary %s loaded, for a text whose tokens nobody reported", name)
        self._warn()
        if self._tallies is not None and self._settlement is not None:
            self._tallies.refresh(clock.wall())
            self._settlement.wake()

    def _cut_overdue(self, connections: Sequence[DownstreamConnection]) -> None:
        now = clock.monotonic()
        for connection in connections:
            exchange = connection.exchange
            if exchange is not None:
                exchange.overdue(now)

    def _warn(self) -> None:
        """Look at some of the accounts, the others in the next seconds."""
        if not any(rule.limit.warn_at for rule in self._planner.rules):
            return
        if not self._to_look_at:
            self._to_look_at = self._ledger.accounts()
        some = self._to_look_at[-WARN_SLICE:]
        del self._to_look_at[-WARN_SLICE:]
        for account in some:
            limit = account.limit
            if limit.warn_at and account.warned_at != account.start:
                if account.count.spent >= limit.warn_at * limit.amount:
                    account.warned_at = account.start
                    log.warning(
                        "budget %s %s: %s of %s used",
                        limit.name,
                        account.values,
                        limit.words(account.count.spent),
                        limit.words(limit.amount),
                    )

    # what the operator sees

    def readiness(self) -> tuple[bool, str]:
        """Whether this worker serves, and why not in a word."""
        if not self._ready:
            return False, "draining" if self._stopping else "starting"
        settlement = self._settlement
        away = settlement is not None and not settlement.up
        if away and self.config.store.on_failure == "closed":
            return False, "store away"
        return True, "ready"

    def alive(self, within: float) -> bool:
        """Whether the loop turns: who can ask sees that it does."""
        return True

    def add_source(self, sampler: Callable[[], Iterable[Sample]]) -> None:
        """Show these samples among the metrics, too."""
        self._metrics.add_source(sampler)

    def changes(self) -> Numbers:
        """What the metrics have to tell a supervisor since the last call."""
        return self._metrics.changes()

    async def _status_alone(self) -> dict[str, Any]:
        status = self.status()
        state = "ready" if self._ready else "draining"
        return status | {"restarts": 0, "workers": [worker_row(1, state, os.getpid(), status)]}

    def status(self) -> dict[str, Any]:
        """What /api/status shows of this worker."""
        settlement = self._settlement
        return {
            "version": fastgw.__version__,
            "uptime_seconds": round(clock.wall() - self._began, 3),
            "pid": os.getpid(),
            "config": self.config.digest,
            "listen": self.addresses,
            "connections": len(self._connections.all),
            "exchanges": sum(1 for each in self._connections.all if each.exchange is not None),
            "tasks": len(asyncio.all_tasks()),
            "drains": len(self._engine.drains) if self._engine is not None else 0,
            "body_memory": self._engine.held if self._engine is not None else 0,
            "upstreams": {name: pool.counts for name, pool in self._pools.items()},
            "store": {
                "url": self.config.store.url.partition(":")[0],
                "up": settlement is not None and settlement.up,
                "debits_pending": self._ledger.pending,
                "held": self._ledger.held,
                "journal": self._journal is not None,
            },
            "keys": len(self.config.keys),
            "budgets": len(self.config.budgets),
        }

    async def _budgets(self) -> list[dict[str, Any]]:
        ledger, store = self._ledger, self._store
        found, owed = await _with_owed(
            lambda: [account.count for account in ledger.accounts()], store.accounts
        )
        return standing_rows(found, owed, self.config.budgets, clock.wall())

    async def _usage(self, by: Sequence[str], since: float) -> list[dict[str, Any]]:
        ledger, store = self._ledger, self._store
        found, owed = await _with_owed(
            lambda: ledger.counts_of(USAGE_KEYS), lambda: store.accounts(usage=True)
        )
        used = {key: standing.used for key, standing in found.items()}
        for key, amount in owed.items():
            used[key] = used.get(key, 0) + amount
        return usage_rows(used, self.config.keys, by, since)

    def _samples(self) -> Iterable[Sample]:
        yield Sample("downstream_connections", (), len(self._connections.all))
        yield Sample("downstream_connections_refused_total", (), self._connections.refused)
        for name, pool in self._pools.items():
            for state, number in pool.counts.items():
                yield Sample("upstream_connections", (name, state), number)
        for rule in self._planner.rules:
            yield Sample("budget_refusals_total", (rule.limit.name,), rule.limit.refusals)
        yield Sample("access_log_dropped_total", (), self._access_log.dropped)
        yield Sample("debits_pending", (), self._ledger.pending)
        yield Sample("holds", (), self._ledger.held)
        yield Sample("store_losses_total", (), self._ledger.lost)
        yield Sample("journal_up", (), int(self._journal is not None and not self._journal.full))
        yield Sample("store_up", (), int(self._settlement is not None and self._settlement.up))

    async def _scrape(self) -> bytes:
        return await self._metrics.render(account_samples(self.account_rows()))

    def _samples_alone(self) -> Iterable[Sample]:
        yield Sample("workers", ("ready" if self._ready else "draining",), 1)
        yield Sample("worker_restarts_total", (), 0)

    def account_rows(self) -> list[AccountRow]:
        """Accounts of the budgets that are configured, as this worker knows them; as many as
        metrics may show, and all that owe the store something."""
        now = clock.wall()
        limits = {rule.limit.name: rule.limit for rule in self._planner.rules}
        rows: list[AccountRow] = []
        most = self.config.metrics.max_series
        for account in self._ledger.accounts():
            count = account.count
            if len(rows) >= most and not (count.pending or count.sent):
                continue
            limit = limits.get(account.limit.name)
            if limit is None:
                continue
            if (limit.unit, limit.window.name) != (account.limit.unit, account.limit.window.name):
                continue  # of the configuration before; a request makes it anew
            live = now < account.end
            rows.append(
                AccountRow(
                    limit.name,
                    ",".join(account.values),
                    count.key if live else "",
                    limit.amount,
                    count.used if live else 0,
                    min(count.spent - count.used, MOST) if live else 0,
                    max(0.0, count.known_at),
                    limit.unit,
                    self._ledger.writer,
                    self._ledger.sequence,
                    count.sent if live else 0,
                )
            )
        return rows


async def _with_owed(
    counts: Callable[[], Iterable[Count]],
    read: Callable[[], Awaitable[dict[str, Standing]]],
) -> tuple[dict[str, Standing], dict[str, int]]:
    """What a store holds, and the debits of these counts that it lacks, by the key of the account.

    What was sent may be in it or not, and may have been answered while it was read: then what we
    know is the better number, as far as we know more.
    """
    owing = {count for count in counts() if count.pending or count.sent}
    found = await read()
    owing.update(count for count in counts() if count.pending or count.sent)
    owed = {}
    for count in owing:
        standing = found.get(count.key)
        used = standing.used if standing is not None else 0
        owed[count.key] = min(max(used, count.used + count.sent) + count.pending, MOST) - used
    return found, owed


def _models(config: Config) -> Iterator[str]:
    """Every model that the configuration names; patterns too, they show the family."""
    for upstream in config.upstreams:
        yield upstream.model
        yield from (upstream.model_aliases or {}).values()
    for key in config.keys:
        yield from key.allowed_models
    for route in config.routes:
        yield from route.models


def _counts_always(config: Config) -> bool:
    """Whether tokens are counted though the provider reports them: of prompts, under a hard cap,
    and of streams that a budget may cut."""
    return any(
        each.admission == "reserve" or each.unit == "parallel" or each.cutoff != "none"
        for each in config.budgets
    )


def _want_files(config: Config) -> None:
    """Raise the limit of open files to what all connections need, as far as it may go."""
    connections = config.server.max_connections
    connections += sum(upstream.max_connections for upstream in config.upstreams)
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
