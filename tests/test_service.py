"""What `fastgw serve` does with signals, whatever it serves with."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from fastgw.config import load
from fastgw.service import Service
from tests.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

MINIMAL = """
[admin]
listen = ""
[store]
url = "memory:"
[[upstreams]]
name = "u"
base_url = "http://127.0.0.1:1"
[[routes]]
path_prefix = "/u"
upstream = "u"
[access_log]
path = ""
"""


class Slow:
    """A runner that takes until `go` to start. `said` is what happened, in order."""

    admin_address = ""
    unsettled = False

    def __init__(self, config: Any, said: list[str]) -> None:
        self.config = config
        self.addresses = ["here"]
        self.go = asyncio.Event()
        self._said = said

    async def start(self) -> None:
        await self.go.wait()
        self._said.append("started")

    async def reload(self, config: Any) -> None:
        self._said.append("reloaded")
        self.config = config

    async def stop(self) -> None:
        self._said.append("stopped")

    def add_source(self, sampler: object) -> None:
        pass


class Notes:
    """Stands for the service manager."""

    watchdog = 0

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def ready(self, state: str) -> None:
        self._said.append("READY")

    def reloading(self) -> None:
        self._said.append("RELOADING")

    def stopping(self, state: str) -> None:
        pass

    def close(self) -> None:
        pass


async def eventually(said: list[str], what: str, count: int) -> None:
    async with asyncio.timeout(20):
        while said.count(what) < count:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


def test_a_reload_waits_for_the_start(tmp_path: Path) -> None:
    """Nobody is told READY before whoever connects is served, and the signal is not lost."""
    path = tmp_path / "c.toml"
    path.write_text(MINIMAL)

    async def check() -> tuple[int, list[str]]:
        said: list[str] = []
        runner = Slow(load([path], {}), said)
        service = Service(runner, [path], Notes(said))  # type: ignore[arg-type]
        running = asyncio.create_task(service.run())
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.2)
        assert said == []
        runner.go.set()
        await eventually(said, "READY", 2)
        os.kill(os.getpid(), signal.SIGTERM)
        return await running, said

    code, said = asyncio.run(check())
    assert code == 0
    assert said == ["started", "READY", "RELOADING", "reloaded", "READY", "stopped"]


def test_a_reload_does_not_end_a_process_that_begins(tmp_path: Path) -> None:
    """While it reads its configuration, which takes a second where there are many keys."""
    (tmp_path / "c.toml").write_text('[server]\nlisten = "127.0.0.1:0"\n' + MINIMAL)
    waits = (
        "import sys, time; from fastgw import cli; load = cli._load; cli._load = lambda options: "
        "(print('loads', flush=True), time.sleep(0.5), load(options))[2]; "
        "sys.exit(cli.main(['serve', '--config', 'c.toml']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", waits],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "loads\n"
        child.send_signal(signal.SIGHUP)
        lines = iter(child.stderr.readline, "")
        assert any("is in use" in line for line in lines)
        child.terminate()
        assert child.wait(20) == 0
