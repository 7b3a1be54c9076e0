"""The benchmark of numbers runs, with small ones."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from bench import scale
from fastgw.config import toml

if TYPE_CHECKING:
    import pytest


def test_a_gateway_of_keys_is_started_and_reloaded(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(scale.start([2]))
    asyncio.run(scale.reload([2]))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in lines if line.startswith("  ")] == ["        2"] * 8
    assert re.search(r"2 key +\d+\.\d\d", lines[2])


def test_every_key_gets_an_account_and_a_series() -> None:
    async def main() -> None:
        async with scale.gateway(5, more=scale.LABELS % 100) as running:
            await scale.use(running, 5, connections=2)
            few = await scale.fetch(running.admin, b"/metrics")
        async with scale.gateway(50, more=scale.LABELS % 1000) as running:
            await scale.use(running, 50, connections=2)
            assert await scale.fetch(running.admin, b"/metrics") > 3 * few

    asyncio.run(main())


def test_keys_are_written_as_the_reader_likes_them() -> None:
    """Else the benchmark would measure tomllib."""
    for hashed in (True, False):
        text = "".join(scale.keys_of(3, hashed))
        assert toml.loads(text, lambda entry: entry["name"])["keys"] == ["key-0", "key-1", "key-2"]
