"""What a process and its children have used, from /proc; and on which CPUs they run."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_TICK = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


class Memory(NamedTuple):
    """MiB: resident now, and the most that it has been."""

    now: float
    peak: float


def parent_of(stat: str) -> int:
    """The parent's pid in a line of /proc/PID/stat; the name in it may hold anything."""
    return int(stat.rpartition(")")[2].split()[1])


def cpu_of(stat: str) -> float:
    """CPU seconds in a line of /proc/PID/stat: utime + stime of all threads, those that ended
    included, and of children that were waited for."""
    return sum(map(int, stat.rpartition(")")[2].split()[11:15])) / _TICK


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for place in _PROC.iterdir():
        if place.name.isdigit():
            try:
                children.setdefault(parent_of((place / "stat").read_text()), []).append(
                    int(place.name)
                )
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU seconds of processes; one that has ended counts in its parent."""
    total = 0.0
    for pid in pids:
        try:
            total += cpu_of((_PROC / str(pid) / "stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def busy_of(stat: str, cpus: Iterable[int]) -> float:
    """CPU seconds that these CPUs were not idle, by the text of /proc/stat; time that was stolen by
    other guests of the host counts."""
    names = {f"cpu{cpu}" for cpu in cpus}
    total = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name in names:
            user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
            total += user + nice + system + irq + softirq + steal
    return total / _TICK


def busy_seconds(cpus: Iterable[int]) -> float:
    """CPU seconds that these CPUs were not idle since the machine came up."""
    return busy_of((_PROC / "stat").read_text(), cpus)


def memory_of(status: str) -> Memory:
    """Of the text of /proc/PID/status."""
    found = {}
    for line in status.splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(rest.split()[0]) / 1024
    return Memory(found.get("VmRSS", 0.0), found.get("VmHWM", 0.0))


def memory(pids: Iterable[int]) -> Memory:
    """Sums over processes; what they share counts in each."""
    now = peak = 0.0
    for pid in pids:
        try:
            one = memory_of((_PROC / str(pid) / "status").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
        now, peak = now + one.now, peak + one.peak
    return Memory(now, peak)


@contextmanager
def on_cpus(cpus: Iterable[int]) -> Iterator[None]:
    """Processes that are started within run on these CPUs, with every thread that they make."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cpus))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Cores(NamedTuple):
    """Who runs where. With two CPUs the load, the stub and the stores share one."""

    target: frozenset[int]
    load: frozenset[int]
    stub: frozenset[int]
    """The stub provider, and stores."""
    pair: frozenset[int]
    """For two workers: their own where there are enough, else all."""

    @classmethod
    def of(cls, cpus: Iterable[int]) -> Cores:
        """The CPUs that may be used, shared out."""
        each = sorted(cpus)
        stub = each[-2] if len(each) > 2 else each[-1]
        pair = each[:2] if len(each) >= 4 else each
        return cls(frozenset(each[:1]), frozenset(each[-1:]), frozenset((stub,)), frozenset(pair))
