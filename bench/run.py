"""`make bench`: what fastgw costs for a request and an event, beside what one would pick instead.

    make bench                                    all workloads, results in bench/results
    make bench ARGS="--quick"                     one round of a second
    make bench ARGS="--only w1,w3 --rounds 5 --seconds 5"
    make bench ARGS="--only w1 --targets nginx,fastgw"
    make bench ARGS="--only w1 --profile"         and where the CPU goes, by perf
    make bench ARGS="--install"                   environments for the rivals of PyPI
    .venv/bin/python -m bench.report [RESULTS]    bench/README.md and its plots of a file

Each round measures every target once, so that noise of the machine meets them alike. What is
measured, and how, stands in bench/README.md.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from bench import figures, machine
from bench.install import install, make_compiled, versions
from bench.measure import run_workload
from bench.processes import Cores
from bench.targets import TARGETS, VARIANTS
from bench.tools import ROOT, Tools
from bench.workloads import GROUPS, WORKLOADS

RESULTS = ROOT / "bench" / "results"
FORMAT = 1


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; `only` and `targets` are lists of names that exist."""
    parser = argparse.ArgumentParser(
        description="What fastgw costs, beside what one would pick instead."
    )
    parser.add_argument("--only", type=_names, default=list(GROUPS), metavar="w1,w3")
    parser.add_argument("--targets", type=_names, default=list(TARGETS), metavar="nginx,fastgw")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement")
    parser.add_argument("--quick", action="store_true", help="one round of one second")
    parser.add_argument("--python-tools", action="store_true", help="load and stub in Python")
    parser.add_argument("--output", type=Path, help="file of the results; default: local-*")
    parser.add_argument(
        "--reference", action="store_true", help="name the results for the repository"
    )
    parser.add_argument("--profile", action="store_true", help="where the CPU goes, by perf")
    parser.add_argument("--install", action="store_true", help="what rivals need, then end")
    options = parser.parse_args(arguments)
    known = {*GROUPS, *(workload.name for workload in WORKLOADS)}
    for name in options.only:
        if name not in known:
            parser.error(f"--only: {name!r} is none of {', '.join(GROUPS)}")
    for name in options.targets:
        if name not in TARGETS:
            parser.error(f"--targets: {name!r} is none of {', '.join(TARGETS)}")
    if options.quick:
        options.rounds, options.seconds = 1, min(1.0, options.seconds)
    return options


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; the object of a results file."""
    wanted = [
        (workload, [name for name in workload.targets if name in options.targets])
        for workload in WORKLOADS
        if workload.name in options.only or workload.group in options.only
    ]
    if any(name in VARIANTS and VARIANTS[name].compiled for _, names in wanted for name in names):
        make_compiled()
    began, date = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    cpus = os.sched_getaffinity(0)
    cores = Cores.of(cpus)
    tools = Tools.python() if options.python_tools else Tools.find()
    results: dict[str, Any] = {
        "format": FORMAT,
        "date": date,
        "commit": machine.commit(),
        "machine": machine.describe(),
        "versions": versions(),
        "options": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "tools": tools.kind,
            "cpus": {name: sorted(value) for name, value in cores._asdict().items()},
        },
        "workloads": [],
    }
    os.sched_setaffinity(0, cores.load)  # this process, and the load that it starts
    try:
        for workload, names in wanted:
            print(f"{workload.name}: {workload.title}", flush=True)
            results["workloads"].append(
                run_workload(
                    workload,
                    names,
                    tools,
                    cores,
                    options.rounds,
                    options.seconds,
                    lambda line: print(line, flush=True),
                    options.profile,
                )
            )
    finally:
        os.sched_setaffinity(0, cpus)
    results["took"] = round(time.monotonic() - began)
    return results


def place_for(results: dict[str, Any], options: argparse.Namespace) -> Path:
    """Where a results file goes."""
    if options.output:
        return Path(options.output)
    if options.reference:
        return RESULTS / f"{results['date'][:10]}-{machine.slug(results['machine'])}.json"
    return RESULTS / f"local-{time.strftime('%Y%m%d-%H%M%S')}.json"


def dump(results: dict[str, Any]) -> str:
    """A results file: JSON in which each measurement is one line."""
    text = orjson.dumps(results, option=orjson.OPT_INDENT_2).decode()
    one_line = re.sub(r"[{\[][^{}\[\]]*[}\]]", lambda found: " ".join(found[0].split()), text)
    return f"{one_line}\n"


def main() -> int:
    """See the module; 1 if a request failed or a target did."""
    options = parse()
    if options.install:
        install()
        return 0
    results = run(options)
    path = place_for(results, options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(results))
    print(f"\n{figures.tables(results)}\n\n{figures.aims_table(results)}\n")
    print(f"{figures.reading(results)} Written to {path}")
    return 1 if figures.failures(results) else 0


if __name__ == "__main__":
    sys.exit(main())
