"""Who is measured: how each is started, what it needs, and what it is told in its configuration.

The configurations stand in bench/rivals; `@NAME@` in them is filled in here. A target is a process
and its children, on CPUs of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson
from redis import Redis

from bench import processes
from bench.install import PACKAGES, Missing, compiled_python, program_of
from bench.tools import ROOT, environment
from tests.processes import free_port, request

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.processes import Cores

CONFIGS = ROOT / "bench" / "rivals"
LARGE_BUFFERS = "proxy_buffer_size 32k; proxy_buffers 8 32k; proxy_busy_buffers_size 64k;"
NGINX_MODULES = Path("/usr/lib/nginx/modules")
ADMIN_TOKEN = "bench-admin-token"
LIMIT = 10**15
START_TIMEOUT = 120.0
BUDGET = f"""
[[budgets]]
name = "per-user-daily"
per = ["user_id"]
limit = {LIMIT}
"""
RESERVE = BUDGET + 'admission = "reserve"\n'
_CALLS = re.compile(r"^fastgw_store_settle_seconds_count(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class TargetFailed(RuntimeError):
    """A target did not start, or does not do its job: why, and the end of what it said."""


def make_keys(number: int) -> list[str]:
    """So many secrets."""
    return [f"sk-bench-{at:06d}-0123456789abcdef" for at in range(number)]


class Place(NamedTuple):
    """What a target is given."""

    folder: Path
    provider: int
    """Port of the stub."""
    provider_pid: int
    redis: int
    """Port of a Redis server, 0 without one."""
    keys: list[str]
    cores: Cores


@dataclass
class Target:
    """Something that serves the load."""

    name: str
    port: int
    pid: int
    path: str = "/openai/chat/completions"
    child: subprocess.Popen[bytes] | None = None
    log: Path | None = None
    admin: int = 0
    """fastgw: its admin port."""
    pids: list[int] = field(default_factory=list)

    def seek(self) -> None:
        """Find its processes; none is started or ended while it is measured."""
        self.pids = processes.tree(self.pid)

    def store_calls(self) -> int:
        """Calls to the store that were answered so far; 0 of a rival."""
        if not self.admin:
            return 0
        text = request(self.admin, "GET", "/metrics")[2].decode()
        return int(sum(float(found) for found in _CALLS.findall(text)))

    def stop(self) -> None:
        """End it."""
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait(30)

    def tail(self) -> str:
        """The end of what it has said."""
        return self.log.read_text(errors="replace")[-1500:] if self.log else ""


def fill(name: str, place: Place, port: int, **more: object) -> Path:
    """Write a configuration of bench/rivals into the folder, its `@NAME@`s filled in."""
    values = {
        "FOLDER": place.folder,
        "PORT": port,
        "PROVIDER": place.provider,
        "REDIS": place.redis,
        "KEY": place.keys[0],
        "BUFFERS": "",
        **more,
    }
    text = (CONFIGS / f"{name}.in").read_text()
    path = place.folder / name
    path.write_text(re.sub(r"@([A-Z_]+)@", lambda found: str(values[found[1]]), text))
    return path


def launch(
    name: str,
    place: Place,
    port: int,
    command: list[str],
    cpus: frozenset[int],
    env: dict[str, str] | None = None,
) -> Target:
    """Start a process and wait until it listens. Raises TargetFailed."""
    log = place.folder / "output.log"
    with log.open("ab") as out, processes.on_cpus(cpus):
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=place.folder, env=env
        )
    target = Target(name, port, child.pid, child=child, log=log)
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if child.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return target
        time.sleep(0.05)
    target.stop()
    raise TargetFailed(f"{name} does not listen", target.tail())


def _direct(name: str, place: Place) -> Target:
    return Target(name, place.provider, place.provider_pid, path="/v1/chat/completions")


def _nginx(name: str, place: Place) -> Target:
    program = program_of("nginx")
    if name == "nginx-lua":
        if not (NGINX_MODULES / "ngx_http_lua_module.so").exists():
            raise Missing(PACKAGES["nginx-lua"])
        if not place.redis:
            raise Missing("a Redis server")
    keys = "".join(f'"Bearer {key}" 1;\n' for key in place.keys)
    (place.folder / "keys.map").write_text(keys)
    port = free_port()
    large = name == "nginx-32k"
    config = fill(
        "nginx.conf" if large else f"{name}.conf", place, port, BUFFERS=LARGE_BUFFERS * large
    )
    command = [program, "-p", str(place.folder), "-c", str(config)]
    if name == "nginx-lua":  # modules are found relative to the prefix
        (place.folder / "modules").symlink_to(NGINX_MODULES)
    return launch(name, place, port, command, place.cores.target)


def _haproxy(name: str, place: Place) -> Target:
    program = program_of("haproxy")
    keys = "".join(f"{key} 1\n" for key in place.keys)
    (place.folder / "keys.map").write_text(keys)
    port = free_port()
    config = fill("haproxy.cfg", place, port)
    command = [program, "-db", "-f", str(config)]
    return launch(name, place, port, command, place.cores.target)


def _envoy(name: str, place: Place) -> Target:
    program = program_of("envoy")
    port = free_port()
    config = fill("envoy.yaml", place, port)
    command = [program, "-c", str(config), "--concurrency", "1", "-l", "error"]
    command += ["--disable-hot-restart"]
    return launch(name, place, port, command, place.cores.target)


def _litellm(name: str, place: Place) -> Target:
    program = program_of("litellm")
    port = free_port()
    config = fill("litellm.yaml", place, port)
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--num_workers", "1", "--telemetry", "False"]
    env = {
        **os.environ,
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HOME": str(place.folder),
    }
    target = launch(name, place, port, command, place.cores.target, env)
    target.path = "/v1/chat/completions"
    return target


def _httpx(name: str, place: Place) -> Target:
    program = program_of("httpx")
    port = free_port()
    command = [program, "--app-dir", str(CONFIGS), "proxy:app", "--port", str(port)]
    command += ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--backlog", "4096"]
    env = environment(
        PROVIDER=f"http://127.0.0.1:{place.provider}/v1",
        KEY=place.keys[0],
        PYTHONDONTWRITEBYTECODE="1",
    )
    return launch(name, place, port, command, place.cores.target, env)


class Variant(NamedTuple):
    """How a fastgw differs from the one with everything on, budgets in SQLite."""

    store: str = "sqlite:budgets.db"
    budgets: str = BUDGET
    workers: int = 1
    on: bool = True
    """False: answers are not metered; no metrics label, access log, usage sums, journal."""
    compiled: bool = False


VARIANTS = {
    "fastgw": Variant(),
    "fastgw-redis": Variant(store="redis"),
    "fastgw-reserve": Variant(store="redis", budgets=RESERVE),
    "fastgw-no-budget": Variant(store="memory:", budgets=""),
    "fastgw-off": Variant(store="memory:", budgets="", on=False),
    "fastgw-two": Variant(workers=2),
    "fastgw-compiled": Variant(compiled=True),
    "fastgw-compiled-redis": Variant(compiled=True, store="redis"),
    "fastgw-compiled-reserve": Variant(compiled=True, store="redis", budgets=RESERVE),
    "fastgw-compiled-off": Variant(compiled=True, store="memory:", budgets="", on=False),
}


def _fastgw(name: str, place: Place) -> Target:
    variant = VARIANTS[name]
    python = compiled_python() if variant.compiled else sys.executable
    store = variant.store
    if store == "redis":
        if not place.redis:
            raise Missing("a Redis server")
        store = f"redis://127.0.0.1:{place.redis}/0"
    users = (
        f'[[keys]]\nname = "key-{at}"\nkey = "{key}"\n'
        f'metadata = {{ user_id = "user-{at % 1000}" }}\n'
        for at, key in enumerate(place.keys)
    )
    (place.folder / "keys.toml").write_text("".join(users))
    port, admin = free_port(), free_port()
    config = fill(
        "fastgw.toml",
        place,
        port,
        ADMIN=admin,
        TOKEN=ADMIN_TOKEN,
        WORKERS=variant.workers,
        STORE=store,
        JOURNAL="auto" if variant.on else "",
        LABELS='{ user_id = "apiKey.user_id" }' if variant.on else "{}",
        ACCESS_LOG="access.log" if variant.on else "",
        USAGE="true" if variant.on else "false",
        METERED="true" if variant.on else "false",
        BUDGETS=variant.budgets,
    )
    command = [python, "-P", "-m", "fastgw", "serve", "--config", str(config)]
    cpus = place.cores.pair if variant.workers > 1 else place.cores.target
    env = environment()
    if variant.compiled:
        env.pop("PYTHONPATH", None)  # the source would be found before it
    target = launch(name, place, port, command, cpus, env)
    target.admin = admin
    _wait_for_workers(target, variant.workers)
    return target


def _wait_for_workers(target: Target, number: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            status, _, body = request(target.admin, "GET", "/api/status", headers=headers)
            workers = orjson.loads(body).get("workers", [])
            if status == 200 and (
                number == 1 or [each["state"] for each in workers] == ["ready"] * number
            ):
                return
        time.sleep(0.05)
    target.stop()
    raise TargetFailed("it has not come up", target.tail())


_STARTS: dict[str, Callable[[str, Place], Target]] = {
    "direct": _direct,
    "nginx": _nginx,
    "nginx-32k": _nginx,
    "nginx-lua": _nginx,
    "haproxy": _haproxy,
    "envoy": _envoy,
    "litellm": _litellm,
    "httpx": _httpx,
    **dict.fromkeys(VARIANTS, _fastgw),
}
TARGETS = tuple(_STARTS)
NEED_REDIS = ("nginx-lua", *(name for name, each in VARIANTS.items() if each.store == "redis"))

DEBITS = ("nginx-lua", *(name for name, variant in VARIANTS.items() if variant.budgets))


def debited(target: Target, place: Place) -> int:
    """What a target that debits has debited so far, all keys together."""
    if target.admin:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        status, _, body = request(target.admin, "GET", "/api/budgets", headers=headers)
        return sum(int(row["used"]) for row in orjson.loads(body)) if status == 200 else 0
    with Redis(port=place.redis, socket_timeout=10) as client:
        counts = [client.get(f"bench:Bearer {key}") for key in {place.keys[0], place.keys[-1]}]
    return sum(int(count or 0) for count in counts)


def start(name: str, place: Place) -> Target:
    """Start a target. Raises Missing, TargetFailed."""
    target = _STARTS[name](name, place)
    target.seek()
    return target
