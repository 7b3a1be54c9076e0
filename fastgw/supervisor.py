"""Several workers on one port: starts them, keeps them running, reloads and ends them.

Each worker is a fresh process that gets the configuration this one has checked, so all serve by the
same text whatever happens to the file. TCP ports are reserved here and bound by each worker with
SO_REUSEPORT: the kernel deals new connections out. Unix sockets, and sockets that systemd passed,
are opened once and inherited.

A worker is `starting`, then `ready`, then `draining`; `waiting` when it ended and will be started
again, after a pause that doubles from FIRST_PAUSE to LAST_PAUSE and begins anew once a worker has
run for RAN_WELL. When none is ready and one has failed to get ready MAX_FAILURES times in a row,
the supervisor gives up.

The admin port is answered here. Workers are asked once a second, and at a scrape.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from typing import TYPE_CHECKING, Any

import fastgw
from fastgw import clock, tasks
from fastgw.admin.aggregate import (
    ProcessSums,
    Totals,
    age,
    exposition,
    owed_beside,
    sum_status,
    worker_row,
)
from fastgw.admin.server import AdminServer, Views
from fastgw.control import Packed, Reload, Start
from fastgw.downstream import listener
from fastgw.member import Member
from fastgw.metrics import Metrics, Sample
from fastgw.reports import standing_rows
from fastgw.store import open_store
from fastgw.usage_report import usage_rows

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Sequence

    from fastgw.config.tables import Config
    from fastgw.exposition import Numbers
    from fastgw.store.base import Sequences, Store
    from fastgw.systemd import Passed

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
LAST_PAUSE = 10.0
RAN_WELL = 10.0
MAX_FAILURES = 5
BOOT_TIMEOUT = 60.0
"""Seconds in which a worker must get ready."""
ANSWER_WITHIN = 0.5
"""Seconds that a scrape waits for workers; of one that hangs, its last word counts."""
LOST_AFTER = 10.0
"""Seconds of silence after which a worker does not count as ready."""
RELOAD_WITHIN = 5.0
END_MARGIN = 15.0
"""Seconds beyond `drain_timeout` that a worker may take to settle and end; then it is killed."""


class Supervisor:
    """See the module. A `service.Runner`."""

    def __init__(self, config: Config, workers: int, passed: Passed, pulse: float) -> None:
        """`passed`: sockets of systemd, used instead of `listen`. `pulse`: seconds between two
        questions to the workers."""
        self.config = config
        self.addresses: list[str] = []
        self.admin_address = ""
        self.unsettled = False
        self.on_giving_up: Callable[[str], None] = lambda reason: None
        self._passed = passed
        self._pulse = pulse
        self._began = clock.monotonic()
        self._generation = 1
        self._packed = Packed.of(config)
        self._restarts = 0
        self._stopping = False
        self._at_once = False
        self._members = [Member(number + 1, self) for number in range(workers)]
        self._up = asyncio.Event()
        self._all_ended = asyncio.Event()
        self._reserved: list[socket.socket] = []
        self._inherited: list[socket.socket] = []
        self._bound: tuple[str, ...] = ()
        self._totals = Totals()
        self._metrics = Metrics(config.metrics, fastgw.__version__)
        self._samplers: list[Callable[[], Iterable[Sample]]] = [self._samples]
        self._admin: AdminServer | None = None
        self._store: Store | None = None
        self._timer: asyncio.TimerHandle | None = None

    # what the service asks for

    async def start(self) -> None:
        """Bind, start the workers, return when each was ready or failed once and one is ready.
        Raises OSError where an address cannot be had."""
        config = self.config
        if self._passed.data:
            self._inherited += self._passed.data
        else:
            self._bind(config.server.listen)
        self.addresses = [listener.name_of(s) for s in (*self._reserved, *self._inherited)]
        if config.admin.listen or self._passed.admin is not None:
            views = Views(self._scrape, self._readiness, self._status, self._budgets, self._usage)
            admin = self._admin = AdminServer(config.admin.listen, config.admin.token, views)
            await admin.start(self._passed.admin)
            self.admin_address = admin.address
        for member in self._members:
            self._spawn(member)
        self._turn()
        await self._up.wait()

    def _bind(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            if address.startswith("unix:"):
                self._inherited.append(listener.bind(address))
            else:
                self._reserved.append(listener.reserve(address))
        self._bound = tuple(map(listener.name_of, self._reserved))

    async def reload(self, config: Config) -> None:
        """Hand `config` to every worker. Raises OSError if one could not use it; then all have the
        old one again."""
        before = self.config
        if failed := await self._distribute(config):
            await self._distribute(before)
            raise OSError("; ".join(failed))
        if self._admin is not None:
            self._admin.use_token(config.admin.token)

    async def _distribute(self, config: Config) -> list[str]:
        """Let all workers, and those to come, serve by `config`; what went wrong."""
        self._packed = await asyncio.to_thread(Packed.of, config)
        self.config = config
        self._generation += 1
        asked = [member for member in self._members if member.state == "ready"]
        for member in asked:
            self._hand_over(member)
        errors = [
            (member.number, await member.reloaded(self._generation, RELOAD_WITHIN))
            for member in asked
        ]
        return [f"worker {number}: {error}" for number, error in errors if error]

    def _hand_over(self, member: Member) -> None:
        member.order(Reload(self._generation, self._packed))

    async def stop(self) -> None:
        """Drain all workers, end them, and close."""
        self._stopping = True
        for member in self._members:
            member.stop(self._at_once)
        self._look_if_all_ended()
        try:
            async with asyncio.timeout(self.config.server.drain_timeout + END_MARGIN):
                await self._all_ended.wait()
        except TimeoutError:
            for member in self._members:
                if member.running:
                    log.error("worker %d does not end; killed", member.number)
                    member.kill()
            await self._all_ended.wait()
        if self._timer is not None:
            self._timer.cancel()
        if self._admin is not None:
            await self._admin.close()
        if self._store is not None:
            await self._store.close()
        for sock in (*self._reserved, *self._inherited):
            sock.close()

    def hurry(self) -> None:
        """Cut what still runs; the next time, kill."""
        for member in self._members:
            if self._at_once and member.running:
                member.kill()
            elif self._stopping:
                member.stop(at_once=True)
        self._at_once = True

    def alive(self, within: float) -> bool:
        """Whether every worker that serves answered within so many seconds."""
        now = clock.monotonic()
        return all(
            now - member.answered_at < within
            for member in self._members
            if member.state in ("ready", "draining")
        )

    def add_source(self, sampler: Callable[[], Iterable[Sample]]) -> None:
        """Show these samples among the metrics, too."""
        self._samplers.append(sampler)

    # workers

    def _spawn(self, member: Member) -> None:
        files = tuple(sock.fileno() for sock in self._inherited)
        order = Start(
            fastgw.__version__, member.number, self._generation, self._packed, self._bound, files
        )
        tasks.spawn(member.start(order), f"worker {member.number}")

    def _turn(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._pulse, self._turn)
        for member in self._members:
            if member.state == "starting" and age(member.began) > BOOT_TIMEOUT:
                log.error("worker %d is not ready after %d s", member.number, BOOT_TIMEOUT)
                member.kill()
            elif member.state in ("ready", "draining"):
                member.ask(accounts=False)

    def on_ready(self, member: Member) -> None:
        """Called by a member: it serves."""
        if member.generation != self._generation:
            self._hand_over(member)  # the configuration changed while it started
        self._look_if_up()

    def on_numbers(self, member: Member, numbers: Numbers) -> None:
        """Called by a member: it told what it counted."""
        self._totals.tell(member.number, numbers)

    def on_end(self, member: Member, how: str, ran: float) -> None:
        """Called by a member: its process is gone, after `ran` seconds of being ready."""
        self._totals.bury(member.number)
        self.unsettled = self.unsettled or member.unsettled
        if self._stopping:
            self._look_if_all_ended()
            return
        if ran >= RAN_WELL:
            member.pause = 0.0
        member.failures = 0 if ran else member.failures + 1
        member.pause = min(LAST_PAUSE, member.pause * 2 or FIRST_PAUSE)
        log.error(
            "worker %d ended (%s); starting it again in %.1f s", member.number, how, member.pause
        )
        if member.failures >= MAX_FAILURES and not any(
            each.state == "ready" for each in self._members
        ):
            self._stopping = True
            self.on_giving_up(
                f"no worker can start: {MAX_FAILURES} attempts in a row failed; "
                "the lines above say why"
            )
            return
        self._look_if_up()
        member.timer = asyncio.get_running_loop().call_later(member.pause, self._restart, member)

    def _restart(self, member: Member) -> None:
        member.timer = None
        if not self._stopping:
            self._restarts += 1
            self._spawn(member)

    def _look_if_up(self) -> None:
        tried = all(member.state == "ready" or member.failures for member in self._members)
        if tried and any(member.state == "ready" for member in self._members):
            self._up.set()

    def _look_if_all_ended(self) -> None:
        if not any(member.running for member in self._members):
            self._all_ended.set()

    # what the operator sees

    def _readiness(self) -> tuple[bool, str]:
        """Ready when one worker at least is: then whoever connects is served."""
        if self._stopping:
            return False, "draining"
        now = clock.monotonic()
        said = [
            member.ready
            for member in self._members
            if member.state == "ready" and now - member.answered_at < LOST_AFTER
        ]
        return max(said, default=(False, "starting"))

    async def _ask_all(self, *, accounts: bool = False) -> None:
        waiting = [
            tasks.spawn(member.answer(accounts), f"worker {member.number} answers")
            for member in self._members
            if member.state in ("ready", "draining")
        ]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=ANSWER_WITHIN)
            for task in late:
                task.cancel()

    def _samples(self) -> Iterable[Sample]:
        for state in ("starting", "ready", "draining", "waiting"):
            number = sum(1 for member in self._members if member.state == state)
            yield Sample("workers", (state,), number)
        yield Sample("worker_restarts_total", (), self._restarts)

    async def _scrape(self) -> bytes:
        await self._ask_all(accounts=True)
        own: Numbers = {"build_info": {(fastgw.__version__,): [1]}}
        for sampler in self._samplers:
            self._metrics.add_samples(own, sampler())
        rows = [row for member in self._members for row in member.accounts]
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        pids = [os.getpid(), *(member.pid for member in self._members if member.running)]
        process = ProcessSums(pids, ended.ru_utime + ended.ru_stime)
        return await asyncio.to_thread(
            exposition, self._metrics, own, self._totals.copy(), rows, process
        )

    async def _status(self) -> dict[str, Any]:
        await self._ask_all()
        alive = [member for member in self._members if member.status]
        found = sum_status(member.status for member in alive)
        store = self.config.store.url.partition(":")[0]
        return {
            "connections": 0,
            "exchanges": 0,
            "body_memory": 0,
            "upstreams": {},
            "store": {"url": store, "up": False, "debits_pending": 0},
            **found,
            "version": fastgw.__version__,
            "uptime_seconds": age(self._began),
            "pid": os.getpid(),
            "config": self.config.digest,
            "listen": self.addresses,
            "keys": len(self.config.keys),
            "budgets": len(self.config.budgets),
            "restarts": self._restarts,
            "workers": [
                worker_row(member.number, member.state, member.pid, member.status)
                | ({"answered_seconds_ago": age(member.answered_at)} if member.status else {})
                for member in self._members
            ],
        }

    async def _usage(self, by: Sequence[str], since: float) -> list[dict[str, Any]]:
        """As the store has it: a second or so behind."""
        found = await (await self._opened_store()).accounts(usage=True)
        used = {key: each.used for key, each in found.items()}
        return usage_rows(used, self.config.keys, by, since)

    async def _opened_store(self) -> Store:
        if self._store is None:
            self._store = open_store(self.config.store)
        await self._store.open()
        return self._store

    async def _budgets(self) -> list[dict[str, Any]]:
        await self._ask_all(accounts=True)
        rows = [row for member in self._members for row in member.accounts]
        settled: Sequences = {(row.key, row.writer): 0 for row in rows if row.owed or row.sent}
        found = await (await self._opened_store()).accounts(settled=settled)
        owed = owed_beside(rows, settled)
        return standing_rows(found, owed, self.config.budgets, clock.wall())
