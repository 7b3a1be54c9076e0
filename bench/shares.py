"""Where the CPU of a target goes: `perf record` while it is loaded, its samples put to parts.

A sample belongs to who ran when it was taken; one of the kernel to the system call that it was in,
which the stack tells. Linux and its `perf` only, with the right to profile processes of one's own
(`kernel.perf_event_paranoid` at most 1, or root).
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

FREQUENCY = 997
"""Samples a second: no multiple of what timers do."""

ACKS = "kernel: TCP acknowledges what was read"
READ, WRITE, WAIT = "kernel: reading", "kernel: writing", "kernel: waiting"
KERNEL = "kernel: rest"
OURS = "fastgw's modules, compiled"
INTERPRETER = "the interpreter"
OWN = "its own code"
REST = "rest"

_CALLS = (
    (READ, ("ksys_read", "do_readv", "__sys_recvfrom", "__sys_recvmsg")),
    (WRITE, ("ksys_write", "do_writev", "__sys_sendto", "__sys_sendmsg")),
    (WAIT, ("do_epoll_wait", "do_epoll_pwait", "ep_poll")),
)
_FILES = (
    ("__mypyc.", OURS),
    ("/uvloop/", "uvloop"),
    ("/msgspec/", "msgspec"),
    ("/orjson/", "orjson"),
    ("/hiredis/", "hiredis"),
    ("/libsqlite3.", "SQLite"),
    ("/libluajit", "Lua"),
    ("/libc.so.", "C library"),
    ("/libpython3", INTERPRETER),
    ("/bin/python3", INTERPRETER),
    ("/bin/", OWN),
    ("/sbin/", OWN),
    ("/nginx/modules/", OWN),
    ("[vdso]", "clocks"),
)
"""What a path of a mapped file holds, and whose it is; the first that fits."""

PARTS = (
    *(READ, ACKS, WRITE, WAIT, KERNEL, INTERPRETER, OURS, "uvloop", "msgspec", "orjson"),
    *("hiredis", "SQLite", "Lua", "C library", "clocks", OWN, REST),
)
"""All parts, in the order of a table."""


class NoProfile(RuntimeError):
    """There is no perf, or it may not, or it took no sample; the message says which."""


def part_of(stack: Sequence[tuple[str, str]]) -> str:
    """The part of PARTS that a sample belongs to: its stack as (symbol, file), innermost first."""
    place = stack[0][1]
    if place == "[kernel.kallsyms]" or place.endswith(".ko"):
        symbols = {symbol for symbol, _ in stack}
        for part, calls in _CALLS:
            if not symbols.isdisjoint(calls):
                return ACKS if part == READ and "__tcp_transmit_skb" in symbols else part
        return KERNEL
    for mark, part in _FILES:
        if mark in place:
            return part
    return REST


def shares_of(script: Iterable[str]) -> dict[str, float]:
    """Fractions by part, those with samples alone, in the order of PARTS.

    `script` are the lines of `perf script -F ip,sym,dso`: a line for each frame, a blank one after
    each sample. Raises NoProfile where there is none.
    """
    found: Counter[str] = Counter()
    stack: list[tuple[str, str]] = []
    for line in (*script, ""):
        frame = line.split(None, 1)
        if frame:
            symbol, _, place = frame[-1].rpartition(" (")
            stack.append((symbol, place.rstrip(")\n")))
        elif stack:
            found[part_of(stack)] += 1
            stack = []
    total = found.total()
    if not total:
        raise NoProfile("perf took no sample")
    return {part: round(found[part] / total, 4) for part in PARTS if found[part]}


@contextmanager
def recorded(pids: Sequence[int], data: Path) -> Iterator[None]:
    """Samples of these processes while within, in the file `data`. Raises NoProfile."""
    perf = shutil.which("perf")
    if perf is None:
        raise NoProfile("there is no perf (Debian: apt-get install linux-perf)")
    command = [perf, "record", "-q", "-F", str(FREQUENCY), "-g", "-o", str(data)]
    command += ["-p", ",".join(map(str, pids))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        try:
            yield
        finally:
            child.send_signal(signal.SIGINT)
            try:
                said, _ = child.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                child.kill()
                raise NoProfile("perf record did not end") from None
    if not data.exists() or not data.stat().st_size:
        raise NoProfile(f"perf record: {said.decode(errors='replace').strip()[-500:]}")


def shares(data: Path) -> dict[str, float]:
    """Fractions by part of what was recorded. Raises NoProfile."""
    command = ["perf", "script", "-i", str(data), "-F", "ip,sym,dso"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        return shares_of(child.stdout)
