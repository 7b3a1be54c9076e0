"""One measurement, and the rounds of a workload over its targets.

A measurement is what was counted, not what follows from it: bench.figures makes medians and ratios
of the objects that are made here, and results files hold these objects.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from bench import processes, shares, targets
from bench.install import Missing
from bench.targets import Place, Target, TargetFailed, make_keys
from bench.tools import LoadFailed, Tools, environment, run_load
from tests.processes import free_port, request
from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.processes import Cores
    from bench.workloads import Workload

    Say = Callable[[str], None]

WRONG_KEY = "sk-wrong-000000-0123456789abcdef"
REFUSES_WITH = {"litellm": (400,)}
"""A proxy without database calls a key that it does not know a bad request."""
SAID = ("requests", "errors", "events", "seconds", "latency_p50", "latency_p99",
        "first_byte_p50", "first_byte_p99", "age_p50", "age_p99")  # fmt: skip
"""Of what the load generator says, what is kept. Times in ms but `seconds`."""


def measure(
    tools: Tools,
    workload: Workload,
    target: Target,
    place: Place,
    stores: list[int],
    seconds: float,
) -> dict[str, Any]:
    """Load a target once. CPU in seconds, memory in MiB. Raises LoadFailed."""
    key = place.keys[0]
    command = tools.load(
        target.port, target.path, workload, seconds, key, place.folder / "keys.txt"
    )
    stub = [place.provider_pid]
    calls = target.store_calls()
    measured = {*target.pids, *stub, *stores}
    cpus = frozenset().union(*place.cores)
    busy = processes.busy_seconds(cpus) - processes.cpu_seconds(measured)
    before = [processes.cpu_seconds(pids) for pids in (target.pids, stub, stores)]
    loaded = run_load(command, seconds)
    after = [processes.cpu_seconds(pids) for pids in (target.pids, stub, stores)]
    used = [round(late - early, 3) for late, early in zip(after, before, strict=True)]
    busy = processes.busy_seconds(cpus) - processes.cpu_seconds(measured) - busy
    resident = processes.memory(target.pids)
    found = {name: loaded.said[name] for name in SAID if name in loaded.said}
    return found | {
        "cpu": used[0],
        "stub_cpu": used[1],
        "store_cpu": used[2],
        "load_cpu": round(loaded.cpu, 3),
        "other_cpu": round(max(0.0, busy - loaded.cpu), 3),
        "store_calls": target.store_calls() - calls,
        "rss": round(resident.now, 1),
        "rss_peak": round(resident.peak, 1),
    }


def verify(target: Target, place: Place) -> None:
    """A wrong key is refused, a right one gets the provider's answer, and those that debit do so.

    Raises TargetFailed.
    """
    asked: dict[str, Any] = {
        "model": "gpt-3.5-turbo",
        "messages": [{"role": "user", "content": "Hello!"}],
    }
    keys = [(place.keys[0], True), (place.keys[-1], True), (WRONG_KEY, target.name == "direct")]
    for key, right in keys:
        for stream in (False, True):
            body = orjson.dumps(asked | {"stream": True} if stream else asked)
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            headers["x-stub"] = "events=9"
            status, _, answer = request(target.port, "POST", target.path, body, headers)
            if not right:
                good = status in (401, 403, *REFUSES_WITH.get(target.name, ()))
            elif stream:
                good = status == 200 and answer.rstrip().endswith(b"data: [DONE]")
            else:
                good = status == 200 and b'"choices"' in answer and b'"usage"' in answer
            if not good:
                which = "right" if right else "wrong"
                raise TargetFailed(f"the {which} key got {status}: {answer[:200]!r}", target.tail())

    if target.name in targets.DEBITS:
        deadline = time.monotonic() + 10
        while not targets.debited(target, place):
            if time.monotonic() > deadline:
                raise TargetFailed("nothing was debited", target.tail())
            time.sleep(0.1)


def run_workload(
    workload: Workload,
    names: Sequence[str],
    tools: Tools,
    cores: Cores,
    rounds: int,
    seconds: float,
    say: Say,
    profile: bool = False,
) -> dict[str, Any]:
    """All rounds of a workload: its object of the results file.

    Every round measures every target once, each second round in the opposite order. A target that
    is not there, or fails, is told of and left out. With `profile` each is measured once more at
    the end, for the `shares` of its row alone.
    """
    skipped: dict[str, str] = {}
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastgw-bench-")))
        redis, stores = 0, list[int]()
        if set(names) & set(targets.NEED_REDIS):
            with processes.on_cpus(cores.stub):
                server = RedisServer()
            stack.callback(server.end)
            assert server.child is not None
            redis, stores = server.port, [server.child.pid]
        port = free_port()
        stub = targets.launch(
            "stub",
            Place(folder, port, 0, redis, [""], cores),
            port,
            tools.provider(port, workload.stub(seconds)),
            cores.stub,
            environment(),
        )
        stack.callback(stub.stop)
        keys = make_keys(workload.keys)
        running: list[tuple[Target, Place]] = []
        for name in names:
            home = folder / name
            home.mkdir()
            (home / "keys.txt").write_text("\n".join([*keys, ""]))
            place = Place(home, port, stub.pid, redis, keys, cores)
            try:
                target = targets.start(name, place)
                stack.callback(target.stop)
                verify(target, place)
                target.seek()
                rows[name] = {
                    "target": name,
                    "rss_start": round(processes.memory(target.pids).now, 1),
                    "processes": len(target.pids),
                    "rounds": [],
                }
                measure(tools, workload, target, place, stores, min(1.0, seconds))  # warm
                running.append((target, place))
            except Missing as problem:
                skipped[name] = f"not there: {problem}"
            except (TargetFailed, LoadFailed, OSError) as problem:
                skipped[name] = f"failed: {problem.args[0]}"
                say("".join(problem.args[1:]))
            if name in skipped:
                say(f"  {name} {skipped[name]}")
                rows.pop(name, None)
        for number in range(rounds):
            for target, place in running if number % 2 == 0 else reversed(running):
                result = measure(tools, workload, target, place, stores, seconds)
                rows[target.name]["rounds"].append(result)
                cost = result["cpu"] / max(1, result[workload.unit]) * 1e6
                say(
                    f"  round {number + 1}, {target.name}: {cost:.1f} us,"
                    f" {result[workload.unit] / result['seconds']:.0f} {workload.unit}/s"
                )
        for target, place in running if profile else ():
            data = place.folder / "perf.data"
            try:
                with shares.recorded(target.pids, data):
                    measure(tools, workload, target, place, stores, seconds)
                rows[target.name]["shares"] = shares.shares(data)
            except shares.NoProfile as problem:
                say(f"  {target.name} has no profile: {problem}")
    return {
        "name": workload.name,
        "title": workload.title,
        "unit": workload.unit,
        "connections": workload.connections,
        "stub": workload.stub(seconds),
        "skipped": skipped,
        "rows": list(rows.values()),
    }
