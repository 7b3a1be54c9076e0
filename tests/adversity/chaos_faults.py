"""What the chaos breaks: workers, Redis, the way to it, the lock of the SQLite file."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from redis import Redis

from fastgw import journal
from tests.adversity.redis_proxy import RedisProxy
from tests.processes import TOKEN, Process, Provider, free_port, request
from tests.redis_server import RedisServer, find_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BIG = tuple(f"big{number}" for number in range(8))
SMALL = ("small0", "small1")
KEYS = {name: f"sk-chaos-{name}-0123456789" for name in (*BIG, *SMALL)}
SETTLES = 1.0
"""Seconds that a fault may be felt after it is over."""

CONFIG = """
[server]
listen = "127.0.0.1:{port}"
workers = {workers}
drain_timeout = "10s"
[admin]
listen = "127.0.0.1:{admin_port}"
token = "{token}"
[store]
url = "{store}"
on_failure = "{on_failure}"
{keys}
[[budgets]]
name = "big"
match = {{ tier = "big" }}
per = ["user_id"]
limit = 1000000000000
window = "year"
[[budgets]]
name = "small"
match = {{ tier = "small" }}
per = ["user_id"]
limit = {small}
window = "year"
[[budgets]]
name = "all"
limit = 1000000000000
window = "year"
[[budgets]]
name = "calls"
per = ["user_id"]
unit = "requests"
limit = 1000000000000
window = "year"
[[upstreams]]
name = "stub"
base_url = "http://127.0.0.1:{provider}/v1"
[[routes]]
path_prefix = "/openai"
upstream = "stub"
[access_log]
path = "{folder}/access.log"
"""
KEY = """
[[keys]]
name = "{name}"
key = "{secret}"
metadata = {{ user_id = "{name}", tier = "{tier}" }}
"""


class DurableRedis(RedisServer):
    """A server that has on disk what it acknowledged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        super().__init__()

    def start(self) -> None:
        """Start, or start again with what is on disk."""
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        arguments += ["--appendonly", "yes", "--appendfsync", "always", "--dir", str(self._folder)]
        self.child = subprocess.Popen(
            [find_server(), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception), Redis(port=self.port) as client:
                if client.ping():
                    return
            time.sleep(0.02)
        raise AssertionError("the Redis server does not listen")


class House:
    """The processes: provider, store, gateway."""

    def __init__(self, folder: Path, *, store: str, workers: int, on_failure: str, small: int):
        """`small`: the limit of the accounts that fill."""
        self.folder = folder
        self.small = small
        self.workers = workers
        self.stub_log = folder / "stub.jsonl"
        self.access_log = folder / "access.log"
        self.gateway: Process | None = None
        self.provider = Provider(folder, "", 0, "--log", str(self.stub_log), "--no-log")
        self.redis: DurableRedis | None = None
        self.proxy: RedisProxy | None = None
        self.database = folder / "budgets.db"
        url = f"sqlite:{self.database}"
        if store == "redis":
            self.redis = DurableRedis(folder)
            self.proxy = RedisProxy(self.redis.port)
            url = f"redis://127.0.0.1:{self.proxy.port}/0"
        self.port, self.admin_port = free_port(), free_port()
        self.config = folder / "chaos.toml"
        self.config.write_text(
            CONFIG.format(
                port=self.port,
                admin_port=self.admin_port,
                token=TOKEN,
                workers=workers,
                store=url,
                on_failure=on_failure,
                small=small,
                provider=self.provider.port,
                folder=folder,
                keys="".join(
                    KEY.format(name=name, secret=secret, tier=name.rstrip("0123456789"))
                    for name, secret in KEYS.items()
                ),
            )
        )
        try:
            self.gateway = self._serve()
        except AssertionError:
            self.close()
            raise

    def _serve(self) -> Process:
        gateway = Process(
            *("fastgw", "serve", "--config", str(self.config)), log=self.folder / "gateway.log"
        )
        gateway.wait_for(self.admin_port)
        gateway.wait_for(self.port)
        return gateway

    def kill_worker(self, dice: random.Random) -> None:
        """End one worker as a crash would. Where the gateway is one process, start it again."""
        assert self.gateway is not None
        if self.workers > 1:
            while True:
                running = children(self.gateway.child.pid)
                if running:
                    with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                        os.kill(dice.choice(running), signal.SIGKILL)
                        return
                time.sleep(0.05)  # all of them are being started again
        self.gateway.child.kill()
        self.gateway.child.wait(20)
        self.gateway = self._serve()

    def status(self) -> dict[str, Any]:
        """/api/status."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        status, _, body = request(self.admin_port, "GET", "/api/status", headers=headers)
        assert status == 200, body
        found: dict[str, Any] = orjson.loads(body)
        return found

    def rest(self) -> None:
        """No exchange under way, no debit pending, nothing owed by workers that died: within 20 s
        of the last fault."""
        deadline = time.monotonic() + 20
        status: Any = "no answer"
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                status = self.status()
                if not (status["exchanges"] or status["store"]["debits_pending"] or self.owing()):
                    return
            time.sleep(0.05)
        raise AssertionError(f"not at rest: journals owe {self.owing()} accounts, {status}")

    def owing(self) -> int:
        """Accounts that a journal says the store does not have all of, the dead's as well: a worker
        that is yet to be started again settles them, which no status tells."""
        return sum(owing(path) for path in self.folder.glob("*.debits/*.debits"))

    def end(self) -> int:
        """Stop gateway and provider; the store stays. Returns the gateway's exit code."""
        assert self.gateway is not None
        ended = self.gateway.stop()
        self.provider.stop()
        return ended

    def close(self) -> None:
        """End whatever is left."""
        for process in (self.gateway, self.provider):
            if process is not None and process.child.poll() is None:
                process.stop(signal.SIGKILL)
        if self.proxy is not None:
            self.proxy.close()
        if self.redis is not None:
            self.redis.thaw()
            self.redis.kill()


def owing(path: Path) -> int:
    """Slots of a journal in use that owe something; the file may be in use. See fastgw/journal."""
    try:
        words = memoryview(path.read_bytes()).cast("q")
    except FileNotFoundError:
        return 0  # all of it was settled
    found, at = 0, journal.HEADER // 8
    while at + journal.WORDS <= len(words) and words[at]:
        granules, length = words[at] >> 32, words[at] & 0xFFFFFFFF
        found += bool(length) and words[at + 2] != words[at + 5]  # TOTAL, ACKNOWLEDGED
        at += granules * journal.WORDS
    return found


def children(pid: int) -> list[int]:
    """The child processes of a process that run."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == pid and state != "Z":
                    found.append(int(path.name))
    return found


class Faults:
    """Breaks things in a thread of its own, from `start` to `stop`; then all is whole again.

    `killed` and `away` are the spans of time, in epoch seconds, in which a worker's clients and the
    store may be missed.
    """

    def __init__(
        self, house: House, seconds: float, kills: int, seed: int, empties: bool = False
    ) -> None:
        """`empties`: Redis forgets everything now and then, which one worker that lives knows."""
        self.done: Counter[str] = Counter()
        self.killed: list[tuple[float, float]] = []
        self.away: list[tuple[float, float]] = []
        self.error: BaseException | None = None
        self._house = house
        self._empties = empties
        self._dice = random.Random(seed)
        self._stopping = threading.Event()
        self._plan = sorted(self._planned(seconds, kills), key=lambda each: each[0])
        self._thread = threading.Thread(target=self._run, name="chaos faults", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; raises what went wrong in the thread."""
        self._stopping.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error

    def _planned(
        self, seconds: float, kills: int
    ) -> Iterator[tuple[float, str, Callable[[], None]]]:
        """When, what, how."""
        kinds: list[tuple[str, int, Callable[[], None]]] = [("worker killed", kills, self._kill)]
        if self._house.redis is not None:
            long = int(seconds / 30) + 1
            kinds += [
                ("redis killed", long, self._kill_redis),
                ("redis stopped", long, lambda: self._stop_redis(min(5.0, seconds / 8))),
                ("connections reset", int(seconds / 2), self._reset),
                ("scripts flushed", int(seconds / 4) + 1, self._flush),
                ("replies lost", int(seconds / 4) + 1, self._lose),
                ("replies late", long, self._delay),
                ("proxy stalled", long, self._stall),
                ("redis emptied", long * self._empties, self._empty),
            ]
        else:
            kinds.append(("database locked", int(seconds / 5) + 1, self._lock))
        for name, times, strike in kinds:
            for number in range(times):
                at = seconds * (0.05 + 0.85 * (number + self._dice.random()) / max(1, times))
                yield at, name, strike

    def _run(self) -> None:
        began = time.monotonic()
        try:
            for at, name, strike in self._plan:
                if self._stopping.wait(max(0.0, at - (time.monotonic() - began))):
                    return
                strike()
                self.done[name] += 1
        except BaseException as error:
            self.error = error

    @contextlib.contextmanager
    def _span(self, spans: list[tuple[float, float]]) -> Iterator[None]:
        began = time.time()
        spans.append((began, float("inf")))
        try:
            yield
        finally:
            spans[-1] = (began, time.time() + SETTLES)

    def _kill(self) -> None:
        with self._span(self.killed):
            self._house.kill_worker(self._dice)

    def _kill_redis(self) -> None:
        redis = self._house.redis
        assert redis is not None
        with self._span(self.away):
            redis.kill()
            self._stopping.wait(0.5)
            redis.start()

    def _stop_redis(self, seconds: float) -> None:
        redis = self._house.redis
        assert redis is not None
        with self._span(self.away):
            redis.freeze()
            self._stopping.wait(seconds)
            redis.thaw()

    def _reset(self) -> None:
        assert self._house.proxy is not None
        with self._span(self.away):
            self._house.proxy.reset()

    def _flush(self) -> None:
        assert self._house.redis is not None
        with Redis(port=self._house.redis.port) as client:
            client.script_flush()

    def _empty(self) -> None:
        assert self._house.redis is not None
        with Redis(port=self._house.redis.port) as client:
            client.flushall()

    def _lose(self) -> None:
        proxy = self._house.proxy
        assert proxy is not None
        with self._span(self.away):
            proxy.loses = True
            self._stopping.wait(0.7)
            proxy.loses = False

    def _delay(self) -> None:
        proxy = self._house.proxy
        assert proxy is not None
        proxy.delay = 0.05
        self._stopping.wait(0.7)
        proxy.delay = 0.0

    def _stall(self) -> None:
        proxy = self._house.proxy
        assert proxy is not None
        with self._span(self.away):
            proxy.stall()
            self._stopping.wait(1.0)
            proxy.flow()

    def _lock(self) -> None:
        with contextlib.closing(sqlite3.connect(self._house.database, timeout=20)) as other:
            other.isolation_level = None
            other.execute("BEGIN IMMEDIATE")
            self._stopping.wait(1.0)
            other.execute("ROLLBACK")
