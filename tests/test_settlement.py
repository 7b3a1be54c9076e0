"""Debits on their way: nothing lost, nothing twice, whatever the store does."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from typing import TYPE_CHECKING, Any

import pytest

from fastgw import clock, journal
from fastgw.config.tables import Metrics as MetricsSettings
from fastgw.errors import StoreUnavailable
from fastgw.metrics import Metrics
from fastgw.model import Batch, Debit, Settled, Usage
from fastgw.policy.account import Account, Limit, Promise
from fastgw.policy.ledger import Ledger
from fastgw.policy.window import EpochWindow
from fastgw.settlement import Settlement
from fastgw.store.base import UNUSABLE
from fastgw.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = 4_000_000_000.0  # far ahead: the accounts of these tests do not lapse


class Failing(MemoryStore):
    """A real store in front of which things go wrong: one entry of `plan` per call."""

    def __init__(self, *plan: str) -> None:
        super().__init__()
        self.plan = list(plan)
        self.away = False
        self.opened = 0
        self.batches: list[Batch] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def open(self) -> None:
        self.opened += 1
        if self.away:
            raise StoreUnavailable("nobody listens")

    async def settle(self, batch: Batch) -> Settled:
        self.batches.append(batch)
        await self.gate.wait()
        fault = self.plan.pop(0) if self.plan else ""
        if fault == "lost":
            raise StoreUnavailable("lost on the way there")
        answer = await super().settle(batch)
        if fault == "unanswered":
            raise StoreUnavailable("lost on the way back")
        if fault == "bug":
            raise ValueError("malformed reply")
        return answer._replace(used=answer.used[1:]) if fault == "short" else answer


class Waits:
    """An exchange that waits; it may fail as it is admitted."""

    def __init__(self, fails: bool = False) -> None:
        self.admitted = 0
        self.fails = fails
        self.failed = False

    def admit(self) -> None:
        self.admitted += 1
        if self.fails:
            raise RuntimeError("an exchange with a bug")

    def fail(self) -> None:
        self.failed = True


@pytest.fixture(autouse=True)
def _short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgw.settlement.FIRST_RETRY", 0.001)
    monkeypatch.setattr("fastgw.settlement.LAST_RETRY", 0.002)


def account(ledger: Ledger, name: str = "alice") -> Account:
    return ledger.account(Limit("daily", "tokens", 100, EpochWindow("day")), (name,), NOW)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


async def _conserved(fault: str) -> None:
    ledger, store = Ledger("w", math.inf), Failing(fault, fault, fault)
    settlement = Settlement(ledger, store)
    one = account(ledger)
    settlement.start()
    ledger.debit((one,), Usage(3, 4), NOW)
    settlement.wake()
    await until(lambda: not settlement.up)
    ledger.debit((one,), Usage(10, 0), NOW)  # while it is away
    assert one.count.spent == 17
    await until(lambda: settlement.up and not ledger.has_work)
    assert await settlement.close(10)
    assert await store.accounts() == {one.count.key: (17, 0)}
    assert one.count.spent == 17
    # sent again as it was, so that its sequence makes it harmless
    assert store.batches[0] == store.batches[1] == store.batches[2] == store.batches[3]


@pytest.mark.parametrize("fault", ["lost", "unanswered", "bug", "short"])
def test_whatever_fails_every_debit_arrives_once(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        asyncio.run(_conserved(fault))
    away = [each for each in caplog.records if "store away" in each.message]
    back = [each for each in caplog.records if "store back" in each.message]
    assert (len(away), len(back)) == (1, 1)  # a line per change, not per attempt


def test_one_batch_is_under_way_and_the_next_takes_all_that_piled_up() -> None:
    async def run() -> None:
        ledger, store = Ledger("w", math.inf), Failing()
        settlement = Settlement(ledger, store)
        one, two = account(ledger), account(ledger, "bob")
        settlement.start()
        store.gate.clear()
        ledger.debit((one,), Usage(1, 0), NOW)
        settlement.wake()
        await until(lambda: len(store.batches) == 1)
        for _ in range(50):
            ledger.debit((one, two), Usage(1, 0), NOW)
            settlement.wake()
            await asyncio.sleep(0)
        assert len(store.batches) == 1
        store.gate.set()
        assert await settlement.close(10)
        assert [[line.amount for line in batch.debits] for batch in store.batches] == [
            [1],
            [50, 50],
        ]

    asyncio.run(run())


def test_who_waits_decides_with_the_answer_of_the_store() -> None:
    async def run() -> None:
        ledger, store = Ledger("w", 0.1), Failing()
        settlement = Settlement(ledger, store)
        one = account(ledger)
        await store.settle(Batch("other", 1, (Debit(one.count.key, 100, 2**40),)))
        store.gate.clear()
        settlement.start()
        waiter = Waits()
        since = NOW
        assert ledger.stale((one,), since)
        settlement.wait(waiter, (one,), since)
        await until(lambda: len(store.batches) == 2)
        assert waiter.admitted == 0
        store.gate.set()
        await until(lambda: waiter.admitted == 1)
        assert ledger.refuses((one,)) is one
        await settlement.close(10)
        assert waiter.admitted == 1

    asyncio.run(run())


def test_nobody_waits_for_a_store_that_is_away_and_one_bug_harms_no_other() -> None:
    async def run() -> None:
        ledger, store = Ledger("w", 0.1), Failing("lost")
        settlement = Settlement(ledger, store)
        one = account(ledger)
        settlement.start()
        waiters = [Waits(), Waits(fails=True), Waits()]
        assert ledger.stale((one,), NOW)
        for waiter in waiters:
            settlement.wait(waiter, (one,), NOW)
        await until(lambda: all(each.admitted for each in waiters))
        await until(lambda: settlement.up)  # the task outlived the bug
        assert [each.admitted for each in waiters] == [1, 1, 1]
        assert [each.failed for each in waiters] == [False, True, False]
        assert await settlement.close(10)

    asyncio.run(run())


def test_a_store_that_stays_away_keeps_nobody_waiting() -> None:
    async def run() -> None:
        ledger, store = Ledger("w", 0.1), Failing(*["lost"] * 100_000)
        settlement = Settlement(ledger, store)
        one = account(ledger)
        settlement.start()
        for _ in range(3):
            waiter = Waits()
            ledger.stale((one,), NOW)
            settlement.wait(waiter, (one,), NOW)
            await until(lambda waiter=waiter: waiter.admitted == 1)  # type: ignore[misc]
            assert not settlement.up
        await settlement.close(0.05)

    asyncio.run(run())


class Remote(Failing):
    """The same on a server."""

    remote = True


def test_a_server_that_goes_and_comes_is_noticed_without_a_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fastgw.settlement.REFRESH", 0.002)

    async def run() -> None:
        ledger, store = Ledger("w", math.inf), Remote()
        metrics = Metrics(MetricsSettings(), "1")
        settlement = Settlement(ledger, store, series=metrics.store)
        settlement.start()
        await until(lambda: store.opened == 2)
        assert settlement.up
        store.away = True
        await until(lambda: not settlement.up)
        asked = store.opened
        await until(lambda: store.opened > asked + 3)
        store.away = False
        await until(lambda: settlement.up)
        assert not store.batches
        assert await settlement.close(10)
        failures = re.search(rb"\nfastgw_store_failures_total (\S+)", await metrics.render())
        assert failures is not None
        assert float(failures[1]) >= 4

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert [each.getMessage()[:10] for each in caplog.records] == ["store away", "store back"]


def test_a_failed_open_counts_and_the_server_is_asked_at_once() -> None:
    async def run() -> None:
        ledger, store = Ledger("w", math.inf), Remote()
        store.away = True
        settlement = Settlement(ledger, store, opened=False)
        assert not settlement.up
        settlement.start()
        await until(lambda: store.opened > 1)
        store.away = False
        await until(lambda: settlement.up)
        assert await settlement.close(10)

    asyncio.run(run())


def test_a_server_that_is_called_is_not_asked_and_a_file_never(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastgw.settlement.REFRESH", 0.002)

    async def run(store: Failing, quiet: bool) -> None:
        ledger = Ledger("w", math.inf)
        settlement = Settlement(ledger, store)
        one = account(ledger)
        settlement.start()
        for _ in range(40):
            if not quiet:
                ledger.debit((one,), Usage(1, 0), NOW)
                settlement.wake()
            await asyncio.sleep(0.001)
        assert store.opened == 0
        assert settlement.up
        assert await settlement.close(10)

    monkeypatch.setattr("fastgw.settlement.QUIET", 15)
    asyncio.run(run(Remote(), quiet=False))
    asyncio.run(run(Failing(), quiet=True))


def test_a_request_that_comes_while_the_server_is_asked_is_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the answer of its batch, or at once if nobody is there."""
    monkeypatch.setattr("fastgw.settlement.REFRESH", 0.002)

    class Slow(Remote):
        async def open(self) -> None:
            await self.gate.wait()
            await super().open()

    async def run(away: bool) -> None:
        ledger, store = Ledger("w", 0.1), Slow()
        settlement = Settlement(ledger, store)
        one = account(ledger)
        settlement.start()
        store.gate.clear()
        await asyncio.sleep(0.05)  # it is being asked
        waiter = Waits()
        assert ledger.stale((one,), NOW)
        settlement.wait(waiter, (one,), NOW)
        store.away = away
        await asyncio.sleep(0.01)
        assert waiter.admitted == 0
        store.gate.set()
        await until(lambda: waiter.admitted == 1)
        assert settlement.up is not away
        assert await settlement.close(10)

    asyncio.run(run(away=False))
    asyncio.run(run(away=True))


def test_an_account_that_the_store_cannot_keep_is_told_of_and_harms_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Odd(MemoryStore):
        async def settle(self, batch: Batch) -> Settled:
            answer = await super().settle(batch)
            used = [
                UNUSABLE if "odd" in debit.account else value
                for debit, value in zip(batch.debits, answer.used, strict=True)
            ]
            return answer._replace(used=used)

    async def run() -> None:
        ledger = Ledger("w", math.inf)
        settlement = Settlement(ledger, Odd())
        odd, even = account(ledger, "odd"), account(ledger, "even")
        settlement.start()
        for _ in range(2):
            ledger.debit((odd, even), Usage(40, 0), NOW)
            settlement.wake()
            await until(lambda: not ledger.has_work)
        assert settlement.up
        assert [odd.count.spent, even.count.spent] == [80, 80]
        assert await settlement.close(10)

    asyncio.run(run())
    assert "the store cannot keep 1 account(s)" in caplog.text
    assert "odd" in caplog.text


def test_a_store_whose_call_costs_much_is_called_at_its_pace() -> None:
    async def run() -> None:
        ledger, store = Ledger("w", math.inf), Failing()
        settlement = Settlement(ledger, store, pace=1.0)
        one = account(ledger)
        settlement.start()
        for _ in range(4):
            ledger.debit((one,), Usage(1, 0), NOW)
            settlement.wake()
            for _ in range(5):
                await asyncio.sleep(0)
        assert len(store.batches) == 1  # alone it left at once; the others wait for the next call
        assert await settlement.close(10)
        assert [[line.amount for line in batch.debits] for batch in store.batches] == [[1], [3]]

    asyncio.run(run())


def test_who_waits_does_not_wait_for_the_pace() -> None:
    async def run() -> None:
        ledger, store = Ledger("w", 0.1), Failing()
        settlement = Settlement(ledger, store, pace=1000.0)
        one, two = account(ledger), account(ledger, "bob")
        settlement.start()
        ledger.debit((one,), Usage(1, 0), NOW)
        settlement.wake()
        await until(lambda: len(store.batches) == 1)
        waiter = Waits()
        ledger.stale((two,), NOW)
        settlement.wait(waiter, (two,), NOW)
        await until(lambda: waiter.admitted == 1)
        assert await settlement.close(10)

    asyncio.run(run())


def test_who_waits_for_room_asks_again_until_there_is_some() -> None:
    async def run() -> None:
        ledger, store = Ledger("w", 0.1), Failing()
        settlement = Settlement(ledger, store)
        cap = Limit("cap", "tokens", 100, EpochWindow("day"), reserves=True, wait=1000.0)
        one = ledger.account(cap, (), NOW)
        settlement.start()

        class Asks:
            promises: list[Promise] | None = None
            sequence = 0

            def admit(self) -> None:
                found = ledger.reserve((one,), Usage(60, 0))
                if isinstance(found, list):
                    self.promises = found
                elif self.sequence:
                    self.sequence = 0
                    settlement.park(self)
                else:
                    self.sequence = ledger.ask((one,), Usage(60, 0))
                    settlement.wait(self, (one,), clock.wall(), self.sequence)

            def fail(self) -> None:
                raise AssertionError

        first, second = Asks(), Asks()
        first.admit()
        second.admit()
        await until(lambda: first.promises is not None)
        await until(lambda: len(store.batches) > 5)
        assert second.promises is None
        assert first.promises is not None
        ledger.charge(first.promises, Usage(20, 0), NOW)
        ledger.release(first.promises)
        await until(lambda: second.promises is not None)
        assert await settlement.close(10)

    asyncio.run(run())


def test_close_says_whether_anything_is_left() -> None:
    async def run(plan: list[str], frozen: bool, within: float = 10) -> bool:
        ledger, store = Ledger("w", math.inf), Failing(*plan)
        settlement = Settlement(ledger, store)
        settlement.start()
        ledger.debit((account(ledger),), Usage(1, 0), NOW)
        if frozen:
            store.gate.clear()
        return await settlement.close(0.05 if frozen else within)

    assert asyncio.run(run([], False))
    assert asyncio.run(run(["lost"] * 3, False))  # it goes on trying
    assert not asyncio.run(run(["lost"] * 100_000, False, 0.05))
    assert not asyncio.run(run([], True))  # a store that hangs does not hold the end up


class Babbles(Failing):
    """A store that answers some batches with what is no answer."""

    def __init__(self, **wrong: Any) -> None:
        super().__init__()
        self.wrong = wrong
        self.times = 3

    async def settle(self, batch: Batch) -> Settled:
        answer = await super().settle(batch)
        if not any(debit.amount for debit in batch.debits) or not self.times:
            return answer
        self.times -= 1
        return answer._replace(**self.wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"used": [12.5, 7]},
        {"used": ["abc", 7]},
        {"used": [None, 7]},
        {"used": [2**70, 7]},
        {"lost": [99]},
        {"ahead": [99]},
        {"lost": ["x"]},
    ],
)
def test_an_answer_that_cannot_be_read_stops_no_account(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wrong: dict[str, Any]
) -> None:
    async def run() -> None:
        kept = journal.claim(str(tmp_path), "test")
        ledger, store = Ledger(kept.writer, math.inf, slots=kept), Babbles(**wrong)
        settlement = Settlement(ledger, store)
        odd, even = account(ledger, "odd"), account(ledger, "even")
        settlement.start()
        for _ in range(5):
            ledger.debit((odd, even), Usage(7, 0), NOW)
            settlement.wake()
            await until(lambda: not ledger.has_work)
        assert [odd.count.spent, even.count.spent] == [35, 35]
        assert await settlement.close(10)
        assert {each.used for each in (await store.accounts()).values()} == {35}
        kept.close()
        again = journal.claim(str(tmp_path), "test")
        assert not again.owes
        again.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    told = [each for each in caplog.records if each.exc_info]
    assert len(told) == 1  # not for each answer
    assert "died" not in caplog.text


def test_a_bug_ends_no_settlement(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        ledger, store = Ledger("w", math.inf), Failing()
        settlement = Settlement(ledger, store)
        one = account(ledger)
        settlement.start()
        enter, bugs = settlement._enter, 3

        def broken(*arguments: Any) -> list[str]:
            nonlocal bugs
            if bugs:
                bugs -= 1
                raise RuntimeError("a bug")
            return enter(*arguments)

        monkeypatch.setattr(settlement, "_enter", broken)
        waiter = Waits()
        ledger.stale((one,), NOW)
        settlement.wait(waiter, (one,), NOW)
        ledger.debit((one,), Usage(7, 0), NOW)
        settlement.wake()
        await until(lambda: not bugs)
        await until(lambda: settlement.up and not ledger.has_work)
        assert waiter.admitted == 1
        assert await settlement.close(10)
        assert await store.accounts() == {one.count.key: (7, 0)}

    with caplog.at_level(logging.ERROR):
        asyncio.run(run())
    assert [bool(each.exc_info) for each in caplog.records].count(True) == 1
    assert "died" not in caplog.text


def test_what_the_store_cannot_keep_is_told_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settlement = Settlement(Ledger("w", math.inf), MemoryStore())
    now = 1000.0
    monkeypatch.setattr("fastgw.clock.monotonic", lambda: now)
    for _ in range(50):
        settlement._cannot_keep(["a", "b"])
    settlement._cannot_keep(["a", "c"])
    now += 61
    settlement._cannot_keep(["a"])
    assert [each.args for each in caplog.records] == [(2, "a"), (1, "c"), (1, "a")]
