"""What is read from /proc: texts as a kernel gave them, and processes of our own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench import processes
from bench.processes import Cores, Memory

STAT = (
    "4711 (fast) gw (x) S 4700 4711 4700 0 -1 4194560 9021 312 0 0 151 49 7 3 20 0 9 0 2470122"
    " 412345678 22222 18446744073709551615 1 1 0 0 0 0 0 16781312 17666 0 0 0 17 1 0 0 0 0 0 0"
)
STATUS = "Name:\tpython\nVmPeak:\t  412345 kB\nVmHWM:\t   94208 kB\nVmRSS:\t   90112 kB\n"
PROC_STAT = """cpu  200 10 100 9000 50 5 15 20 0 0
cpu0 100 5 50 4500 25 2 8 10 0 0
cpu1 100 5 50 4500 25 3 7 10 0 0
intr 1 2 3
"""


def test_a_line_of_stat_whose_name_has_parentheses() -> None:
    assert processes.parent_of(STAT) == 4700
    assert processes.cpu_of(STAT) * os.sysconf("SC_CLK_TCK") == 151 + 49 + 7 + 3


def test_resident_memory_and_its_peak() -> None:
    assert processes.memory_of(STATUS) == Memory(88.0, 92.0)
    assert processes.memory_of("Name:\tkthreadd\n") == Memory(0.0, 0.0)


def test_time_that_was_not_idle_holds_what_was_stolen() -> None:
    tick = os.sysconf("SC_CLK_TCK")
    assert processes.busy_of(PROC_STAT, {1}) * tick == 100 + 5 + 50 + 3 + 7 + 10
    assert processes.busy_of(PROC_STAT, {0, 1}) * tick == 350


@pytest.mark.parametrize(
    ("cpus", "cores"),
    [
        ({0}, Cores(*map(frozenset, ({0}, {0}, {0}, {0})))),
        ({0, 1}, Cores(*map(frozenset, ({0}, {1}, {1}, {0, 1})))),
        ({2, 3, 5}, Cores(*map(frozenset, ({2}, {5}, {3}, {2, 3, 5})))),
        (set(range(8)), Cores(*map(frozenset, ({0}, {7}, {6}, {0, 1})))),
    ],
)
def test_who_runs_where(cpus: set[int], cores: Cores) -> None:
    assert Cores.of(cpus) == cores


def test_children_belong_to_the_tree_and_count() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass\nprint('spun', flush=True); input()"
    child = (
        "import subprocess, sys\n"
        f"one = subprocess.Popen([sys.executable, '-c', {spin!r}])\n"
        "one.wait(); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"spun\n"
        pids = processes.tree(parent.pid)
        assert pids[0] == parent.pid
        assert len(pids) == 2
        assert processes.cpu_seconds(pids) >= 0.29
        assert processes.cpu_seconds(pids[:1]) < processes.cpu_seconds(pids)
        assert processes.memory(pids).now > processes.memory(pids[1:]).now > 0
        assert parent.stdin is not None
        parent.stdin.write(b"\n\n")
        parent.stdin.close()


def test_processes_that_have_ended_count_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert processes.cpu_seconds([child.pid]) == 0
    assert processes.memory([child.pid]) == Memory(0.0, 0.0)


def test_what_is_started_within_runs_where_it_is_told() -> None:
    before = os.sched_getaffinity(0)
    cpu = min(before)
    with processes.on_cpus({cpu}):
        told = subprocess.check_output(
            [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
        )
    assert told.decode().strip() == f"{{{cpu}}}"
    assert os.sched_getaffinity(0) == before
