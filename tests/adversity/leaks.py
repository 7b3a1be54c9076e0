"""Clients that vanish at every point of an exchange, and nothing of them may stay behind.

    python -m tests.adversity.leaks --requests 10000

Phases: `before` the head (connected, nothing sent), in the `head`, in the `body`, `waiting` for the
answer, in the `middle` of it, at the `end` (all but the last bytes read), `after` it (the same, and
gone a little later). By FIN or RST, with JSON and streams, sized and chunked bodies, small and
large prompts.

Afterwards the gateway must hold nothing: no connection, exchange, body, busy connection to the
provider, pending debit or hold on a budget, and no more tasks and open files than before.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from fastgw import tasks
from tests.adversity.conftest import BUDGET, GUARD, Bench, spoken
from tests.processes import ALICE, BOB

CAPS = """
[[budgets]]
name = "cap"
match = { user_id = "alice" }
per = ["user_id"]
limit = 1000000000
admission = "reserve"
[[budgets]]
name = "running"
per = ["user_id"]
unit = "parallel"
limit = 1000
"""
"""Beside BUDGET: what is held for a request must be given back, however it ends. Bob has no cap, so
that his large prompts are kept until the answer is over, and those of alice are counted at once."""

PROMPTS = ("Hello!", "Hello!", "Hello! " * 8000)

PHASES = ("before", "head", "body", "waiting", "middle", "end", "after")
CLIENTS = 64
SLOW = "events=20;pace=0.005;pad=100"


class Leaver:
    """Sends so many requests and leaves each of them."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.phases: Counter[str] = Counter()
        self._bench = bench
        self._dice = random.Random(seed)
        self._left = 0

    def run(self, requests: int) -> None:
        """Leave so many, CLIENTS at a time."""
        self._left = requests
        asyncio.run(self._run())

    async def _run(self) -> None:
        running = [tasks.spawn(self._client(), "leaver") for _ in range(CLIENTS)]
        await asyncio.gather(*running)

    async def _client(self) -> None:
        while self._left > 0:
            self._left -= 1
            phase = self._dice.choice(PHASES)
            self.phases[phase] += 1
            async with asyncio.timeout(GUARD):
                await self._leave(phase)

    async def _leave(self, phase: str) -> None:
        dice = self._dice
        stream, chunked = dice.random() < 0.6, dice.random() < 0.3
        stub = "first=5" if phase == "waiting" else SLOW if phase == "middle" else "events=5"
        data = spoken(
            self._bench.name(phase),
            dice.choice(("/direct", "/openai")),
            stub,
            stream=stream or phase == "middle",
            asks=dice.random() < 0.5,
            chunked=chunked,
            key=dice.choice((ALICE, BOB)),
            prompt=dice.choice(PROMPTS),
        )
        head = data.index(b"\r\n\r\n") + 4
        reader, writer = await asyncio.open_connection("127.0.0.1", self._bench.gateway.port)
        try:
            if phase == "before":
                await asyncio.sleep(dice.random() * 0.005)
            elif phase == "head":
                writer.write(data[: dice.randrange(1, head)])
            elif phase == "body":
                writer.write(data[: dice.randrange(head, len(data))])
            else:
                writer.write(data)
            if phase in ("head", "body", "waiting"):
                await asyncio.sleep(dice.random() * 0.01)
            elif phase == "middle":
                await reader.readuntil(b"\r\n\r\n")
                await reader.read(dice.randrange(1, 2000))
            elif phase == "end":
                await _until_the_end(reader, stream)
            elif phase == "after":
                await _until_the_end(reader, stream)
                await asyncio.sleep(dice.random() * 0.01)
            if dice.random() < 0.5:
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
        except (OSError, EOFError):
            pass  # the gateway was first
        finally:
            writer.close()


async def _until_the_end(reader: asyncio.StreamReader, stream: bool) -> None:
    """Read an answer up to its last bytes."""
    await reader.readuntil(b"data: [DONE]" if stream else b'"reasoning_tokens":0}')


def left_behind(bench: Bench, within: float = GUARD) -> dict[str, Any]:
    """What the gateway holds, once it had so many seconds to let go: empty if nothing."""
    deadline = time.monotonic() + within
    while True:
        status = bench.gateway.api("/api/status")
        held = {
            "connections": status["connections"],
            "exchanges": status["exchanges"],
            "body_memory": status["body_memory"],
            "drains": status["drains"],
            "debits_pending": status["store"]["debits_pending"],
            "held": status["store"]["held"]
            + sum(row["held"] for row in bench.gateway.api("/api/budgets")),
        }
        for name, pool in status["upstreams"].items():
            held |= {f"{name} {state}": number for state, number in pool.items() if state != "idle"}
        found = {name: number for name, number in held.items() if number}
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def run(bench: Bench, requests: int, seed: int) -> dict[str, Any]:
    """Leave so many requests; returns the report, whose `left_behind` is empty if all is well."""
    leaver = Leaver(bench, seed)
    leaver.run(max(requests // 10, 10))  # so that pools and caches are warm
    before = left_behind(bench), bench.files, bench.resident
    running = bench.gateway.api("/api/status")["tasks"]
    leaver.run(requests)
    after = left_behind(bench)
    return {
        "requests": requests,
        "phases": dict(leaver.phases),
        "left_behind": before[0] | after,
        "files": [before[1], bench.files],
        "resident": [before[2], bench.resident],
        "tasks": [running, bench.gateway.api("/api/status")["tasks"]],
    }


def main() -> int:
    """`python -m tests.adversity.leaks`."""
    parser = argparse.ArgumentParser(description="Clients that vanish at every point.")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastgw-leaks-") as folder:
        bench = Bench(Path(folder), BUDGET + CAPS)
        try:
            report = run(bench, options.requests, options.seed)
        finally:
            bench.close()
    sys.stdout.write(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n")
    return 1 if report["left_behind"] else 0


if __name__ == "__main__":
    sys.exit(main())
