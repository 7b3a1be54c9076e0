"""Tallies: exact sums in the ledger's way, a day at a time, within bounds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from fastgw import journal
from fastgw.model import Usage
from fastgw.policy.ledger import MOST, Ledger
from fastgw.policy.tallies import OTHER, UNITS, Tallies
from fastgw.policy.window import USAGE, read_account_key
from fastgw.store.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86_400
NOON = 30_000 * DAY + DAY / 2  # far ahead: the store must not have forgotten it
KEPT = 7 * DAY


def settle(ledger: Ledger, store: MemoryStore, now: float = NOON) -> None:
    while (batch := ledger.take()) is not None:
        ledger.settled(asyncio.run(store.settle(batch)), now)


def sums(store: MemoryStore) -> dict[tuple[int, tuple[str, ...], str], int]:
    found = {}
    for key, standing in asyncio.run(store.accounts(usage=True)).items():
        name = read_account_key(key)
        assert name is not None
        assert name.budget == USAGE
        found[int(name.start // DAY), name.values, name.unit] = standing.used
    return found


usages = st.builds(
    Usage, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), source=st.none()
)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abc"), st.sampled_from("mn"), usages, st.integers(0, 10**9)),
        st.sampled_from(["refresh", "settle", "tomorrow"]),
    ),
    max_size=40,
)


@given(steps)
def test_the_store_holds_the_sum_of_every_day(steps: list[object]) -> None:
    ledger, store, now = Ledger("w", 0.1), MemoryStore(), NOON
    tallies = Tallies(ledger, KEPT, 100)
    bound = {(key, model): tallies.find(key, "u", model, ()) for key in "abc" for model in "mn"}
    expected: dict[tuple[int, tuple[str, ...], str], int] = {}
    for step in steps:
        if step == "refresh":
            tallies.refresh(now)
        elif step == "settle":
            settle(ledger, store, now)
        elif step == "tomorrow":
            now += DAY
        else:
            assert isinstance(step, tuple)
            key, model, usage, cost = step
            amounts = (
                1, usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, cost,
            )  # fmt: skip
            tallies.add(bound[key, model], amounts, now)
            for unit, amount in zip(UNITS, amounts, strict=True):
                if amount:
                    place = (int(now // DAY), (key, "u", model), unit)
                    expected[place] = expected.get(place, 0) + amount
    tallies.flush()
    settle(ledger, store, now)
    assert sums(store) == expected


def test_what_is_dirty_waits_for_a_refresh_and_goes_once() -> None:
    ledger, store = Ledger("w", 0.1), MemoryStore()
    tallies = Tallies(ledger, KEPT, 100)
    tally = tallies.find("a", "u", "m", ["team=x"])
    for _ in range(3):
        tallies.add(tally, (1, 10, 9, 0, 5), NOON)
    assert not ledger.has_work
    tallies.refresh(NOON)
    batch = ledger.take()
    assert batch is not None
    assert [line.amount for line in batch.debits] == [3, 30, 27, 15]
    tallies.refresh(NOON)
    ledger.settled(asyncio.run(store.settle(batch)), NOON)
    assert ledger.take() is None
    assert {values for _, values, _ in sums(store)} == {("a", "u", "m", "team=x")}


def test_past_the_bound_models_then_keys_count_under_other() -> None:
    tallies = Tallies(Ledger("w", 0.1), KEPT, 2)
    assert tallies.find("a", "u", "m", ["l=1"]).values == ("a", "u", "m", "l=1")
    assert tallies.find("a", "u", "n", ["l=1"]).values == ("a", "u", "n", "l=1")
    assert tallies.find("a", "u", "o", ["l=1"]).values == ("a", OTHER, OTHER)
    assert tallies.find("b", "u", "m", ["l=1"]).values == ("b", OTHER, OTHER)
    assert tallies.find("c", "u", "m", ["l=1"]).values == (OTHER, OTHER, OTHER)
    assert tallies.find("d", "u", "m", []) is tallies.find("e", "u", "m", [])
    assert tallies.find("a", "u", "x", []) is tallies.find("a", "v", "y", [])
    assert tallies.find("a", "u", "m", ["l=1"]).values == ("a", "u", "m", "l=1")


def test_a_day_that_is_over_gives_its_places_back(tmp_path: Path) -> None:
    kept = journal.claim(str(tmp_path), "store")
    ledger, store = Ledger(kept.writer, 0.1, slots=kept), MemoryStore()
    tallies = Tallies(ledger, KEPT, 1000)
    sizes = []
    for day in range(5):
        now = NOON + day * DAY
        for number in range(100):
            tallies.add(tallies.find(f"key-{number}", "u", "m", ()), (1, 1, 1, 0, 1), now)
        for _ in range(3):
            tallies.refresh(now)
            settle(ledger, store, now)
        sizes.append(kept._end)
    assert sizes[-1] == sizes[1]  # of two days at most
    assert sum(sums(store).values()) == 5 * 100 * 4
    kept.close()


def test_a_crash_loses_nothing_and_a_restart_goes_on(tmp_path: Path) -> None:
    store = MemoryStore()
    for boot in range(3):
        kept = journal.claim(str(tmp_path), "store")
        ledger = Ledger(kept.writer, 0.1, slots=kept, sequence=kept.sequence, owed=kept.owed)
        kept.owed = []
        tallies = Tallies(ledger, KEPT, 100)
        tally = tallies.find("a", "u", "m", ())
        for _ in range(5):
            tallies.add(tally, (1, 10, 9, 2, 7), NOON)
        if boot == 1:
            tallies.refresh(NOON)
            assert ledger.take() is not None  # sent, and never answered
        kept.close()
    kept = journal.claim(str(tmp_path), "store")
    ledger = Ledger(kept.writer, 0.1, slots=kept, sequence=kept.sequence, owed=kept.owed)
    settle(ledger, store)
    place = int(NOON // DAY), ("a", "u", "m")
    assert sums(store) == {
        (*place, "requests"): 15, (*place, "input_tokens"): 150, (*place, "output_tokens"): 135,
        (*place, "cached_input_tokens"): 30, (*place, "usd"): 105,
    }  # fmt: skip
    kept.close()


def test_budgets_and_usage_do_not_show_up_in_each_others_reports() -> None:
    ledger, store = Ledger("w", 0.1), MemoryStore()
    tallies = Tallies(ledger, KEPT, 100)
    tallies.add(tallies.find("a", "u", "m", ()), (1, 1, 1, 0, 1), NOON)
    tallies.flush()
    settle(ledger, store)
    assert asyncio.run(store.accounts()) == {}
    assert len(sums(store)) == 4


def test_who_takes_a_journal_over_keeps_the_places_of_what_is_counted_on(tmp_path: Path) -> None:
    store = MemoryStore()
    for number in range(1, 4):
        kept = journal.claim(str(tmp_path), "memory:")
        ledger = Ledger(kept.writer, 0.1, slots=kept, sequence=kept.sequence, owed=kept.owed)
        tallies = Tallies(ledger, KEPT, 10)
        settle(ledger, store)  # what the one before us left
        tally = tallies.find("alice", "openai", "gpt-4o", ())
        for _ in range(3):
            tallies.add(tally, (1, 10, 5, 0, 7), NOON)
            tallies.refresh(NOON)
            settle(ledger, store)
            tallies.refresh(NOON)  # nothing is owed at this moment
        tallies.add(tally, (1, 10, 5, 0, 7), NOON)  # owed as it dies
        kept.close()
        assert sums(store)[30_000, tally.values, "requests"] == 4 * number - 1


def test_sums_that_no_word_can_hold_stop_nobody(tmp_path: Path) -> None:
    """As of a provider that reports what it likes, at whatever price."""
    kept = journal.claim(str(tmp_path), "store")
    ledger = Ledger(kept.writer, 0.1, slots=kept)
    tallies = Tallies(ledger, KEPT, 100)
    alice, bob = (tallies.find(key, "u", "m", ()) for key in ("alice", "bob"))
    for _ in range(20):
        tallies.add(alice, (1, 10**12, 10**12, 0, 2**60), NOON)
        tallies.add(bob, (1, 7, 0, 0, 10**30), NOON)
    tallies.refresh(NOON)
    kept.close()
    again = journal.claim(str(tmp_path), "store")
    after = Ledger(again.writer, 0.1, slots=again, sequence=again.sequence, owed=again.owed)
    for of in (after, ledger):
        found = MemoryStore()
        if of is ledger:
            ledger._slots = None
        settle(of, found)
        by_unit = {(name[1][0], name[2]): used for name, used in sums(found).items()}
        assert by_unit["alice", "requests"] == 20
        assert by_unit["alice", "input_tokens"] == 20 * 10**12
        assert by_unit["alice", "usd"] == by_unit["bob", "usd"] == MOST
        assert by_unit["bob", "input_tokens"] == 140
