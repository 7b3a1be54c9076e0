"""A crowd of connections that do nothing, or nearly nothing, and what an active client notices.

    python -m bench.load.crowd                           # 10,000 idle keep-alive connections
    python -m bench.load.crowd --kind head --connections 5000

Kinds: `idle` (one request made, then silence), `head` (a byte of a request head each second),
`body` (a byte of a request body each second), `reader` (asks for a long stream and never reads).
Prints, without the crowd, with it and after it: latency of an active client with 8 connections,
CPU of the gateway for each of its requests, memory of the gateway; and bytes for each connection.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvloop

from bench.load.generator import load, make_request
from tests.processes import ALICE, BOB, PER_USER, Gateway, Provider

if TYPE_CHECKING:
    from collections.abc import Callable

_BODY_HEAD = (
    f"POST /openai HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {BOB}\r\n"
    "Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{"
).encode()
KINDS: dict[str, tuple[bytes, bytes]] = {
    "idle": (make_request("/openai", BOB, 200, False, ""), b""),
    "head": (b"POST /openai HTTP/1.1\r\nHost: h\r\nX-Slow: ", b"a"),
    "body": (_BODY_HEAD, b" "),
    "reader": (make_request("/openai", BOB, 200, True, "events=8000;pad=1000"), b""),
}
"""What a connection of the crowd sends first, and then each second."""


class Idler(asyncio.Protocol):
    """One of the crowd."""

    def __init__(self, first: bytes, reads: bool) -> None:
        self._first = first
        self._reads = reads

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports fulfil the interface without inheriting it
        self.transport = cast("asyncio.Transport", transport)
        if not self._reads:
            self.transport.pause_reading()
        self.transport.write(self._first)


class Crowd:
    """So many connections of a kind."""

    def __init__(self, kind: str, port: int) -> None:
        self._first, self._more = KINDS[kind]
        self._reads = kind != "reader"
        self._port = port
        self.members: list[Idler] = []

    async def gather(self, number: int) -> None:
        """Connect, a hundred at a time."""
        loop = asyncio.get_running_loop()
        make: Callable[[], Idler] = lambda: Idler(self._first, self._reads)  # noqa: E731
        while len(self.members) < number:
            group = await asyncio.gather(
                *(
                    loop.create_connection(make, "127.0.0.1", self._port)
                    for _ in range(min(100, number - len(self.members)))
                )
            )
            self.members += [member for _, member in group]
            await asyncio.sleep(0.01)

    async def dribble(self) -> None:
        """A byte each second, in groups, until cancelled."""
        while self._more:
            for at in range(0, len(self.members), 250):
                for member in self.members[at : at + 250]:
                    member.transport.write(self._more)
                await asyncio.sleep(1.0 / max(1, len(self.members) // 250))

    def leave(self) -> None:
        """Close all."""
        for member in self.members:
            member.transport.abort()


async def active(gateway: Gateway, seconds: float) -> tuple[float, float, float]:
    """Latency p50 and p99 (milliseconds) of an active client, CPU microseconds for each request."""
    before = gateway.cpu_seconds
    request = make_request("/openai", ALICE, 200, False, "")
    found = await load(gateway.port, request, 8, seconds, False)
    assert not found["errors"], found
    spent = gateway.cpu_seconds - before
    return found["latency_p50"], found["latency_p99"], spent / found["requests"] * 1e6


def resident(gateway: Gateway) -> int:
    """Resident bytes of the gateway."""
    pages = Path(f"/proc/{gateway.child.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def quiet(gateway: Gateway) -> None:
    """Wait until the crowd is served as far as it lets itself be served."""
    while True:
        before = gateway.cpu_seconds
        await asyncio.sleep(1.0)
        if gateway.cpu_seconds - before < 0.1:
            return


async def run(gateway: Gateway, kind: str, number: int, seconds: float) -> None:
    """Measure and print."""
    print(f"{kind}: {number:,} connections\n\n                p50 ms   p99 ms   CPU us   RSS MiB")

    def show(name: str, row: tuple[float, float, float]) -> None:
        p50, p99, cpu = row
        memory = resident(gateway) / 2**20
        print(f"{name:14} {p50:8.2f} {p99:8.2f} {cpu:8.1f} {memory:9.1f}", flush=True)

    await active(gateway, 1.0)
    show("without", await active(gateway, seconds))
    before = resident(gateway)
    crowd = Crowd(kind, gateway.port)
    await crowd.gather(number)
    await quiet(gateway)
    here = resident(gateway)
    dribble = asyncio.get_running_loop().create_task(crowd.dribble())
    show("with the crowd", await active(gateway, seconds))
    peak = max(here, resident(gateway))
    dribble.cancel()
    crowd.leave()
    await asyncio.sleep(1.0)
    show("after it", await active(gateway, seconds))
    print(f"\n{(peak - before) / number / 1024:.1f} KiB for each connection of the crowd")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="A crowd of slow clients beside an active one.")
    parser.add_argument("--kind", choices=tuple(KINDS), default="idle")
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="fastgw-crowd-") as name:
        folder = Path(name)
        provider = Provider(folder, "", 0, "--no-log")
        gateway = Gateway(
            folder,
            provider.port,
            store="memory:",
            budgets=PER_USER.format(limit=10**15),
            server=f"max_connections = {options.connections + 100}",
        )
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(gateway.child.pid, {cpus[0]})
        os.sched_setaffinity(0, {cpus[-1]})
        began = time.monotonic()
        try:
            uvloop.run(run(gateway, options.kind, options.connections, options.seconds))
        finally:
            gateway.stop()
            provider.stop()
        print(f"took {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
