"""Time-outs by sweeping: late by a sweep or two, never early."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from fastgw.flow_control import SLICE, Spread, Sweeper

if TYPE_CHECKING:
    from collections.abc import Sequence


class Connection:
    def __init__(self, patience: float, fails: bool = False) -> None:
        self.expires = 0.0
        self.patience = patience
        self.fails = fails
        self.ended = 0

    def expired(self) -> None:
        self.ended += 1
        if self.fails:
            raise RuntimeError("a connection with a bug")


@given(st.floats(0.5, 100), st.lists(st.tuples(st.floats(0.1, 2), st.booleans()), max_size=60))
def test_never_early(patience: float, steps: list[tuple[float, bool]]) -> None:
    sweeper, connection = Sweeper(), Connection(patience)
    sweeper.add(connection)
    now = progress = 1000.0
    for step, moves in steps:
        now += step
        if moves:
            progress = now
            connection.expires = 0.0
        sweeper.sweep(now, [connection])
        if connection.ended:
            assert now - progress >= patience * (1 - 1e-9)
            return


def test_silence_ends_and_patience_without_bound_does_not() -> None:
    sweeper = Sweeper()
    bounded, endless = Connection(5.0), Connection(0.0)
    for each in (bounded, endless):
        sweeper.add(each)
    for now in (100.0, 104.9):
        sweeper.sweep(now, [bounded, endless])
    assert bounded.ended == 0
    sweeper.sweep(105.0, [bounded, endless])
    sweeper.sweep(1e9, [endless])
    assert (bounded.ended, endless.ended) == (1, 0)


def test_one_that_left_is_not_called_and_a_bug_harms_no_other() -> None:
    sweeper = Sweeper()
    gone, bad, good = Connection(1.0), Connection(1.0, fails=True), Connection(1.0)
    for each in (gone, bad, good):
        sweeper.add(each)
    sweeper.sweep(10.0, [gone, bad, good])
    sweeper.discard(gone)
    sweeper.sweep(20.0, [gone, bad, good])
    assert (gone.ended, bad.ended, good.ended) == (0, 1, 1)
    assert len(sweeper) == 2


def test_a_crowd_is_looked_at_in_parts_each_once() -> None:
    async def run() -> None:
        parts: list[list[int]] = []
        done = asyncio.Event()

        def work(some: Sequence[Any]) -> None:
            parts.append(list(some))
            if sum(map(len, parts)) >= 3 * SLICE:
                done.set()

        Spread(work).over(range(3 * SLICE))
        assert len(parts) == 1  # the rest in turns of their own
        async with asyncio.timeout(10):
            await done.wait()
        assert sorted(each for part in parts for each in part) == list(range(3 * SLICE))
        assert max(map(len, parts)) <= SLICE

    asyncio.run(run())


def test_a_new_round_finishes_the_old_one_and_stop_ends_it() -> None:
    async def run() -> None:
        seen: list[int] = []
        spread = Spread(seen.extend)
        spread.over(range(3 * SLICE))
        spread.over([-1])
        assert sorted(seen) == [-1, *range(3 * SLICE)]
        seen.clear()
        spread.over(range(3 * SLICE))
        spread.stop()
        await asyncio.sleep(0.05)
        assert len(seen) == SLICE

    asyncio.run(run())
