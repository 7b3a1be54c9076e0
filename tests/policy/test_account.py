"""Hard caps: what is promised, over workers that know of each other only through the store."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgw.model import Usage
from fastgw.policy.account import MOST_WINDOWS, Account, Limit, Promise
from fastgw.policy.ledger import RENEW, Ledger
from fastgw.policy.window import EpochWindow, NoWindow
from fastgw.store.memory import MemoryStore

NOW = 4_000_000_000.0  # far ahead: the accounts of these tests do not lapse


def capped(amount: int = 100, unit: str = "tokens", **more: bool) -> Limit:
    window = NoWindow() if unit == "parallel" else EpochWindow("day")
    return Limit("cap", unit, amount, window, reserves=True, **more)


class Worker:
    """A ledger and its way to the store that all workers share."""

    def __init__(self, name: str, store: MemoryStore, limit: Limit) -> None:
        self.ledger = Ledger(name, 0.1)
        self.store = store
        self.account: Account = self.ledger.account(limit, ("alice",), NOW)
        self.running: list[list[Promise]] = []

    def settle(self, *, answered: bool = True) -> None:
        """Send what waits; without the answer it is sent again next time."""
        while (batch := self.ledger.take()) is not None:
            answer = asyncio.run(self.store.settle(batch))
            if not answered:
                return
            self.ledger.settled(answer, NOW)

    def reserve(self, tokens: int) -> bool:
        found = self.ledger.reserve((self.account,), Usage(tokens, 0))
        if isinstance(found, Account):
            return False
        self.running.append(found)
        return True

    def admit(self, tokens: int) -> bool:
        """As an exchange does: reserve, ask, reserve."""
        if self.reserve(tokens):
            return True
        sequence = self.ledger.ask((self.account,), Usage(tokens, 0))
        assert self.ledger.unanswered((self.account,), sequence)
        self.settle()
        assert not self.ledger.unanswered((self.account,), sequence)
        return self.reserve(tokens)

    def finish(self, tokens: int) -> None:
        promises = self.running.pop(0)
        self.ledger.charge(promises, Usage(tokens, 0), NOW)
        self.ledger.release(promises)

    @property
    def unsettled(self) -> int:
        count = self.account.count
        return count.held + count.pending

    def idle(self) -> None:
        """What the refresh of a moment does when nobody asks."""
        for _ in range(3):
            self.ledger.refresh(NOW)
            self.settle()


def standing(store: MemoryStore) -> tuple[int, int]:
    found = asyncio.run(store.accounts())
    (each,) = found.values() or [(0, 0)]
    return tuple(each)  # type: ignore[return-value]


def test_what_fits_is_promised_and_what_does_not_is_refused() -> None:
    store = MemoryStore()
    worker = Worker("w", store, capped())
    assert [worker.admit(40), worker.admit(40), worker.admit(40)] == [True, True, False]
    assert (worker.account.held, worker.account.remaining) == (80, 20)
    assert not worker.account.used_up
    worker.finish(30)
    worker.settle()
    assert standing(store) == (30, 40)
    assert worker.admit(30)  # what was not spent came back
    worker.finish(40)
    worker.finish(30)
    worker.settle()
    assert standing(store) == (100, 0)
    assert worker.account.used_up


def test_promises_of_several_workers_never_pass_the_limit() -> None:
    store = MemoryStore()
    workers = [Worker(name, store, capped()) for name in "abcd"]
    assert [worker.admit(30) for worker in workers] == [True, True, True, False]
    assert standing(store)[1] <= 100
    workers[0].finish(30)
    workers[0].settle()
    assert not workers[3].admit(30)
    workers[1].finish(5)
    workers[1].idle()
    assert workers[3].admit(30)


def test_what_is_left_does_not_lie_in_parts_too_small_for_any() -> None:
    store = MemoryStore()
    workers = [Worker(name, store, capped(1000)) for name in "abcdefgh"]
    admitted = 0
    while sum(worker.admit(70) for worker in workers):
        pass
    admitted = sum(len(worker.running) for worker in workers)
    assert admitted == 14  # 980 of 1000
    for worker in workers:
        while worker.running:
            worker.finish(70)
    for _ in range(3):
        for worker in workers:
            worker.ledger.ask((worker.account,), Usage(70, 0))
            worker.settle()
    # All wait for 70, and 20 are left: nobody sits on a part of them.
    assert standing(store) == (980, 0)
    assert workers[3].admit(20)


def test_a_request_may_cost_more_than_the_limit_allows_and_is_promised_all_of_it() -> None:
    worker = Worker("w", MemoryStore(), capped(100))
    assert worker.admit(5000)  # an estimate is an upper bound: never above the limit
    assert worker.account.remaining == 0
    assert not worker.admit(1)


def test_far_from_the_limit_most_promises_need_no_call() -> None:
    store = MemoryStore()
    worker = Worker("w", store, capped(1_000_000))
    asked = 0
    for _ in range(1000):
        if not worker.reserve(100):
            asked += 1
            assert worker.admit(100)
        worker.finish(100)
        worker.settle()
    assert asked < 30
    assert standing(store)[0] == 100_000


def test_what_was_held_ahead_is_given_back_when_nobody_asks() -> None:
    store = MemoryStore()
    worker = Worker("w", store, capped(10_000))
    assert worker.admit(100)
    assert worker.account.count.room > 0
    worker.finish(100)
    worker.idle()
    assert standing(store) == (100, 0)
    assert worker.ledger.held == 0


def test_a_hold_is_claimed_again_before_it_lapses() -> None:
    worker = Worker("w", MemoryStore(), capped())
    assert worker.admit(40)
    worker.ledger.refresh(NOW + 1)
    assert not worker.ledger.has_work
    worker.ledger.refresh(NOW + RENEW + 1)
    batch = worker.ledger.take()
    assert batch is not None
    assert [(claim.floor, claim.need) for claim in batch.claims] == [(40, 0)]


def test_several_budgets_promise_all_or_nothing() -> None:
    ledger, store = Ledger("w", 0.1), MemoryStore()
    rich = ledger.account(Limit("rich", "tokens", 1000, EpochWindow("day"), reserves=True), (), NOW)
    poor = ledger.account(Limit("poor", "tokens", 10, EpochWindow("day"), reserves=True), (), NOW)
    plain = ledger.account(Limit("plain", "requests", 5, EpochWindow("day")), (), NOW)
    full = ledger.account(Limit("full", "tokens", 0, EpochWindow("day")), (), NOW)

    def settle() -> None:
        while (batch := ledger.take()) is not None:
            ledger.settled(asyncio.run(store.settle(batch)), NOW)

    both = (rich, plain, poor)
    ledger.ask(both, Usage(8, 0))
    settle()
    assert isinstance(ledger.reserve(both, Usage(8, 0)), list)
    ledger.ask(both, Usage(8, 0))
    settle()
    assert ledger.reserve(both, Usage(8, 0)) is poor
    assert ledger.reserve((rich, full), Usage(8, 0)) is full
    assert (rich.count.held, poor.count.held, plain.count.spent) == (8, 8, 1)


def test_requests_at_one_time() -> None:
    store = MemoryStore()
    one, two = (Worker(name, store, capped(3, "parallel")) for name in "ab")
    assert [one.admit(1), one.admit(999), two.admit(1), two.admit(1)] == [True, True, True, False]
    one.finish(500)
    one.settle()
    assert two.admit(1)
    assert standing(store) == (0, 3)
    for worker in (one, two):
        while worker.running:
            worker.finish(7)
        worker.idle()
    assert asyncio.run(store.accounts()) == {} or standing(store) == (0, 0)


def test_a_hard_cap_on_requests_debits_as_it_admits() -> None:
    store = MemoryStore()
    one, two = (Worker(name, store, capped(3, "requests")) for name in "ab")
    assert [one.admit(1), two.admit(1), one.admit(1), two.admit(1), one.admit(1)] == [
        True, True, True, False, False,
    ]  # fmt: skip
    one.settle()
    two.settle()
    assert standing(store)[0] == 3


def test_shadow_holds_and_never_refuses() -> None:
    store = MemoryStore()
    worker = Worker("w", store, capped(10, shadow=True))
    assert [worker.reserve(8) for _ in range(3)] == [True, True, True]
    assert worker.account.limit.refusals == 1
    for _ in range(3):
        worker.finish(8)
    worker.settle()
    assert standing(store)[0] == 24


def test_with_the_store_away_the_last_known_numbers_decide() -> None:
    store = MemoryStore()
    worker = Worker("w", store, capped(100))
    assert worker.admit(60)
    alone = worker.ledger.reserve((worker.account,), Usage(40, 0), alone=True)
    assert isinstance(alone, list)
    assert worker.ledger.reserve((worker.account,), Usage(1, 0), alone=True) is worker.account


def test_a_reload_changes_the_limit_under_running_requests() -> None:
    store = MemoryStore()
    worker = Worker("w", store, capped(100))
    assert worker.admit(60)
    old, worker.account = worker.account, worker.ledger.account(capped(50), ("alice",), NOW)
    assert worker.account.count is old.count  # what runs counts on
    assert not worker.admit(10)
    old.roll(NOW)  # as by a request that began before
    worker.finish(40)
    assert worker.admit(10)
    worker.account = worker.ledger.account(capped(500), ("alice",), NOW)
    assert worker.admit(400)
    worker.finish(10)
    worker.finish(400)
    worker.idle()
    assert standing(store) == (450, 0)


def test_a_stream_is_charged_as_it_passes_and_corrected_at_its_end() -> None:
    store = MemoryStore()
    worker = Worker("w", store, capped(1000))
    assert worker.admit(500)
    (promises,) = worker.running
    for made, expected in ((100, (100, 400)), (90, (90, 410)), (300, (300, 200))):
        worker.ledger.charge(promises, Usage(made, 0), NOW)
        worker.settle()
        used, held = standing(store)
        assert (used, worker.account.count.held) == expected
        assert held >= expected[1]
    worker.finish(120)  # the provider says it was less
    worker.idle()
    assert standing(store) == (120, 0)


def test_what_is_rough_stays_within_the_promise_and_only_the_end_may_pass_it() -> None:
    store = MemoryStore()
    worker = Worker("w", store, capped(1000))
    assert worker.admit(110)
    (promises,) = worker.running
    for made, expected in ((300, (110, 0)), (40, (40, 70)), (6000, (110, 0)), (60, (60, 50))):
        worker.ledger.charge(promises, Usage(made, 0), NOW)
        worker.settle()
        assert (standing(store)[0], worker.account.count.held) == expected
    worker.ledger.charge(promises, Usage(150, 0), NOW, final=True)
    worker.ledger.release(promises)
    worker.idle()
    assert standing(store) == (150, 0)


def test_what_was_promised_is_charged_in_the_window_of_the_promise() -> None:
    ledger, store = Ledger("w", 0.1), MemoryStore()
    limit = Limit("cap", "tokens", 1000, EpochWindow("day"), reserves=True)
    account = ledger.account(limit, (), NOW)

    def reserve(now: float) -> list[Promise]:
        ledger.stale((account,), now)
        ledger.ask((account,), Usage(1000, 0))
        while (batch := ledger.take()) is not None:
            ledger.settled(asyncio.run(store.settle(batch)), now)
        found = ledger.reserve((account,), Usage(1000, 0))
        assert isinstance(found, list)
        return found

    both = [reserve(NOW), reserve(NOW + 86_400)]
    for promises in both:
        ledger.charge(promises, Usage(1000, 0), NOW + 86_400, final=True)
        ledger.release(promises)
    while (batch := ledger.take()) is not None:
        ledger.settled(asyncio.run(store.settle(batch)), NOW)
    assert [each.used for each in asyncio.run(store.accounts()).values()] == [1000, 1000]


def test_who_waits_does_not_wait_for_a_budget_in_shadow() -> None:
    ledger, store = Ledger("w", 0.1), MemoryStore()
    cap = ledger.account(Limit("a", "parallel", 1, NoWindow()), (), NOW)
    shadow = ledger.account(Limit("b", "parallel", 5, NoWindow(), shadow=True), (), NOW)
    assert ledger.stale((cap, shadow), NOW)
    while (batch := ledger.take()) is not None:
        ledger.settled(asyncio.run(store.settle(batch)), NOW)
    sequence = ledger.ask((cap, shadow), Usage(1, 0))
    while (batch := ledger.take()) is not None:
        ledger.settled(asyncio.run(store.settle(batch)), NOW)
    assert not ledger.unanswered((cap, shadow), sequence)


def test_a_worker_that_ends_holds_nothing() -> None:
    store = MemoryStore()
    worker = Worker("w", store, capped(10_000))
    assert worker.admit(100)
    worker.finish(100)
    assert worker.account.count.hold > 0
    worker.ledger.give_back()
    while worker.ledger.unsettled:
        worker.settle()
    assert standing(store) == (100, 0)


def test_a_correction_goes_to_the_window_of_the_charge() -> None:
    ledger, store = Ledger("w", 0.1), MemoryStore()
    limit = Limit("daily", "tokens", 1000, EpochWindow("day"))
    account = ledger.account(limit, (), NOW)
    first = account.count.key
    promises = [Promise(account)]
    ledger.charge(promises, Usage(70, 0), NOW)
    ledger.charge(promises, Usage(40, 0), NOW + 86_400)
    ledger.charge(promises, Usage(60, 0), NOW + 86_400)
    while (batch := ledger.take()) is not None:
        ledger.settled(asyncio.run(store.settle(batch)), NOW)
    found = {key: each.used for key, each in asyncio.run(store.accounts()).items()}
    assert found == {first: 40, account.count.key: 20}


def test_a_correction_takes_from_no_window_more_than_it_was_charged() -> None:
    """A prompt that was counted too high is charged in the first window and corrected in the last;
    what others spent in the last one stays theirs."""
    ledger, store = Ledger("w", 0.1), MemoryStore()
    account = ledger.account(Limit("minute", "tokens", 10**6, EpochWindow("minute")), (), NOW)
    keys = [account.count.key]
    promises = [Promise(account)]
    for at, cost in enumerate((30_000, 30_010, 30_030)):
        ledger.charge(promises, Usage(cost, 0), NOW + 60 * at)
        keys.append(account.count.key)
    ledger.debit((account,), Usage(500, 0), NOW + 120)
    while (batch := ledger.take()) is not None:  # one after the other, as from another worker
        ledger.settled(asyncio.run(store.settle(batch)), NOW)
    ledger.charge(promises, Usage(20_000, 0), NOW + 121)
    ledger.charge(promises, Usage(20_050, 0), NOW + 122)
    ledger.charge(promises, Usage(20_007, 0), NOW + 123, final=True)
    while (batch := ledger.take()) is not None:
        ledger.settled(asyncio.run(store.settle(batch)), NOW)
    found = {key: each.used for key, each in asyncio.run(store.accounts()).items()}
    assert [found[key] for key in keys[1:]] == [20_000, 0, 507]


@given(charges=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50)), max_size=60))
@settings(deadline=None, max_examples=150)
def test_whatever_a_stream_was_charged_its_windows_add_up(charges: list[tuple[int, int]]) -> None:
    ledger, store, now, cost = Ledger("w", 0.1), MemoryStore(), NOW, 0
    account = ledger.account(Limit("second", "tokens", 10**6, EpochWindow("second")), (), now)
    promises = [Promise(account)]
    for seconds, cost in charges:
        now += seconds
        ledger.charge(promises, Usage(cost, 0), now)
        while (batch := ledger.take()) is not None:
            ledger.settled(asyncio.run(store.settle(batch)), now)
    found = asyncio.run(store.accounts()).values()
    assert sum(each.used for each in found) == cost


def test_a_stream_of_many_windows_remembers_the_first_and_some() -> None:
    ledger = Ledger("w", 0.1)
    account = ledger.account(Limit("second", "tokens", 10**6, EpochWindow("second")), (), NOW)
    first = account.count
    promises = [Promise(account)]
    for second in range(1000):
        ledger.charge(promises, Usage(5000 + second, 0), NOW + second)
    assert len(promises[0]._before or ()) == MOST_WINDOWS
    ledger.charge(promises, Usage(2000, 0), NOW + 1000, final=True)
    assert first.pending == 2000 - (999 - MOST_WINDOWS)  # those keep what they were charged


def test_a_stream_of_many_windows_takes_from_the_first_what_it_does_not_remember() -> None:
    """The windows that are remembered give back no more than each was charged."""
    ledger = Ledger("w", 0.1)
    account = ledger.account(Limit("second", "tokens", 10**6, EpochWindow("second")), (), NOW)
    promises, counts = [Promise(account)], []
    for second in range(10 * MOST_WINDOWS):
        ledger.charge(promises, Usage(3000 + 10 * second, 0), NOW + second)
        counts.append(account.count)
    total = promises[0].charged
    for taken in (15, 1500, 3000):
        ledger.charge(promises, Usage(total - taken, 0), NOW + second, final=True)
        assert sum(count.pending for count in counts) == total - taken
        assert min(count.pending for count in counts[1:]) == 0


def test_who_ends_asks_for_nothing_any_more() -> None:
    ledger, store = Ledger("w", 0.1), MemoryStore()
    account = ledger.account(capped(1000), (), NOW)
    ledger.stale((account,), NOW)
    ledger.ask((account,), Usage(100, 0))
    ledger.give_back()
    while (batch := ledger.take()) is not None:
        ledger.settled(asyncio.run(store.settle(batch)), NOW)
    assert not ledger.unsettled


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "admit", "finish", "settle", "lose", "idle"]),
        st.integers(0, 2),
        st.integers(1, 40),
    ),
    max_size=60,
)


@given(steps=STEPS, amount=st.sampled_from([60, 100, 700, 5000]))
@settings(deadline=None, max_examples=150)
def test_whatever_happens_the_limit_holds_and_nothing_is_left_held(
    steps: list[tuple[str, int, int]], amount: int
) -> None:
    """Used and promised together never pass the limit, though replies are lost."""
    store = MemoryStore()
    limit = capped(amount)
    workers = [Worker(name, store, limit) for name in "abc"]
    cost = 0
    for kind, number, tokens in steps:
        worker = workers[number]
        if kind == "admit":
            worker.admit(tokens)
        elif kind == "finish" and worker.running:
            spent = min(tokens, sum(each.held for each in worker.running[0]))
            worker.finish(spent)
            cost += spent
        elif kind == "settle":
            worker.settle()
        elif kind == "lose":
            worker.settle(answered=False)
        elif kind == "idle":
            worker.ledger.refresh(NOW)
        promised = sum(sum(p.held for p in each) for w in workers for each in w.running)
        assert cost + promised <= amount
    for worker in workers:
        while worker.running:
            worker.finish(0)
        worker.idle()
    if steps:
        assert sum(standing(store)) == cost
    # and all that is left can be had by one request
    if cost < amount:
        assert workers[0].admit(amount - cost)


@pytest.mark.parametrize("unit", ["tokens", "input_tokens", "output_tokens"])
def test_what_a_request_claims(unit: str) -> None:
    limit = capped(50, unit)
    assert (
        limit.claim(Usage(10, 20)) == {"tokens": 30, "input_tokens": 10, "output_tokens": 20}[unit]
    )
    assert limit.claim(Usage(100, 200)) == 50
