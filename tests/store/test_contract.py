"""One suite over every store: what fastgw.store.base promises."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgw import clock
from fastgw.model import Batch, Claim, Debit, Settled
from fastgw.policy.ledger import MOST
from fastgw.store.memory import MemoryStore
from fastgw.store.redis import RedisStore
from fastgw.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastgw.store.base import Store
    from tests.redis_server import RedisCluster

    OpenStore = Callable[[], Store]

LATER = int(clock.wall()) + 3600


@pytest.fixture(params=["memory", "sqlite", "redis", "cluster"])
def new_store(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    redis_url: str,
    redis_cluster: RedisCluster,
    redis_prefix: str,
) -> OpenStore:
    """Opens the store of this test; where it is shared, a second call opens the same counts."""
    if request.param == "memory":
        return MemoryStore
    if request.param == "sqlite":
        return lambda: SqliteStore(str(tmp_path / "budgets.db"), 5.0)
    url = redis_cluster.url if request.param == "cluster" else redis_url
    return lambda: RedisStore(url, redis_prefix, 5.0)


def batch(
    sequence: int, *debits: tuple[str, int], writer: str = "w1", expires_at: int = LATER
) -> Batch:
    return Batch(
        writer, sequence, tuple(Debit(name, amount, expires_at) for name, amount in debits)
    )


def run(new_store: OpenStore, *batches: Batch) -> tuple[list[list[int]], dict[str, int]]:
    """Settle in order on one fresh store: the answers, and the accounts at the end."""

    async def main() -> tuple[list[list[int]], dict[str, int]]:
        store = new_store()
        await store.open()
        try:
            answers = [(await store.settle(each)).used for each in batches]
            return answers, {name: each.used for name, each in (await store.accounts()).items()}
        finally:
            await store.close()

    return asyncio.run(main())


def test_debits_add_up_and_answer_used_line_by_line(new_store: OpenStore) -> None:
    answers, accounts = run(
        new_store, batch(1, ("a", 19), ("b", 5)), batch(2, ("b", 1), ("a", 20), ("c", 3))
    )
    assert answers == [[19, 5], [6, 39, 3]]
    assert accounts == {"a": 39, "b": 6, "c": 3}


def test_an_amount_of_zero_reads_and_creates_nothing(new_store: OpenStore) -> None:
    answers, accounts = run(new_store, batch(1, ("a", 0)), batch(2, ("b", 7)), batch(3, ("b", 0)))
    assert answers == [[0], [7], [7]]
    assert accounts == {"b": 7}


def test_a_read_does_not_use_up_a_sequence(new_store: OpenStore) -> None:
    answers, _ = run(new_store, batch(1, ("a", 1)), batch(2, ("a", 0)), batch(2, ("a", 5)))
    assert answers == [[1], [1], [6]]


def test_a_batch_sent_again_is_applied_once(new_store: OpenStore) -> None:
    first = batch(1, ("a", 19), ("b", 5))
    answers, accounts = run(new_store, first, first, batch(2, ("a", 1)), first)
    assert answers == [[19, 5], [19, 5], [20], [20, 5]]
    assert accounts == {"a": 20, "b": 5}


def test_reports_tell_what_of_each_writer_is_in_a_sum(new_store: OpenStore) -> None:
    async def main() -> None:
        store = new_store()
        await store.open()
        wanted = [("a", "w1"), ("a", "w2"), ("b", "w1"), ("b", "w2"), ("c", "w1")]
        settled = dict.fromkeys(wanted, 0)
        try:
            await store.settle(batch(7, ("a", 19), ("b", 5)))
            await store.settle(batch(2, ("a", 1), ("b", -1), writer="nobody asks"))
            await store.settle(batch(8, ("b", 1), ("a", 0)))
            await store.settle(batch(3, ("a", 2), ("usage/|tokens|day|0", 4), writer="w2"))
            found = await store.accounts(settled=settled)
        finally:
            await store.close()
        assert {name: each.used for name, each in found.items()} == {"a": 22, "b": 5}
        assert settled == dict(zip(wanted, (7, 3, 8, 0, 0), strict=True))

    asyncio.run(main())


def test_a_batch_cut_and_grown_applies_only_what_is_new(new_store: OpenStore) -> None:
    # after a failure, a writer may send the same lines with others added under a new sequence
    answers, _ = run(new_store, batch(1, ("a", 10)), batch(1, ("a", 10), ("b", 2)))
    assert answers == [[10], [10, 2]]


def test_writers_have_sequences_of_their_own(new_store: OpenStore) -> None:
    answers, _ = run(
        new_store,
        batch(5, ("a", 10), writer="w1"),
        batch(1, ("a", 10), writer="w2"),
        batch(5, ("a", 10), writer="w1"),
        batch(2, ("a", 10), writer="w2"),
    )
    assert answers == [[10], [20], [20], [30]]


def test_a_correction_never_goes_below_zero(new_store: OpenStore) -> None:
    answers, _ = run(
        new_store, batch(1, ("a", 10)), batch(2, ("a", -4)), batch(3, ("a", -100), ("b", -1))
    )
    assert answers == [[10], [6], [0, 0]]


def test_an_expired_account_begins_again_at_zero(new_store: OpenStore) -> None:
    if new_store().remote:
        return  # a server has a clock of its own: see test_redis
    past = int(clock.wall()) - 10
    answers, accounts = run(
        new_store,
        batch(1, ("a", 10), expires_at=past),
        batch(2, ("a", 0)),
        batch(3, ("a", 3)),
        batch(4, ("a", 0)),
    )
    assert answers[1:] == [[0], [3], [3]]
    assert accounts == {"a": 3}


@pytest.mark.parametrize("amount", [2**53 - 1, 2**53 + 1, 2**60 + 1])
def test_large_numbers_are_exact(new_store: OpenStore, amount: int) -> None:
    answers, accounts = run(new_store, batch(1, ("a", amount)), batch(2, ("a", 1)))
    assert answers == [[amount], [amount + 1]]
    assert accounts == {"a": amount + 1}


def test_sums_stop_before_they_overflow(new_store: OpenStore) -> None:
    answers, accounts = run(
        new_store,
        batch(1, ("a", MOST - 5000), ("b", MOST), ("c", 1)),
        batch(2, ("a", 10_000), ("b", MOST), ("c", 1)),
        batch(3, ("a", -4000), ("b", 0), ("c", 1)),
        batch(4, ("a", MOST), ("b", -MOST), ("c", -MOST)),
    )
    assert answers == [
        [MOST - 5000, MOST, 1],
        [MOST, MOST, 2],
        [MOST - 4000, MOST, 3],
        [MOST, 0, 0],
    ]
    assert accounts == {"a": MOST, "b": 0, "c": 0}


def test_holds_stop_before_they_overflow(new_store: OpenStore) -> None:
    answers, held = settle(
        new_store,
        *(claim(1, floor=3 * MOST, limit=MOST, writer=f"w{number}") for number in range(3)),
        claim(1, need=5, limit=4 * MOST, writer="w4"),
    )
    assert [each.holds for each in answers] == [
        [(0, MOST)],
        [(MOST, MOST)],
        [(2 * MOST, MOST)],
        [(3 * MOST, 5)],
    ]
    assert held["a"] >= 3 * MOST


def test_a_large_sequence_is_exact(new_store: OpenStore) -> None:
    answers, _ = run(new_store, batch(2**52, ("a", 1)), batch(2**52 + 1, ("a", 1)))
    assert answers == [[1], [2]]


def test_names_may_hold_anything(new_store: OpenStore) -> None:
    names = ["a b", "a:b", "a*", "a?[x]^-", "ä€😀", "a\nb", "a\\b", "a'b\"c", "x" * 500]
    answers, accounts = run(new_store, batch(1, *((name, at + 1) for at, name in enumerate(names))))
    assert answers == [list(range(1, len(names) + 1))]
    assert accounts == {name: at + 1 for at, name in enumerate(names)}


def test_five_thousand_lines_in_one_batch(new_store: OpenStore) -> None:
    lines = [(f"account-{at}", at + 1) for at in range(5000)]
    answers, accounts = run(new_store, batch(1, *lines), batch(2, *lines))
    assert answers[1] == [2 * amount for _, amount in lines]
    assert accounts == {name: 2 * amount for name, amount in lines}


def test_an_empty_batch_does_nothing(new_store: OpenStore) -> None:
    assert run(new_store, batch(1)) == ([[]], {})


def test_open_and_close_twice(new_store: OpenStore) -> None:
    async def main() -> None:
        store = new_store()
        await store.open()
        await store.open()
        assert (await store.settle(batch(1, ("a", 1)))).used == [1]
        await store.close()
        await store.close()

    asyncio.run(main())


def test_shared_stores_are_seen_by_others_and_outlive_them(new_store: OpenStore) -> None:
    async def main() -> None:
        one, two = new_store(), new_store()
        if not one.shared:
            return
        await one.open()
        await two.open()
        assert (await one.settle(batch(1, ("a", 1), writer="one"))).used == [1]
        assert (await two.settle(batch(1, ("a", 2), writer="two"))).used == [3]
        await one.close()
        await two.close()
        three = new_store()
        await three.open()
        assert await three.accounts() == {"a": (3, 0)}
        await three.close()

    asyncio.run(main())


def test_many_writers_at_once_lose_nothing(new_store: OpenStore) -> None:
    async def main() -> None:
        first = new_store()
        stores = [first] + ([new_store() for _ in range(3)] if first.shared else [])
        for store in stores:
            await store.open()

        async def write(number: int) -> None:
            store = stores[number % len(stores)]
            for sequence in range(1, 26):
                await store.settle(batch(sequence, ("a", 1), (f"b{number}", 2), writer=str(number)))

        await asyncio.gather(*(write(number) for number in range(len(stores))))
        accounts = await first.accounts()
        assert accounts["a"].used == 25 * len(stores)
        assert all(accounts[f"b{number}"].used == 50 for number in range(len(stores)))
        for store in stores:
            await store.close()

    asyncio.run(main())


def test_budgets_and_the_usage_report_are_read_apart(new_store: OpenStore) -> None:
    async def main() -> None:
        store = new_store()
        await store.open()
        names = ("a", "usage", "usage/", "usage/|", "usage/|requests|day|0|a", "usage0|a", "v")
        await store.settle(batch(1, *((name, 1) for name in names)))
        report = {name for name in names if name.startswith("usage/|")}
        assert set(await store.accounts(usage=True)) == report
        assert set(await store.accounts()) == set(names) - report
        await store.close()

    asyncio.run(main())


# holds


def settle(new_store: OpenStore, *batches: Batch) -> tuple[list[Settled], dict[str, int]]:
    """Settle in order on one fresh store: the answers, and what is held at the end."""

    async def main() -> tuple[list[Settled], dict[str, int]]:
        store = new_store()
        await store.open()
        try:
            answers = [await store.settle(each) for each in batches]
            return answers, {name: each.held for name, each in (await store.accounts()).items()}
        finally:
            await store.close()

    return asyncio.run(main())


def claim(
    sequence: int,
    *,
    floor: int = 0,
    need: int = 0,
    spare: int = 0,
    limit: int = 100,
    amount: int = 0,
    writer: str = "w1",
    lapse: int = 60,
) -> Batch:
    """A batch with one account and a claim on it."""
    return Batch(
        writer,
        sequence,
        (Debit("a", amount, LATER),),
        (Claim(0, limit, floor, need, spare),),
        lapse,
    )


def test_a_need_is_granted_as_far_as_it_goes(new_store: OpenStore) -> None:
    answers, held = settle(
        new_store,
        claim(1, need=60),
        claim(1, need=60, writer="w2"),
        claim(1, need=60, writer="w3"),
    )
    assert [each.holds for each in answers] == [[(0, 60)], [(60, 40)], [(100, 0)]]
    assert held == {"a": 100}


def test_less_than_one_request_needs_is_not_granted(new_store: OpenStore) -> None:
    line = (Debit("a", 0, LATER),)
    answers, held = settle(
        new_store,
        claim(1, need=60),
        Batch("w2", 1, line, (Claim(0, 100, 0, 100, 0, 50),), 60),
        Batch("w3", 1, line, (Claim(0, 100, 0, 100, 0, 40),), 60),
    )
    assert [each.holds for each in answers] == [[(0, 60)], [(60, 0)], [(60, 40)]]
    assert held == {"a": 100}


def test_a_debit_and_the_hold_it_uses_up_change_in_one_step(new_store: OpenStore) -> None:
    answers, held = settle(
        new_store,
        claim(1, need=60),
        claim(2, amount=50, floor=10),
        claim(1, need=60, writer="w2"),
    )
    assert [each.used for each in answers] == [[0], [50], [50]]
    assert [each.holds for each in answers] == [[(0, 60)], [(0, 10)], [(10, 40)]]
    assert held == {"a": 50}


def test_what_is_promised_is_granted_though_the_limit_is_passed(new_store: OpenStore) -> None:
    answers, _ = settle(
        new_store, claim(1, need=80), claim(1, amount=90, writer="w2"), claim(2, floor=70, need=5)
    )
    assert answers[2].holds == [(0, 70)]


def test_spare_is_an_eighth_of_what_is_left(new_store: OpenStore) -> None:
    answers, _ = settle(
        new_store,
        claim(1, need=20, spare=50),
        claim(1, need=90, spare=50, writer="w2"),
        claim(2, floor=20, spare=3),
    )
    assert [each.holds for each in answers] == [[(0, 30)], [(30, 70)], [(70, 21)]]


def test_a_claim_replaces_and_nothing_claimed_is_nothing_held(new_store: OpenStore) -> None:
    answers, held = settle(
        new_store, claim(1, need=60), claim(2, floor=5), claim(3), claim(4, need=100)
    )
    assert [each.holds for each in answers] == [[(0, 60)], [(0, 5)], [(0, 0)], [(0, 100)]]
    assert held == {"a": 100}


def test_a_claim_sent_again_keeps_what_it_was_granted(new_store: OpenStore) -> None:
    first = claim(1, need=60, spare=40)
    answers, _ = settle(
        new_store, first, claim(1, need=30, writer="w2"), first, claim(2, need=10), first
    )
    assert [each.holds for each in answers] == [
        [(0, 65)],
        [(0 + 65, 30)],
        [(30, 65)],
        [(30, 10)],
        [(30, 10)],  # an older one, late: it changes nothing
    ]


def test_holds_lapse(new_store: OpenStore) -> None:
    # A hold is good to the end of its second; one that lapsed long ago is not seen.
    answers, held = settle(
        new_store, claim(1, need=60, lapse=-10), claim(1, need=90, writer="w2"), claim(2, need=10)
    )
    assert [each.holds for each in answers] == [[(0, 60)], [(0, 90)], [(90, 10)]]
    assert held == {"a": 100}


def test_claims_of_several_accounts_answer_in_order(new_store: OpenStore) -> None:
    lines = tuple(Debit(name, 0, LATER) for name in "abcdef")
    claims = tuple(Claim(line, 100, 0, 10 * line, 0) for line in (5, 1, 3))
    answers, _ = settle(new_store, Batch("w1", 1, lines, claims, 60))
    assert answers[0].holds == [(0, 50), (0, 10), (0, 30)]
    assert answers[0].used == [0] * 6


def test_holds_keep_an_account_that_is_only_held(new_store: OpenStore) -> None:
    lines = (Debit("a", 0, 0),)  # as a limit on requests at one time has it
    answers, held = settle(
        new_store,
        Batch("w1", 1, lines, (Claim(0, 2, 0, 1, 0),), 60),
        Batch("w2", 1, lines, (Claim(0, 2, 0, 2, 0),), 60),
        Batch("w1", 2, lines, (Claim(0, 2, 0, 0, 0),), 60),
    )
    assert [each.holds for each in answers] == [[(0, 1)], [(1, 1)], [(1, 0)]]
    assert held == {"a": 1}


# what a store lost


def test_a_store_that_forgot_gets_back_what_the_writer_knew(new_store: OpenStore) -> None:
    answers, _ = settle(
        new_store,
        Batch("w1", 8, (Debit("a", 5, LATER, 7, 1000), Debit("b", 5, LATER, 0, 1000))),
        Batch("w2", 3, (Debit("a", 1, LATER, 2, 900),)),  # it knew less: nothing is lowered
        Batch("w1", 9, (Debit("a", 5, LATER, 8, 1005),)),
    )
    assert [each.used for each in answers] == [[1005, 5], [1006], [1011]]
    assert [each.lost for each in answers] == [[0], [], []]


def test_a_store_that_went_back_in_time_is_recognised_too(new_store: OpenStore) -> None:
    # as after a failover to a replica that lagged
    answers, _ = settle(
        new_store,
        Batch("w1", 3, (Debit("a", 10, LATER),)),
        Batch("w1", 8, (Debit("a", 5, LATER, 7, 200),)),
    )
    assert answers[1][:4] == ([205], [], [0], [])


def test_a_read_puts_back_too(new_store: OpenStore) -> None:
    answers, _ = settle(
        new_store,
        Batch("w1", 8, (Debit("a", 0, LATER, 7, 1000),)),
        Batch("w1", 9, (Debit("a", 5, LATER, 7, 1000),)),
    )
    assert [each.used for each in answers] == [[1000], [1005]]
    assert [each.lost for each in answers] == [[0], []]


def test_putting_back_is_done_once(new_store: OpenStore) -> None:
    again = Batch("w1", 8, (Debit("a", 5, LATER, 7, 1000),))
    answers, _ = settle(new_store, again, again, again)
    assert [each.used for each in answers] == [[1005]] * 3
    assert [each.lost for each in answers] == [[0], [], []]


def test_an_account_that_is_over_is_not_lost(new_store: OpenStore) -> None:
    """A stream of hours corrects what it was charged at its begin."""
    past = int(clock.wall()) - 10
    answers, _ = settle(new_store, Batch("w1", 8, (Debit("a", -5, past, 7, 1000),)))
    assert answers[0][:4] == ([0], [], [], [])


def test_a_writer_whose_name_is_used_by_another_is_told(new_store: OpenStore) -> None:
    answers, _ = settle(
        new_store,
        Batch("w1", 8, (Debit("a", 5, LATER),)),
        Batch("w1", 3, (Debit("b", 1, LATER), Debit("a", 7, LATER))),
    )
    assert answers[1].ahead == [1]
    assert answers[1].used == [1, 5]


LINES = st.dictionaries(st.sampled_from("abcd"), st.integers(-50, 200), max_size=4)
HISTORY = st.lists(st.tuples(st.sampled_from(["w1", "w2"]), LINES, st.integers(1, 3)), max_size=12)


@given(history=HISTORY)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_history_with_repeats_equals_a_plain_sum(
    new_store: OpenStore,
    history: list[tuple[str, dict[str, int], int]],
) -> None:
    salt = secrets.token_hex(4)  # examples share one store

    async def main() -> None:
        store = new_store()
        await store.open()
        used: dict[str, int] = {}
        for sequence, (writer, lines, times) in enumerate(history, 1):
            for name, amount in lines.items():
                used[name] = max(0, used.get(name, 0) + amount)
            sent = batch(
                sequence,
                *((salt + name, amount) for name, amount in lines.items()),
                writer=salt + writer,
            )
            for _ in range(times):
                answer = await store.settle(sent)
                assert answer.used == [used[name] for name in lines]
        await store.close()

    asyncio.run(main())
