"""The micro benchmarks run: once, for correctness; figures are had by `make micro`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from bench.micro import exchange, head, heads, ledger, meter, tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.micro.timing import Row


@pytest.mark.parametrize("run", [head.run, heads.run, meter.run, tokens.run, ledger.run])
def test_each_runs(run: Callable[[int], list[Row]]) -> None:
    rows = run(2)
    assert rows
    assert all(row.microseconds >= 0 for row in rows)


def test_an_exchange_is_whole_and_is_debited_once() -> None:
    async def go() -> None:
        bench = exchange.Bench()
        await bench.exchange(exchange.request(), [exchange.answer()])
        assert b'"usage":{"prompt_tokens":19,' in bench.to_client.last
        bench.run(exchange.request(), [exchange.answer()], 3)
        bench.run(exchange.request(stream=True), exchange.stream_pieces(5), 1)
        await bench.settlement.close(5.0)
        (account,) = bench.ledger.accounts()
        assert account.count.used == 4 * 29 + 210
        await bench.close()

    asyncio.run(go())


def test_with_a_fresh_view_nobody_waits_for_the_store() -> None:
    async def go() -> None:
        bench = exchange.Bench()
        waits = 0
        settlement_wait = bench.settlement.wait

        def wait(*arguments: object) -> None:
            nonlocal waits
            waits += 1
            settlement_wait(*arguments)  # type: ignore[arg-type]

        bench.settlement.wait = wait  # type: ignore[method-assign, assignment]
        for _ in range(50):
            await bench.exchange(exchange.request(), [exchange.answer()])
        assert waits <= 1  # the first may ask for an account that it has not heard of
        await bench.settlement.close(5.0)
        await bench.close()

    asyncio.run(go())
