"""Counts what the interpreter does for an exchange and for an event: the same each time, but for
what is done once a second.

    python -m bench.micro.steps

Python calls, calls of built-in functions, and instructions of the interpreter. Unlike microseconds
they do not depend on the machine, so `tests/bench/test_steps.py` holds them to a bound. Calls are
much the same in all versions of Python; instructions are not. Compiled modules show none.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.micro.exchange import Bench, answer, request, stream_pieces

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

EXCHANGES = 50
EVENTS = 100


class Steps(NamedTuple):
    """For each exchange or event, on average."""

    calls: float
    builtins: float
    instructions: float


def count(run: Callable[[], object], number: int) -> Steps:
    """What `run` does, divided by `number`. Two runs: each way of counting slows the other."""
    calls = builtins = instructions = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls, builtins
        if event == "call":
            calls += 1
        elif event == "c_call":
            builtins += 1

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal instructions
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            instructions += 1
        return trace

    before = sys.getprofile(), sys.gettrace()
    try:
        sys.setprofile(profile)
        run()
        sys.setprofile(None)
        sys.settrace(trace)
        run()
    finally:
        sys.setprofile(before[0])
        sys.settrace(before[1])
    return Steps(calls / number, builtins / number, instructions / number)


async def measure() -> dict[str, Steps]:
    """Steps of a JSON exchange, of an event, and of a debit while nothing is to be settled."""
    bench = Bench()
    bench.turn.busy = True  # as under load
    sent, got = request(), [answer()]
    await bench.exchange(sent, got)
    bench.run(sent, got, 10)
    found = {"a JSON exchange": count(lambda: bench.run(sent, got, EXCHANGES), EXCHANGES)}
    sent, got = request(stream=True), stream_pieces(EVENTS)
    bench.run(sent, got, 2)
    few = count(lambda: bench.run(sent, stream_pieces(0), 1), 1)
    many = count(lambda: bench.run(sent, got, 1), 1)
    event = (round((more - less) / EVENTS, 2) for more, less in zip(many, few, strict=True))
    found["an event of a stream"] = Steps(*event)
    await bench.close()
    return found


if __name__ == "__main__":
    for name, steps in asyncio.run(measure()).items():
        print(
            f"{name:24}{steps.calls:7.1f} calls{steps.builtins:7.1f} built-in"
            f"{steps.instructions:9.0f} instructions"
        )
