"""One suite over every store: what fastgw.store.base promises."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgw import clock
from fastgw.model import Batch, Debit
from fastgw.store.memory import MemoryStore
from fastgw.store.redis import RedisStore
from fastgw.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fastgw.store.base import Store

    OpenStore = Callable[[], Store]

LATER = int(clock.wall()) + 3600


@pytest.fixture(params=["memory", "sqlite", "redis"])
def new_store(
    request: pytest.FixtureRequest, tmp_path: Path, redis_url: str, redis_prefix: str
) -> OpenStore:
    """Opens the store of this test; where it is shared, a second call opens the same counts."""
    if request.param == "memory":
        return MemoryStore
    if request.param == "sqlite":
        return lambda: SqliteStore(str(tmp_path / "budgets.db"), 5.0)
    return lambda: RedisStore(redis_url, redis_prefix, 5.0)


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
            return [await store.settle(each) for each in batches], await store.accounts()
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
        assert await store.settle(batch(1, ("a", 1))) == [1]
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
        assert await one.settle(batch(1, ("a", 1), writer="one")) == [1]
        assert await two.settle(batch(1, ("a", 2), writer="two")) == [3]
        await one.close()
        await two.close()
        three = new_store()
        await three.open()
        assert await three.accounts() == {"a": 3}
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
        assert accounts["a"] == 25 * len(stores)
        assert all(accounts[f"b{number}"] == 50 for number in range(len(stores)))
        for store in stores:
            await store.close()

    asyncio.run(main())


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
                assert answer == [used[name] for name in lines]
        await store.close()

    asyncio.run(main())
