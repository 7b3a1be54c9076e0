"""What follows from measurements: medians, ratios, tables, and the aims that are held against them.

All of it is made from the object of a results file (bench.measure, bench.run) and nothing else, so
that a committed file gives the same tables anywhere.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import shares

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY = 0.9
"""Share of its CPUs from which on somebody is the one who limits the rate."""
NOISY = 0.1
"""CPUs that others use from which on figures are provisional."""
MB = 2**20 / 1e6


class Figures(NamedTuple):
    """A target under a workload; medians of the rounds."""

    target: str
    cpu_us: float
    """CPU microseconds of the target for each request or event."""
    ratios: dict[str, float]
    """To every other target: the median of the ratios of one round."""
    rate: float
    """Requests or events a second."""
    p50: float
    p99: float
    """Milliseconds of a whole answer."""
    first_byte: float
    """Milliseconds to the first byte, median."""
    age: tuple[float, float]
    """p50 and p99 of the milliseconds from the stub's writing an event to its reading; 0 where
    events are not paced, or are written anew on the way."""
    share: float
    """CPUs that it used: 1.0 is one of them all the time."""
    limit: str
    """Who limits the rate: itself, load, others (what else runs on the machine) or nobody."""
    rss_start: float
    rss: float
    rss_peak: float
    """MiB before the first request, after the last, and at most."""
    store_us: float
    """CPU microseconds of the Redis server for each request."""
    batch: float
    """Requests for each call to the store; 0 without a store."""


def median(rounds: list[dict[str, Any]], of: Callable[[dict[str, Any]], float]) -> float:
    """The median over rounds."""
    return float(statistics.median(of(each) for each in rounds))


def cpu_us(result: dict[str, Any], unit: str) -> float:
    """CPU microseconds for each request or event of a measurement."""
    return float(result["cpu"] / max(1, result[unit]) * 1e6)


def limit(result: dict[str, Any], cpus: dict[str, list[int]], target: str) -> str:
    """Who had no CPU left: itself, or load (the generator, the stub or the store). Else others,
    where they took a share of the CPUs that counts, or nobody."""
    seconds = result["seconds"]
    own = len(cpus["pair" if target == "fastgw-two" else "target"])
    if target != "direct" and result["cpu"] / seconds >= BUSY * own:
        return "itself"
    load = result["load_cpu"] / seconds
    stub = (result["stub_cpu"] + result["store_cpu"]) / seconds
    shared = cpus["load"] == cpus["stub"]
    if (load + stub if shared else max(load, stub)) >= BUSY:
        return "load"
    return "others" if result["other_cpu"] / seconds > 1 - BUSY else "nobody"


def of(workload: dict[str, Any], cpus: dict[str, list[int]]) -> dict[str, Figures]:
    """The figures of every target of a workload, in the order of the file."""
    unit = workload["unit"]
    found = {}
    for row in workload["rows"]:
        name, rounds = row["target"], row["rounds"]
        ratios = {
            other["target"]: statistics.median(
                cpu_us(mine, unit) / max(1e-9, cpu_us(theirs, unit))
                for mine, theirs in zip(rounds, other["rounds"], strict=True)
            )
            for other in workload["rows"]
            if other["target"] != "direct"
        }
        limits = [limit(each, cpus, name) for each in rounds]
        found[name] = Figures(
            target=name,
            cpu_us=median(rounds, lambda each: cpu_us(each, unit)),
            ratios={} if name == "direct" else ratios,
            rate=median(rounds, lambda each: each[unit] / each["seconds"]),
            p50=median(rounds, lambda each: each["latency_p50"]),
            p99=median(rounds, lambda each: each["latency_p99"]),
            first_byte=median(rounds, lambda each: each["first_byte_p50"]),
            age=(
                median(rounds, lambda each: each.get("age_p50", 0.0)),
                median(rounds, lambda each: each.get("age_p99", 0.0)),
            ),
            share=median(rounds, lambda each: each["cpu"] / each["seconds"]),
            limit=statistics.mode(limits),
            rss_start=row["rss_start"],
            rss=rounds[-1]["rss"],
            rss_peak=max(each["rss_peak"] for each in rounds),
            store_us=median(rounds, lambda each: each["store_cpu"] / max(1, each[unit]) * 1e6),
            batch=median(rounds, lambda each: each["requests"] / max(1, each["store_calls"]))
            * bool(rounds[-1]["store_calls"]),
        )
    return found


def all_of(results: dict[str, Any]) -> dict[str, dict[str, Figures]]:
    """Figures by workload and target."""
    cpus = results["options"]["cpus"]
    return {workload["name"]: of(workload, cpus) for workload in results["workloads"]}


def noise(results: dict[str, Any]) -> tuple[float, float]:
    """CPUs that processes which were not measured used: median and most."""
    used = [
        each["other_cpu"] / each["seconds"]
        for workload in results["workloads"]
        for row in workload["rows"]
        for each in row["rounds"]
    ]
    return (statistics.median(used), max(used)) if used else (0.0, 0.0)


def reading(results: dict[str, Any]) -> str:
    """Of the results as a whole."""
    median_share, most = noise(results)
    took = f"{results['took'] / 60:.0f} min"
    return (
        f"{took}; what else ran on the machine used {median_share:.2f} CPUs (median of the"
        f" measurements), {most:.2f} at most."
        + " That is too much: the figures are provisional."
        * (median_share > NOISY)
    )


def failures(results: dict[str, Any]) -> list[str]:
    """Requests that failed, and targets that did, in words."""
    found = []
    for workload in results["workloads"]:
        for row in workload["rows"]:
            errors = sum(each["errors"] for each in row["rounds"])
            if errors:
                found.append(f"{workload['name']}, {row['target']}: {errors} requests failed")
        for name, why in workload["skipped"].items():
            if why.startswith("failed"):
                found.append(f"{workload['name']}, {name} {why}")
    return found


_STORES = {
    "fastgw": "sqlite",
    "fastgw-redis": "redis",
    "fastgw-reserve": "redis",
    "fastgw-compiled": "sqlite",
    "fastgw-compiled-redis": "redis",
    "fastgw-compiled-reserve": "redis",
}
_STREAM_HEADS = ["first byte, ms", "an event's way, p50 ms", "p99 ms"]


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(figures: Figures, base: str) -> str:
    return f"{figures.ratios[base]:.2f}" if base in figures.ratios else "-"


def table(workload: dict[str, Any], cpus: dict[str, list[int]]) -> str:
    """A workload as Markdown."""
    group, unit = workload["name"].partition("-")[0], workload["unit"]
    figures = of(workload, cpus)
    heads = ["target", "CPU us", "x nginx", f"{unit}/s"]
    heads += _STREAM_HEADS if unit == "events" else ["p50 ms", "p99 ms"]
    heads += ["added p50, us"] if group == "w4" else []
    heads += ["x all off", "requests in a store call", "Redis CPU us"] if group == "w7" else []
    heads += ["CPUs used", "rate limited by", "MiB at start / after / peak"]
    lines = [_cells(*heads), _cells(*("---" for _ in heads))]
    for name, each in figures.items():
        direct = name == "direct"
        cells = [name, "-" if direct else f"{each.cpu_us:.3g}" if each.cpu_us < 10 else
                 f"{each.cpu_us:.1f}", _ratio(each, "nginx"), f"{each.rate:,.0f}"]  # fmt: skip
        if unit == "events":
            cells.append(f"{each.first_byte:.2f}")
            cells += [f"{age:.2f}" if age else "-" for age in each.age]
        else:
            cells += [f"{each.p50:.3f}", f"{each.p99:.3f}"]
        if group == "w4":
            added = (each.p50 - figures["direct"].p50) * 1000 if "direct" in figures else 0.0
            cells.append("-" if direct else f"{added:.0f}")
        if group == "w7":
            build = "fastgw-compiled" if name.startswith("fastgw-compiled") else "fastgw"
            cells.append(_ratio(each, f"{build}-off"))
            cells.append(f"{each.batch:.0f}" if name in _STORES else "-")
            cells.append(f"{each.store_us:.1f}" if _STORES.get(name) == "redis" else "-")
        memory = f"{each.rss_start:.0f} / {each.rss:.0f} / {each.rss_peak:.0f}"
        cells += ["-" if direct else f"{each.share:.2f}", each.limit, "-" if direct else memory]
        lines.append(_cells(*cells))
    lines += [f"\n{name}: {why}" for name, why in workload["skipped"].items()]
    return "\n".join(lines)


def profile(workload: dict[str, Any], cpus: dict[str, list[int]]) -> str:
    """Where the CPU goes, as Markdown: microseconds for each request or event, the median cost
    shared out by the samples of a profile (bench.shares); empty without one."""
    rows = {
        row["target"]: row["shares"]
        for row in workload["rows"]
        if "shares" in row and row["target"] != "direct"
    }
    if not rows:
        return ""
    costs = {name: each.cpu_us for name, each in of(workload, cpus).items()}
    lines = [_cells("CPU us by part", *rows), _cells("---", *("---" for _ in rows))]
    for part in shares.PARTS:
        if any(part in row for row in rows.values()):
            spent = (
                f"{row[part] * costs[name]:.2f} ({row[part]:.0%})" if part in row else "-"
                for name, row in rows.items()
            )
            lines.append(_cells(part, *spent))
    return "\n" + "\n".join(lines)


def tables(results: dict[str, Any]) -> str:
    """All workloads, then what failed, as Markdown."""
    cpus = results["options"]["cpus"]
    parts = [
        f"### {workload['name']}: {workload['title']}\n\n{table(workload, cpus)}\n"
        f"{profile(workload, cpus)}".rstrip()
        for workload in results["workloads"]
    ]
    parts += ["\n".join(f"FAILED: {line}" for line in failures(results))]
    return "\n\n".join(part for part in parts if part)


class Aim(NamedTuple):
    """A figure to reach: `measured` is None where the results do not have it."""

    title: str
    measured: float | None
    bar: float
    stretch: float | None
    unit: str = ""
    at_least: bool = False
    tells: bool = True
    """False: this machine cannot tell."""

    def met(self, bound: float | None) -> bool:
        """Whether it is reached."""
        if self.measured is None or bound is None:
            return False
        return self.measured >= bound if self.at_least else self.measured <= bound


def aims(results: dict[str, Any]) -> list[Aim]:
    """The aims that the project set itself, and what the results say of them."""
    found = all_of(results)
    cores = results["machine"]["cpus"]

    def get(workload: str, target: str, what: Callable[[Figures], float]) -> float | None:
        each = found.get(workload, {}).get(target)
        return None if each is None else what(each)

    def ratio(workload: str, target: str, base: str) -> float | None:
        each = found.get(workload, {}).get(target)
        return None if each is None else each.ratios.get(base)

    def p50(workload: str, target: str) -> float | None:
        return get(workload, target, lambda each: each.p50)

    def less(one: float | None, other: float | None) -> float | None:
        return None if one is None or other is None else one - other

    def over(one: float | None, other: float | None) -> float | None:
        return None if one is None or not other or other <= 0 else one / other

    direct = p50("w4", "direct")
    rates = [get("w8", name, lambda each: each.rate) for name in ("fastgw-two", "fastgw")]
    found_aims = []
    for what, name, redis in (
        ("fastgw", "fastgw", "fastgw-redis"),
        ("fastgw compiled", "fastgw-compiled", "fastgw-compiled-redis"),
    ):
        found_aims += [
            Aim(f"w1: CPU of {what}, SQLite / nginx", ratio("w1", name, "nginx"), 1.3, 1.0),
            Aim(f"w1: CPU of {what}, Redis / nginx", ratio("w1", redis, "nginx"), 1.3, 1.0),
            Aim(f"w2: CPU of {what} / nginx", ratio("w2", name, "nginx"), 1.05, 0.9),
            Aim(f"w2-bulk: CPU of {what} / nginx", ratio("w2-bulk", name, "nginx"), 1.05, 0.9),
            Aim(f"w3: CPU of {what} / nginx", ratio("w3", name, "nginx"), 1.05, 0.9),
            Aim(f"w1: CPU of {what} / haproxy", ratio("w1", name, "haproxy"), 1.2, 1.0),
            Aim(f"w1: CPU of {what} / Envoy", ratio("w1", name, "envoy"), 0.45, 0.33),
            Aim(
                f"w1: CPU of {what}, Redis / nginx with Lua and Redis",
                ratio("w1", redis, "nginx-lua"),
                *(0.45, 0.33),
            ),
            Aim(
                f"w1: CPU of LiteLLM / {what}", ratio("w1", "litellm", name), 30, 50, at_least=True
            ),
            Aim(
                f"w4: p50 that {what} adds / that nginx adds",
                over(less(p50("w4", name), direct), less(p50("w4", "nginx"), direct)),
                *(1.5, 1.1),
            ),
            Aim(f"w7: CPU of {what}, all on / off", ratio("w7", name, f"{name}-off"), 1.25, 1.12),
            Aim(
                f"w7: CPU of {what}, reserve / post",
                ratio("w7", f"{name}-reserve", redis),
                *(1.4, 1.25),
            ),
            Aim(
                f"w7: p50 that reserve adds, {what}",
                less(p50("w7", f"{name}-reserve"), p50("w7", redis)),
                *(1.0, None, " ms"),
            ),
            Aim(
                f"RSS of a worker at start, {what}",
                get("w1", name, lambda each: each.rss_start * MB),
                *(60, None, " MB"),
            ),
            Aim(
                f"RSS of a worker after w3, {what}",
                get("w3", name, lambda each: each.rss * MB),
                *(120, None, " MB"),
            ),
        ]
    return [
        *found_aims,
        Aim(
            "w8: rate of two workers / one" + " (too few CPUs to tell)" * (cores < 4),
            over(*rates),
            *(1.8, None),
            at_least=True,
            tells=cores >= 4,
        ),
    ]


def aims_table(results: dict[str, Any]) -> str:
    """The aims as Markdown; those that the results say nothing of are left out."""
    lines = ["| figure | measured | aim | stretch | reached |", "| --- | --- | --- | --- | --- |"]
    for aim in aims(results):
        if aim.measured is None:
            continue
        sign = ">=" if aim.at_least else "<="
        stretch = "-" if aim.stretch is None else f"{sign} {aim.stretch:g}{aim.unit}"
        reached = "stretch" if aim.met(aim.stretch) else "yes" if aim.met(aim.bar) else "no"
        reached = reached if aim.tells else "-"
        measured = f"{aim.measured:.2f}" if aim.measured < 10 else f"{aim.measured:.0f}"
        lines.append(
            _cells(
                aim.title, measured + aim.unit, f"{sign} {aim.bar:g}{aim.unit}", stretch, reached
            )
        )
    return "\n".join(lines)
