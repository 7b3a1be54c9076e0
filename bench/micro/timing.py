"""How the micro benchmarks time: CPU of this process, best of several repeats.

The best repeat, not the mean: what else runs on the machine can only add. A figure is good for a
comparison within one run and for nothing else.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Row(NamedTuple):
    """One line of a report: what was timed, microseconds of CPU for each."""

    name: str
    microseconds: float


def timed(name: str, call: Callable[[], object], number: int, repeats: int = 5) -> Row:
    """Call `call` `number` times, `repeats` times over; the row of the best repeat."""
    best = float("inf")
    for _ in range(repeats):
        gc.collect()
        began = time.process_time()
        for _ in range(number):
            call()
        best = min(best, time.process_time() - began)
    return Row(name, best / number * 1e6)


def show(title: str, rows: list[Row]) -> None:
    """Print a report."""
    print(f"{title}\n")
    for row in rows:
        print(f"  {row.microseconds:8.2f} us  {row.name}")
    print()
