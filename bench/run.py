"""`make bench`: CPU per request and per event of the gateway, beside nginx where it is installed.

Each round measures every target once, in turn, so that noise of the machine meets them alike; the
report gives the median of the rounds and the ratio to nginx within the same run. CPU is utime +
stime of the one process that serves, from /proc: on shared machines the only figure that stands.

    make bench ARGS="--rounds 5 --seconds 5"
    make bench ARGS="--only json --store redis"
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from tests.processes import ALICE, PER_USER, ROOT, Gateway, Provider, free_port
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RESULTS = ROOT / "bench" / "results"
TICK = os.sysconf("SC_CLK_TCK")


class Scenario(NamedTuple):
    """A load: the generator's arguments, the field of its answer that CPU is divided by, and what
    the provider is to do."""

    title: str
    arguments: tuple[str, ...]
    unit: str
    behaviour: str


SCENARIOS = {
    "json": Scenario(
        "JSON, about 300 bytes in and 600 out, 64 keep-alive connections",
        ("--connections", "64"),
        "requests",
        "pad=240",
    ),
    "single": Scenario("the same, one connection", ("--connections", "1"), "requests", "pad=240"),
    "sse": Scenario(
        "1,000 streams of 50 events/s, 150 events each, CPU per event",
        ("--connections", "1000", "--stream", "--once"),
        "events",
        "events=150;pace=0.02",
    ),
    "burst": Scenario(
        "64 streams of 200 events as fast as they go, CPU per event",
        ("--connections", "64", "--stream"),
        "events",
        "events=200",
    ),
}


class Target(NamedTuple):
    """Something that serves the load: its port and its process."""

    name: str
    port: int
    pid: int


def cpu_seconds(pid: int) -> float:
    """utime + stime of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident(pid: int) -> float:
    """Resident memory of a process in MiB."""
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    )


def pin(pid: int, cpu: int) -> None:
    """Keep a process on one CPU, so that who is measured does not move."""
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(pid, {cpu})


@contextmanager
def nginx(folder: Path, provider: int) -> Iterator[Target]:
    """nginx as bench/rivals/nginx.conf.in has it."""
    program = shutil.which("nginx")
    assert program is not None
    port = free_port()
    config = folder / "nginx.conf"
    template = (ROOT / "bench" / "rivals" / "nginx.conf.in").read_text()
    config.write_text(template.format(folder=folder, port=port, provider=provider, key=ALICE))
    child = subprocess.Popen(
        [program, "-p", str(folder), "-c", str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(0.5)
        assert child.poll() is None, (folder / "nginx-error.log").read_text()
        yield Target("nginx", port, child.pid)
    finally:
        child.terminate()
        child.wait(20)


@contextmanager
def gateway(folder: Path, provider: int, store: str) -> Iterator[Target]:
    """fastgw with everything on: key, budget, metering, metrics, access log."""
    started = Gateway(folder, provider, store=store, budgets=PER_USER.format(limit=10**15))
    try:
        yield Target("fastgw", started.port, started.child.pid)
    finally:
        assert started.stop() == 0, started.log.read_text()


def measure(scenario: Scenario, target: Target, seconds: float) -> dict[str, float]:
    """One load on one target: the generator's object with `cpu_us`, `rss` and `cpu_share` added."""
    before = cpu_seconds(target.pid)
    run = subprocess.run(
        [
            *(sys.executable, "-m", "bench.load.generator"),
            *("--port", str(target.port), "--seconds", str(seconds), "--key", ALICE),
            *scenario.arguments,
        ],
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    spent = cpu_seconds(target.pid) - before
    if run.returncode:
        raise SystemExit(f"{target.name}: the load failed: {run.stdout!r} {run.stderr.decode()}")
    result: dict[str, float] = orjson.loads(run.stdout)
    result["cpu_us"] = spent / result[scenario.unit] * 1e6
    result["cpu_share"] = spent / result["seconds"]
    result["rss"] = resident(target.pid)
    return result


def compare(
    scenario: Scenario, targets: list[Target], rounds: int, seconds: float, say: Callable[..., None]
) -> list[dict[str, Any]]:
    """Rows of the report, one for each target."""
    found: dict[str, list[dict[str, float]]] = {target.name: [] for target in targets}
    for target in targets:
        measure(scenario, target, 1.0)  # warm
    for number in range(rounds):
        for target in targets:
            result = measure(scenario, target, seconds)
            found[target.name].append(result)
            say(f"  round {number + 1}, {target.name}: {result['cpu_us']:.1f} us")
    rows = []
    for name, results in found.items():
        row: dict[str, Any] = {
            key: statistics.median(each[key] for each in results) for key in results[0]
        }
        rows.append({"name": name, **row})
    return rows


def report(title: str, rows: list[dict[str, Any]]) -> str:
    """A scenario as Markdown."""
    base = next((row["cpu_us"] for row in rows if row["name"] == "nginx"), 0.0)
    lines = [
        f"## {title}",
        "",
        "| target | CPU us | x nginx | requests/s | p50 ms | p99 ms | first byte ms | RSS MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ratio = f"{row['cpu_us'] / base:.2f}" if base else "-"
        lines.append(
            f"| {row['name']} | {row['cpu_us']:.1f} | {ratio} | {row['requests_per_second']:.0f} |"
            f" {row['latency_p50']:.2f} | {row['latency_p99']:.2f} | {row['first_byte_p50']:.2f} |"
            f" {row['rss']:.0f} |"
        )
    return "\n".join([*lines, ""])


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="The benchmark of the gateway.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--only", choices=tuple(SCENARIOS), action="append")
    parser.add_argument("--store", choices=("sqlite", "redis", "memory"), default="sqlite")
    parser.add_argument("--no-rivals", action="store_true")
    options = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    head = [
        "# Benchmark of fastgw",
        "",
        f"{platform.python_implementation()} {platform.python_version()}, {len(cpus)} CPUs,"
        f" {platform.machine()}; store {options.store}; median of {options.rounds} rounds of"
        f" {options.seconds:.0f} s. CPU is that of the one process that serves, on a CPU of its own"
        " where there is a second one. Compare within one run only.",
        "",
        f"    make bench ARGS={' '.join(sys.argv[1:])!r}",
        "",
    ]
    parts = ["\n".join(head)]
    pin(0, cpus[-1])  # this process and its children; who is measured is moved to the first CPU
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastgw-bench-")))
        store = {"sqlite": "", "memory": "memory:"}.get(options.store)
        if store is None:
            server = RedisServer()
            stack.callback(server.end)
            store = server.url
        for name in options.only or SCENARIOS:
            scenario = SCENARIOS[name]
            print(scenario.title, flush=True)
            with ExitStack() as running:
                provider = Provider(folder, scenario.behaviour, 0, "--no-log")
                running.callback(provider.stop)
                targets = []
                if shutil.which("nginx") and not options.no_rivals:
                    targets.append(running.enter_context(nginx(folder, provider.port)))
                targets.append(running.enter_context(gateway(folder, provider.port, store)))
                for target in targets:
                    pin(target.pid, cpus[0])
                rows = compare(
                    scenario,
                    targets,
                    options.rounds,
                    options.seconds,
                    lambda line: print(line, flush=True),
                )
            parts.append(report(scenario.title, rows))
    text = "\n".join(parts)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"local-{time.strftime('%Y%m%d-%H%M%S')}.md"
    path.write_text(text)
    print(f"\n{text}\nwritten to {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
