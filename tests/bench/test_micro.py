"""The micro benchmarks run: once, for correctness; figures are had by `make micro`."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import orjson
import pytest

from bench.micro import exchange, head, heads, hostile, ledger, many, meter, tokens
from fastgw.http1.body import ChunkedDecoder
from fastgw.skeleton import MOST
from fastgw.usage.api import Api
from fastgw.usage.meter import KEEP_LONG

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


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("size", [1 << 20, 16_384, 4097, 1000, 333])
def test_a_stream_in_large_reads_is_the_same_and_costs_the_same(size: int, asks: bool) -> None:
    async def go() -> None:
        bench = exchange.Bench()
        await bench.exchange(exchange.request(), [exchange.answer()])
        sent = exchange.request(stream=True)
        if asks:
            before, _, body = sent.rpartition(b"\r\n\r\n")
            body = body.replace(b"true}", b'true,"stream_options":{"include_usage":true}}')
            sent = before.replace(
                b"Length: %d" % (len(sent) - len(before) - 4), b"Length: %d" % len(body)
            )
            sent += b"\r\n\r\n" + body
        events = [meter.EVENT.replace(b" token", b" " + b"x" * (n % 40)) % b"" for n in range(300)]
        usage = meter.LAST.partition(b"data: [DONE]")[0]
        chunks = [b"%x\r\n%b\r\n" % (len(event), event) for event in (*events, usage)]
        chunks.append(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        data = exchange.stream_pieces(0)[0] + b"".join(chunks)
        wrote: list[bytes] = []
        bench.client.write = wrote.append  # type: ignore[assignment]
        bench.run(sent, [data[at : at + size] for at in range(0, len(data), size)], 1)
        decoder = ChunkedDecoder()
        got = decoder.feed(b"".join(wrote).partition(b"\r\n\r\n")[2])
        assert decoder.ended
        assert got == b"".join(events) + usage * asks + b"data: [DONE]\n\n"
        await bench.settlement.close(5.0)
        (account,) = bench.ledger.accounts()
        assert account.count.used == 29 + 210
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


@pytest.mark.parametrize("case", hostile.cases(3_000_000), ids=lambda case: case.name)
def test_no_call_of_the_meter_reads_much_of_a_hostile_answer(
    case: hostile.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the answer's size: what JSON is read of it in one call, and what is kept of it."""
    read: list[int] = []
    loads = orjson.loads

    def counted(data: bytes | str) -> object:
        read.append(len(data))
        return loads(data)

    monkeypatch.setattr("orjson.loads", counted)
    monkeypatch.setattr("json.loads", counted)
    meter = case.meter()
    calls: list[Callable[[], object]] = [
        lambda: meter.interim(lambda: 7),
        meter.rest,
        lambda: meter.finish(case.complete, lambda: 7),
    ]
    for at in range(0, len(case.body), hostile.READ):
        feed: Callable[[], object] = partial(meter.feed, case.body[at : at + hostile.READ])
        for call in (feed, calls[0]):
            read.clear()
            call()
            assert sum(read) <= KEEP_LONG + hostile.READ
        assert held(meter) <= 2 * MOST + hostile.READ
    for call in calls:
        read.clear()
        call()
        assert sum(read) <= MOST + KEEP_LONG


def held(value: object, seen: set[int] | None = None) -> int:
    """Bytes that an object of ours and all it refers to keep of an answer."""
    seen = seen if seen is not None else set()
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, list | tuple | deque):
        return sum(held(each, seen) for each in value)
    if not type(value).__module__.startswith("fastgw.") or isinstance(value, Api):
        return 0
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return sum(held(getattr(value, name, None), seen) for name in names)


@pytest.mark.parametrize("case", hostile.cases(3_000_000), ids=lambda case: case.name)
def test_a_hostile_answer_costs_what_it_reports_or_what_it_is(case: hostile.Case) -> None:
    found = hostile.measure(case, 50_000)
    assert found == hostile.measure(case)._replace(longest=found.longest, all=found.all)
    if "usage" in case.name and "no" not in case.name and "without" not in case.name:
        assert (found.output_tokens, found.source) == (9, "reported")


def test_many_keys_in_turn_are_served_and_debited_and_leave_nothing_to_the_collector() -> None:
    """What is kept for a key or an account is what was made for it first."""

    async def go() -> None:
        bench, sent = await many.warmed(40, 8)
        assert len(bench.ledger.accounts()) == 8
        gc.collect()
        gc.disable()
        try:
            for each in many.turns(sent, 200):
                bench.run(each, [exchange.answer()], 1)
            await asyncio.sleep(0)
            assert gc.collect() == 0
        finally:
            gc.enable()
        assert len(bench.ledger.accounts()) == 8
        await bench.settlement.close(5.0)
        assert sum(each.count.used for each in bench.ledger.accounts()) == 240 * 29
        await bench.close()

    asyncio.run(go())
