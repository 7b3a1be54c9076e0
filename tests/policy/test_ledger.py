import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.model import Batch, Settled, Usage
from fastgw.policy.account import Limit
from fastgw.policy.ledger import MAX_BATCH, MOST, Ledger
from fastgw.policy.window import EpochWindow


@dataclass
class Book:
    """A store by the contract, kept in a dict: what the ledger is checked against."""

    used: dict[str, int] = field(default_factory=dict)
    seen: dict[tuple[str, str], int] = field(default_factory=dict)

    def settle(self, batch: Batch) -> Settled:
        out = []
        for debit in batch.debits:
            if self.seen.get((debit.account, batch.writer), 0) < batch.sequence:
                self.seen[debit.account, batch.writer] = batch.sequence
                self.used[debit.account] = self.used.get(debit.account, 0) + debit.amount
            out.append(self.used.get(debit.account, 0))
        return Settled(out, [(0, 0)] * len(batch.claims), [], [])


def limit(amount: int = 100, unit: str = "tokens", **more: bool) -> Limit:
    return Limit("daily", unit, amount, EpochWindow("day"), **more)


def settle(ledger: Ledger, book: Book, now: float) -> None:
    while (batch := ledger.take()) is not None:
        ledger.settled(book.settle(batch), now)


def test_a_count_never_heard_of_is_asked_for_first() -> None:
    ledger, book = Ledger("w", 0.1), Book()
    account = ledger.account(limit(), ("alice",), 1000.0)
    book.used[account.count.key] = 100
    assert ledger.stale((account,), 1000.0)
    settle(ledger, book, 1000.0)
    assert not ledger.stale((account,), 1000.05)
    assert ledger.refuses((account,)) is account


def test_what_was_said_holds_while_nobody_else_writes() -> None:
    ledger, book = Ledger("w", 0.1), Book()
    alice, bob, carol = (ledger.account(limit(), (name,), 1000.0) for name in ("a", "b", "c"))

    def call(at: float, alone: bool) -> None:
        ledger.debit((bob,), Usage(1, 0), at)
        batch = ledger.take()
        assert batch is not None
        ledger.settled(book.settle(batch)._replace(alone=alone), at)

    assert ledger.stale((alice, bob), 1000.0)
    call(1000.0, alone=False)
    for at in (1000.2, 1000.4, 1000.6):
        call(at, alone=True)
        assert not ledger.stale((alice,), at + 0.09)
    assert ledger.stale((carol,), 1000.6)  # never heard of
    call(1000.6, alone=True)
    assert not ledger.stale((carol,), 1000.6)
    assert ledger.stale((alice,), 1000.75)  # nor is it known for ever
    call(1000.75, alone=True)
    call(1001.0, alone=False)
    assert ledger.stale((alice,), 1001.0)
    assert not ledger.stale((bob,), 1001.0)  # which that call has asked for
    call(1001.1, alone=True)
    # What a batch that is sent again is answered says nothing of the time since the answer before.
    ledger.debit((bob,), Usage(1, 0), 1001.3)
    assert ledger.take() is not None
    call(1001.4, alone=True)
    assert ledger.stale((alice,), 1001.4)
    assert not ledger.stale((bob,), 1001.4)


def test_the_request_that_crosses_completes_and_the_next_is_refused() -> None:
    ledger = Ledger("w", math.inf)
    account = ledger.account(limit(), ("alice",), 1000.0)
    other = ledger.account(account.limit, ("bob",), 1000.0)
    for _ in range(5):
        assert ledger.refuses((account,)) is None
        ledger.debit((account,), Usage(10, 9), 1000.0)
    assert account.count.spent == 95
    assert ledger.refuses((account,)) is None
    ledger.debit((account,), Usage(10, 9), 1000.0)
    assert ledger.refuses((account,)) is account
    assert account.remaining == 0
    assert account.limit.refusals == 1
    assert ledger.refuses((other,)) is None


def test_the_end_of_the_window_refills_and_late_debits_stay_where_they_were_made() -> None:
    ledger, book = Ledger("w", math.inf), Book()
    account = ledger.account(limit(), ("alice",), 86_399.0)
    first = account.count.key
    ledger.debit((account,), Usage(100, 0), 86_399.0)
    assert ledger.refuses((account,)) is account
    assert ledger.stale((account,), 86_400.0)  # a new window: never heard of
    ledger.debit((account,), Usage(7, 0), 86_400.0)
    settle(ledger, book, 86_400.0)
    assert not ledger.stale((account,), 86_400.0)
    assert ledger.refuses((account,)) is None
    assert book.used == {first: 100, account.count.key: 7}


def test_a_clock_that_was_ahead_leaves_nobody_in_a_window_to_come() -> None:
    ledger = Ledger("w", math.inf)
    account = ledger.account(Limit("rpm", "requests", 60, EpochWindow("minute")), (), 1000.0)
    assert ledger.stale((account,), 1000.0 + 1800)  # the clock is half an hour ahead, and is set
    found = []
    for minute in range(20):
        now = 1002.0 + 60 * minute
        ledger.stale((account,), now)
        found += [ledger.refuses((account,)) for _ in range(60)]
    assert found == [None] * 1200


def test_units() -> None:
    ledger = Ledger("w", math.inf)
    accounts = tuple(
        ledger.account(Limit(unit, unit, 100, EpochWindow("day")), (), 0.0)
        for unit in ("tokens", "input_tokens", "output_tokens", "requests")
    )
    assert ledger.refuses(accounts) is None
    ledger.debit(accounts, Usage(10, 3), 0.0)
    assert [account.count.spent for account in accounts] == [13, 10, 3, 1]


def test_all_or_none() -> None:
    ledger = Ledger("w", math.inf)
    requests = ledger.account(Limit("r", "requests", 5, EpochWindow("day")), (), 0.0)
    empty = ledger.account(Limit("t", "tokens", 0, EpochWindow("day")), (), 0.0)
    assert ledger.refuses((requests, empty)) is empty
    assert requests.count.spent == 0


def test_shadow_counts_and_never_refuses() -> None:
    ledger = Ledger("w", math.inf)
    account = ledger.account(limit(1, shadow=True), (), 0.0)
    ledger.debit((account,), Usage(5, 5), 0.0)
    assert ledger.refuses((account,)) is None
    assert account.limit.refusals == 1
    assert account.count.spent == 10


def test_debits_during_a_call_are_seen_at_once_and_leave_with_the_next_batch() -> None:
    ledger, book = Ledger("w", math.inf), Book()
    account = ledger.account(limit(), (), 0.0)
    ledger.debit((account,), Usage(1, 0), 0.0)
    first = ledger.take()
    assert first is not None
    ledger.debit((account,), Usage(2, 0), 0.0)
    assert account.count.spent == 3
    assert ledger.take() is first  # until it is acknowledged, the same again
    book.settle(first)
    ledger.settled(book.settle(first), 0.0)  # applied twice, counted once
    assert account.count.spent == 3
    second = ledger.take()
    assert second is not None
    assert second.sequence == first.sequence + 1
    assert [debit.amount for debit in second.debits] == [2]


def test_a_slow_store_cannot_make_a_waiter_wait_for_ever() -> None:
    ledger, book = Ledger("w", 0.1), Book()
    account = ledger.account(limit(), (), 0.0)
    assert ledger.stale((account,), 10.0)
    batch = ledger.take()
    assert batch is not None
    assert ledger.stale((account,), 12.0)  # asked already: not queued a second time
    ledger.settled(book.settle(batch), 10.0)
    assert not ledger.stale((account,), 10.0)  # who came at 10.0 has its answer
    assert ledger.stale((account,), 12.0)  # who came at 12.0 needs a younger one


def test_a_batch_is_bounded() -> None:
    ledger, book = Ledger("w", math.inf), Book()
    rule = limit()
    accounts = [ledger.account(rule, (str(n),), 0.0) for n in range(MAX_BATCH + 5)]
    for account in accounts:
        ledger.debit((account,), Usage(1, 0), 0.0)
    batch = ledger.take()
    assert batch is not None
    assert len(batch.debits) == MAX_BATCH
    settle(ledger, book, 0.0)
    assert sum(book.used.values()) == MAX_BATCH + 5
    assert not ledger.has_work


def test_accounts_nobody_uses_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgw.policy.ledger.MAX_KEPT", 10)
    ledger = Ledger("w", math.inf)
    rule = limit()
    owing = ledger.account(rule, ("owing",), 0.0)
    ledger.debit((owing,), Usage(5, 5), 0.0)
    held = ledger.account(rule, ("held",), 0.0)
    del owing
    for n in range(100):
        ledger.account(rule, (str(n),), 0.0)
    names = {account.values[0] for account in ledger.accounts()}
    assert {"owing", "held", "99", "95"} <= names
    assert len(names) <= 12
    assert ledger.account(rule, ("held",), 0.0) is held
    assert ledger.account(rule, ("owing",), 0.0).count.spent == 10


def test_pending_counts_accounts_with_debits_not_reads() -> None:
    ledger, book = Ledger("w", 0.1), Book()
    account = ledger.account(limit(), ("alice",), 1000.0)
    assert ledger.stale((account,), 1000.0)
    assert (ledger.pending, ledger.has_work) == (0, True)
    settle(ledger, book, 1000.0)
    ledger.debit((account,), Usage(5, 5), 1000.0)
    assert ledger.pending == 1
    ledger.take()
    assert ledger.pending == 1
    ledger.debit((account,), Usage(5, 5), 1000.0)
    assert ledger.pending == 1
    settle(ledger, book, 1000.0)
    assert ledger.pending == 0


_STEP = st.one_of(
    st.tuples(st.just("debit"), st.integers(0, 3), st.integers(0, 50)),
    st.tuples(st.just("send"), st.booleans(), st.booleans()),
    st.tuples(st.just("time"), st.integers(0, 40_000), st.just(0)),
)


@given(st.lists(_STEP, max_size=60))
def test_conservation(steps: list[tuple[str, int, int]]) -> None:
    """Whatever replies are lost and whenever windows end: the store holds what was debited."""
    ledger, book = Ledger("w", math.inf), Book()
    rules = [limit(), Limit("hourly", "tokens", 5, EpochWindow("hour"))]
    now = 0.0
    accounts = [[ledger.account(rule, (str(n),), now) for rule in rules] for n in range(4)]
    debited: dict[tuple[str, int, int], int] = {}
    for kind, first, second in steps:
        if kind == "debit":
            ledger.debit(accounts[first], Usage(second, 0), now)
            for rule in rules:
                name = (rule.name, first, rule.window.bounds(now)[0])
                debited[name] = debited.get(name, 0) + second
        elif kind == "time":
            now += first
        else:
            batch = ledger.take()
            if batch is not None:
                used = book.settle(batch) if first else None  # else: lost on the way there
                if used is not None and second:
                    ledger.settled(used, now)  # else: lost on the way back
    settle(ledger, book, now)
    assert sum(book.used.values()) == sum(debited.values())
    expected = sorted(value for value in debited.values() if value)
    assert sorted(value for value in book.used.values() if value) == expected


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["tokens", "requests", "usd"]),
            st.booleans(),  # shadow
            st.integers(0, 12),  # used of 10
            st.sampled_from([999.0, 999.95, -math.inf]),  # known at
            st.booleans(),  # of a window that is over
        ),
        min_size=1,
        max_size=3,
    )
)
def test_who_passes_is_neither_asked_for_nor_refused(
    rows: list[tuple[str, bool, int, float, bool]],
) -> None:
    ledger, now = Ledger("w", 0.1), 1000.0
    accounts = []
    for number, (unit, shadow, used, known_at, over) in enumerate(rows):
        of = Limit(f"b{number}", unit, 10, EpochWindow("day"), shadow=shadow)
        account = ledger.account(of, ("alice",), now - 90_000 if over else now)
        account.count.used, account.count.known_at = used, known_at
        accounts.append(account)
    before = [(each.count.used, each.count.pending, each.count.queued) for each in accounts]
    passes = ledger.passes(accounts, now)
    assert before == [(e.count.used, e.count.pending, e.count.queued) for e in accounts]
    assert not any(each.limit.refusals for each in accounts)
    stale = ledger.stale(accounts, now)
    refused = ledger.refuses(accounts)
    quiet = not any(each.limit.refusals for each in accounts)
    plain = all(each.limit.unit != "requests" for each in accounts)
    assert passes == (not stale and refused is None and quiet and plain)


def test_a_batch_carries_what_a_store_can_add() -> None:
    ledger, book = Ledger("w", math.inf), Book()
    one = ledger.account(limit(unit="tokens"), ("alice",), 0.0)
    ledger.debit((one,), Usage(2**70, 0), 0.0)
    batch = ledger.take()
    assert batch is not None
    assert batch.debits[0].amount == MOST
    ledger.settled(book.settle(batch)._replace(used=[-1]), 0.0)
    ledger.debit((one,), Usage(2**70, 0), 0.0)
    settle(ledger, book, 0.0)
    ledger.debit((one,), Usage(1, 0), 0.0)
    batch = ledger.take()
    assert batch is not None
    assert batch.debits[0].known <= 2 * MOST


@pytest.mark.parametrize(("passed", "renewed"), [(5, False), (11, True), (-120, True)])
def test_a_hold_is_claimed_again_whichever_way_the_clock_steps(passed: int, renewed: bool) -> None:
    ledger = Ledger("w", math.inf)
    one = ledger.account(limit(100, reserves=True), ("alice",), 1000.0)
    ledger.ask((one,), Usage(50, 0))
    batch = ledger.take()
    assert batch is not None
    ledger.settled(Settled([0], [(0, 50)], [], []), 1000.0)
    assert isinstance(ledger.reserve((one,), Usage(50, 0)), list)
    ledger.refresh(1000.0)
    assert ledger.take() is None
    ledger.refresh(1000.0 + passed)
    batch = ledger.take()
    assert (batch is not None) is renewed
    if batch is not None:
        assert batch.claims[0].floor == 50


def test_after_a_loss_all_holds_are_claimed_at_once() -> None:
    ledger = Ledger("w", math.inf)
    accounts = [ledger.account(limit(100, reserves=True), (name,), 0.0) for name in "abc"]
    for one in accounts:
        ledger.ask((one,), Usage(50, 0))
    batch = ledger.take()
    assert batch is not None
    ledger.settled(Settled([0] * 3, [(0, 50)] * 3, [], []), 0.0)
    assert isinstance(ledger.reserve(accounts, Usage(50, 0)), list)
    other = ledger.account(limit(1000), ("d",), 0.0)
    ledger.debit((other,), Usage(1, 0), 0.0)
    assert ledger.take() is not None
    ledger.settled(Settled([1], [], [0], []), 0.0)
    batch = ledger.take()
    assert batch is not None
    assert [claim.floor for claim in batch.claims] == [50, 50, 50]
    ledger.settled(Settled([0] * 3, [(0, 50)] * 3, [], []), 0.0)
    assert ledger.take() is None
