"""Background tasks are held until they end, and say how they died."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

from fastgw import clock, tasks

if TYPE_CHECKING:
    import pytest


def test_a_task_that_nobody_holds_lives_on() -> None:
    async def main() -> None:
        done = asyncio.Event()

        async def work() -> None:
            await asyncio.sleep(0.02)
            done.set()

        tasks.spawn(work(), "work")
        gc.collect()
        await asyncio.wait_for(done.wait(), 5)
        await asyncio.sleep(0)
        assert not tasks._running

    asyncio.run(main())


def test_an_error_in_a_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async def work() -> None:
            raise ValueError("broken pump")

        await asyncio.wait([tasks.spawn(work(), "pump")])
        await asyncio.sleep(0)

    asyncio.run(main())
    assert "task pump died" in caplog.text
    assert "broken pump" in caplog.text


def test_timestamps_are_utc_with_milliseconds() -> None:
    assert clock.timestamp(0.0) == "1970-01-01T00:00:00.000Z"
    assert clock.timestamp(1_700_000_000.9996) == "2023-11-14T22:13:20.999Z"
