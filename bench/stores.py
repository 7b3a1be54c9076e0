"""`python -m bench.stores`: what budgets cost, by store and admission, beside none at all.

JSON over 64 keep-alive connections, as `make bench`; all variants in turn in each round. Besides
the CPU of the gateway: exchanges in one call to the store, and the CPU of Redis for each exchange.

    python -m bench.stores --rounds 5 --seconds 4
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from bench.run import SCENARIOS, Target, cpu_seconds, measure, pin
from tests.processes import PER_USER, Gateway, Provider
from tests.redis_server import RedisServer

HARD = PER_USER.replace("limit =", 'admission = "reserve"\nlimit =')
"""As PER_USER, with a hard cap."""


class Variant(NamedTuple):
    """A gateway to compare: what it is called, its budgets, its store ("": SQLite)."""

    name: str
    budgets: str
    store: str


def calls(gateway: Gateway) -> int:
    """Calls to the store that were answered so far."""
    for line in gateway.metrics().splitlines():
        if line.startswith("fastgw_store_settle_seconds_count"):
            return int(float(line.rpartition(" ")[2]))
    return 0


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="What budgets cost.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    pin(0, cpus[-1])
    scenario = SCENARIOS["json"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastgw-bench-")))
        server = RedisServer()
        stack.callback(server.end)
        assert server.child is not None
        provider = Provider(folder, scenario.behaviour, 0, "--no-log")
        stack.callback(provider.stop)
        limit = 10**15
        variants = [
            Variant("no budget", "", "memory:"),
            Variant("SQLite", PER_USER.format(limit=limit), ""),
            Variant("Redis", PER_USER.format(limit=limit), server.url),
            Variant("Redis, reserve", HARD.format(limit=limit), server.url),
        ]
        running: list[tuple[Variant, Gateway, Target]] = []
        for variant in variants:
            place = folder / variant.name.replace(" ", "-").replace(",", "")
            place.mkdir()
            gateway = Gateway(place, provider.port, store=variant.store, budgets=variant.budgets)
            stack.callback(gateway.stop)
            target = Target(variant.name, gateway.port, gateway.child.pid)
            pin(target.pid, cpus[0])
            measure(scenario, target, 1.0)  # warm
            running.append((variant, gateway, target))
        found: dict[str, list[tuple[float, float, float, float]]] = {}
        for _ in range(options.rounds):
            for variant, gateway, target in running:
                before, store = calls(gateway), cpu_seconds(server.child.pid)
                result = measure(scenario, target, options.seconds)
                made = max(1, calls(gateway) - before)
                spent = (cpu_seconds(server.child.pid) - store) / result["requests"] * 1e6
                found.setdefault(variant.name, []).append(
                    (result["cpu_us"], result["latency_p50"], result["requests"] / made, spent)
                )
    rows = {
        name: [statistics.median(column) for column in zip(*each, strict=True)]
        for name, each in found.items()
    }
    base = rows["no budget"][0]
    print("| budgets | CPU us | x none | p50 ms | exchanges in a call | store CPU us |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (cpu, p50, batch, spent) in rows.items():
        told = f"{batch:.0f} | {spent:.1f}" if name != "no budget" else "- | -"
        print(f"| {name} | {cpu:.1f} | {cpu / base:.2f} | {p50:.2f} | {told} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
