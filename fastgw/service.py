"""`fastgw serve` as the operating system sees it: signals, readiness, watchdog, reload, exit code.

The same for one worker and for a supervisor of several; each is a `Runner` here.

    SIGTERM, SIGINT   drain and end; a second one: cut what still runs, and end
    SIGHUP            read the configuration again; open the access log file again

A bad configuration changes nothing: its problems are logged, `config_reload_success` becomes 0.
Exit codes: 0 ok, 1 failed or ended with debits unsettled, 2 bad configuration, 3 no worker could
start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
from typing import TYPE_CHECKING, Protocol

from fastgw import tasks
from fastgw.config import load
from fastgw.config.reload import take_up
from fastgw.config.tables import AUTO
from fastgw.downstream import listener
from fastgw.errors import ConfigError
from fastgw.metrics import Sample
from fastgw.systemd import Notifier, take_sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from fastgw.config.tables import Config

log = logging.getLogger("fastgw")

PULSE = 1.0
"""Seconds between two looks at the workers at most."""


class Runner(Protocol):
    """What serves: a worker, or the supervisor of several."""

    config: Config
    addresses: list[str]
    admin_address: str
    unsettled: bool

    async def start(self) -> None:
        """Serve. Raises OSError or StoreUnavailable."""

    async def reload(self, config: Config) -> None:
        """Use `config` from now on. Raises OSError and goes on with the old one."""

    async def stop(self) -> None:
        """Drain and end."""

    def hurry(self) -> None:
        """End at once."""

    def alive(self, within: float) -> bool:
        """Whether every loop has turned within so many seconds."""

    def add_source(self, sampler: Callable[[], Iterable[Sample]]) -> None:
        """Show these samples among the metrics, too."""


def worker_count(config: Config) -> int:
    """How many workers `[server] workers` asks for on this machine."""
    if config.server.workers == AUTO:
        return len(os.sched_getaffinity(0))
    return config.server.workers


def try_out(config: Config) -> None:
    """Open what the configuration names, as far as nothing comes of it. Raises OSError."""
    listener.tls_context(config.server)
    for upstream in config.upstreams:
        if upstream.ca_file:
            ssl.create_default_context(cafile=upstream.ca_file)
    if config.access_log.path not in ("", "-"):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        os.close(os.open(config.access_log.path, flags, 0o640))


class Service:
    """One `fastgw serve`. `run` returns the exit code."""

    def __init__(self, runner: Runner, paths: Sequence[str | Path], notifier: Notifier) -> None:
        self._runner = runner
        self._paths = list(paths)
        self._notifier = notifier
        self._stopping = asyncio.Event()
        self._failed = ""
        self._reloads = {"success": 0, "failure": 0}
        self._reloaded_well = True
        self._reloading = False
        self._again = False
        self._started = False
        self._timer: asyncio.TimerHandle | None = None
        self._signals = 0

    async def run(self) -> int:
        """Serve until a signal or until the runner gives up. Raises OSError and StoreUnavailable
        where the start fails."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # blocked by `cli`
        runner = self._runner
        runner.add_source(self._samples)
        starting = loop.create_task(runner.start())  # not spawned: its error is said by the caller
        stopping = tasks.spawn(self._stopping.wait(), "wait for the end")
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        elif error := starting.exception():
            stopping.cancel()
            raise error
        else:
            self._serving()
        await stopping
        self._notifier.stopping(self._failed or "draining")
        await runner.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._notifier.close()
        if self._failed:
            log.error("%s", self._failed)
            return 3
        return 1 if runner.unsettled else 0

    def _serving(self) -> None:
        runner = self._runner
        log.info(
            "listening on %s, admin on %s", ", ".join(runner.addresses), runner.admin_address or "-"
        )
        self._notifier.ready(self._state())
        if self._notifier.watchdog:
            self._watch()
        self._started = True
        if self._again:
            self._on_reload()

    def _state(self) -> str:
        return f"serving on {', '.join(self._runner.addresses)}"

    def _watch(self) -> None:
        """Tell the watchdog that all is well, while it is."""
        half = self._notifier.watchdog / 2
        self._timer = asyncio.get_running_loop().call_later(half / 2, self._watch)
        if self._runner.alive(half):
            self._notifier.alive()

    def give_up(self, reason: str) -> None:
        """Called by a runner that cannot go on."""
        self._failed = reason
        self._stopping.set()

    # signals

    def _on_stop(self) -> None:
        self._signals += 1
        self._stopping.set()
        if self._signals > 1:
            self._runner.hurry()

    def _on_reload(self) -> None:
        if self._reloading or not self._started:
            self._again = True
        elif not self._stopping.is_set():
            self._reloading = True
            tasks.spawn(self._reload(), "reload")

    async def _reload(self) -> None:
        self._notifier.reloading()
        while True:
            self._again = False
            self._reloaded_well = await self._reload_once()
            self._reloads["success" if self._reloaded_well else "failure"] += 1
            if not self._again:
                break
        self._reloading = False
        if not self._stopping.is_set():
            self._notifier.ready(self._state())

    async def _reload_once(self) -> bool:
        runner = self._runner
        try:
            read = await asyncio.to_thread(load, self._paths)
            config, left = take_up(runner.config, read)
            del read
            await asyncio.to_thread(try_out, config)
            await runner.reload(config)
        except ConfigError as error:
            for problem in error.problems:
                log.error("reload: %s", problem)
            log.error("reload: %d problem(s); the old configuration stays", len(error.problems))
            return False
        except OSError as error:
            log.error("reload: %s; the old configuration stays", error)
            return False
        except Exception:
            log.exception("reload: unexpected failure")
            return False
        if left:
            log.warning("reload: %s: a restart is needed for it; left as it was", ", ".join(left))
        log.info("reload: configuration %s is in use", config.digest[:12])
        return True

    def _samples(self) -> Iterable[Sample]:
        for result, number in self._reloads.items():
            yield Sample("config_reloads_total", (result,), number)
        yield Sample("config_reload_success", (), int(self._reloaded_well))


async def serve(config: Config, paths: Sequence[str | Path]) -> int:
    """Run the gateway of `config`, read from `paths`; returns the exit code."""
    notifier = Notifier()
    passed = take_sockets()
    if (count := worker_count(config)) == 1:
        from fastgw.worker import Worker

        worker = Worker(config, sockets=passed.data, admin=passed.admin)
        del config  # it is the worker's: a reload frees it
        return await Service(worker, paths, notifier).run()
    from fastgw.supervisor import Supervisor

    try_out(config)
    pulse = min(PULSE, notifier.watchdog / 8) if notifier.watchdog else PULSE
    supervisor = Supervisor(config, count, passed, pulse)
    del config
    service = Service(supervisor, paths, notifier)
    supervisor.on_giving_up = service.give_up
    return await service.run()
