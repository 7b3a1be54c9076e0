"""Real processes for tests: the gateway, the stub provider. Started on free ports, ended by pid."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
ALICE = "sk-alice-abc123def456"
BOB = "sk-bob-xyz789uvw012"
TOKEN = "admin-token-for-tests"
UPSTREAM_KEY = "sk-upstream-secret"


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_FIRST, _NUMBER = 10_000 + 2_000 * _WORKER, 2_000
_next_port = itertools.count(os.getpid())


def free_port() -> int:
    """A port that nobody listens on, and that is handed out once: not one of those that the kernel
    gives to whoever connects, nor of another process of tests."""
    while True:
        port = _FIRST + next(_next_port) % _NUMBER
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port


class Process:
    """A child process that is ended by its pid."""

    def __init__(self, *arguments: str, log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("ab") as out:
            self.child = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            )

    def wait_for(self, port: int) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self.child.poll() is None, self.log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"nothing listens: {self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(number)
        return self.child.wait(30)

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Provider(Process):
    """The stub provider in a process of its own."""

    def __init__(self, folder: Path, behaviour: str = "", port: int = 0, *more: str) -> None:
        self.port = port or free_port()
        super().__init__(
            "fastgw.demo.provider",
            "--listen",
            f"127.0.0.1:{self.port}",
            "--behaviour",
            behaviour,
            *more,
            log=folder / f"provider-{self.port}.log",
        )
        self.wait_for(self.port)

    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = orjson.loads(request(self.port, "GET", "/stub/log")[2])
        return found

    def forget(self) -> None:
        request(self.port, "DELETE", "/stub/log")

    def last(self) -> bytes:
        """Head and body of the latest request, as they arrived."""
        text: str = orjson.loads(request(self.port, "GET", "/stub/last")[2])["last"]
        return text.encode("latin-1")


CONFIG = """
[server]
listen = {listen}
drain_timeout = "{drain}"
{server}
[admin]
listen = "127.0.0.1:{admin_port}"
token = "{token}"
[store]
url = "{store}"
{store_more}
[auth]
{auth}
[[keys]]
name = "alice"
key = "{alice}"
metadata = {{ user_id = "alice", tier = "free" }}
[[keys]]
name = "bob"
key = "{bob}"
metadata = {{ user_id = "bob", tier = "premium" }}
{budgets}
[[upstreams]]
name = "stub"
base_url = "{base_url}"
api_key = "{upstream_key}"
{upstream}
[[routes]]
path_prefix = "/openai"
upstream = "stub"
[metrics]
{metrics}
[access_log]
path = "{folder}/access-{port}.log"
{more}
"""
PER_USER = """
[[budgets]]
name = "per-user-daily"
per = ["user_id"]
limit = {limit}
"""


class Gateway(Process):
    """`fastgw serve` in a process of its own."""

    def __init__(
        self,
        folder: Path,
        provider_port: int,
        *,
        store: str = "",
        store_more: str = "",
        server: str = "",
        auth: str = "",
        budgets: str = PER_USER.format(limit=100),
        upstream: str = "",
        metrics: str = 'labels = { user_id = "apiKey.user_id" }',
        more: str = "",
        listen: str = "",
        base_url: str = "",
        env: dict[str, str] | None = None,
        files: dict[str, str] | None = None,
        drain: str = "5s",
    ) -> None:
        """`files`: names beside the configuration, and their text."""
        for name, text in (files or {}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        self.port = free_port()
        self.admin_port = free_port()
        self.folder = folder
        self.config = folder / f"gateway-{self.port}.toml"
        self.config.write_text(
            CONFIG.format(
                port=self.port,
                drain=drain,
                listen=listen or f'"127.0.0.1:{self.port}"',
                admin_port=self.admin_port,
                token=TOKEN,
                alice=ALICE,
                bob=BOB,
                upstream_key=UPSTREAM_KEY,
                base_url=base_url or f"http://127.0.0.1:{provider_port}/v1",
                store=store or f"sqlite:{folder}/budgets-{self.port}.db",
                store_more=store_more,
                server=server,
                auth=auth,
                budgets=budgets,
                upstream=upstream,
                metrics=metrics,
                folder=folder,
                more=more,
            )
        )
        super().__init__(
            *("fastgw", "serve", "--config", str(self.config)),
            log=folder / f"gateway-{self.port}.log",
            env=env,
        )
        self.wait_for(self.admin_port)
        if "workers" in server:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until every worker serves."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.child.poll() is None, self.log.read_text()
            workers = self.api("/api/status")["workers"]
            if all(worker["state"] == "ready" for worker in workers):
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.log.read_text()}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def metrics(self) -> str:
        return request(self.admin_port, "GET", "/metrics")[2].decode()

    def api(self, path: str) -> Any:
        status, _, body = request(
            self.admin_port, "GET", path, headers={"Authorization": f"Bearer {TOKEN}"}
        )
        assert status == 200, body
        return orjson.loads(body)

    def used(self, account: str, budget: str = "per-user-daily") -> int:
        """Used of an account as /api/budgets shows it, once nothing is pending."""
        settled(self)
        for row in self.api("/api/budgets"):
            if row["budget"] == budget and account in row["account"].values():
                return int(row["used"])
        return 0

    def access_log(self) -> list[dict[str, Any]]:
        time.sleep(0.25)  # two of its write intervals
        path = self.folder / f"access-{self.port}.log"
        return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def used_while(gateway: Gateway, ask: Callable[[], object]) -> set[int]:
    """All that /api/budgets shows as used while `ask` runs."""
    thread = threading.Thread(target=ask)
    thread.start()
    seen: set[int] = set()
    while thread.is_alive():
        seen |= {row["used"] for row in gateway.api("/api/budgets")}
        time.sleep(0.05)
    thread.join()
    return seen


def settled(gateway: Gateway) -> None:
    """Wait until no exchange runs and no debit is pending."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        status = gateway.api("/api/status")
        if not status["exchanges"] and not status["store"]["debits_pending"]:
            return
        time.sleep(0.02)
    raise AssertionError(f"not settled: {status}")


def request(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on a connection of its own: status, headers, body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def chat(
    gateway: Gateway, key: str, path: str = "/openai", stub: str = "", **more: Any
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One chat completion."""
    message = {"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "Hello!"}]}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    if stub:
        headers["x-stub"] = stub
    return request(gateway.port, "POST", path, orjson.dumps(message | more), headers)
