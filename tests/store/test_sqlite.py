"""What only a file can do: be locked, be missing, be read-only, be broken, outlive the process."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastgw import clock
from fastgw.errors import StoreUnavailable
from fastgw.model import Batch, Claim, Debit, Usage
from fastgw.policy.account import Limit
from fastgw.policy.ledger import MOST, Ledger
from fastgw.policy.window import EpochWindow
from fastgw.store.base import UNUSABLE
from fastgw.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

LATER = int(clock.wall()) + 3600


def batch(sequence: int, *debits: tuple[str, int]) -> Batch:
    return Batch("w1", sequence, tuple(Debit(name, amount, LATER) for name, amount in debits))


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"

    async def main() -> None:
        store = SqliteStore(str(path), 5.0)
        await store.open()
        await store.close()

    before = os.umask(0)
    try:
        asyncio.run(main())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(str(tmp_path / "none" / "budgets.db"), 5.0)
        with pytest.raises(StoreUnavailable, match="folder"):
            await store.open()
        await store.close()

    asyncio.run(main())


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear diary, " * 200)

    async def main() -> None:
        store = SqliteStore(str(path), 5.0)
        with pytest.raises(StoreUnavailable, match=r"letter\.txt"):
            await store.open()
        await store.close()

    asyncio.run(main())
    assert path.read_text() == "Dear diary, " * 200


def test_a_lock_held_too_long_is_unavailable_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"

    async def main() -> None:
        store = SqliteStore(str(path), 0.3)
        await store.open()
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            await store.settle(batch(1, ("a", 5)))
        other.execute("ROLLBACK")
        other.close()
        await asyncio.sleep(0.3)  # the first try may still be waiting in its thread
        assert (await store.settle(batch(1, ("a", 5)))).used == [5]
        await store.close()

    asyncio.run(main())


def test_after_close_it_is_unavailable(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(str(tmp_path / "budgets.db"), 5.0)
        await store.open()
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.settle(batch(1, ("a", 1)))

    asyncio.run(main())


def test_expired_accounts_are_swept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgw.store.sqlite._PURGE_EVERY", 2)
    path = tmp_path / "budgets.db"

    async def main() -> None:
        store = SqliteStore(str(path), 5.0)
        await store.settle(Batch("w1", 1, (Debit("old", 5, int(clock.wall()) - 5),)))
        await store.settle(batch(2, ("new", 5)))
        await store.settle(batch(3, ("new", 5)))
        await store.close()

    asyncio.run(main())
    db = sqlite3.connect(path)
    assert db.execute("SELECT account, used FROM accounts").fetchall() == [("new", 10)]
    assert db.execute("SELECT account FROM sequences").fetchall() == [("new",)]
    db.close()


_LOOK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute("SELECT used FROM accounts").fetchone()[0])
db.close()  # the last one out takes the log away, if it believes to be alone
"""


def test_a_second_store_of_the_process_does_not_cost_the_first_one_its_locks(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "budgets.db")

    def look() -> int:
        return int(subprocess.check_output([sys.executable, "-c", _LOOK, path]))

    async def main() -> None:
        first, second = SqliteStore(path, 5.0), SqliteStore(path, 5.0)
        await first.open()
        await first.settle(batch(1, ("a", 1)))
        await second.open()
        await second.close()
        assert look() == 1
        await first.settle(batch(2, ("a", 5)))
        assert look() == 6
        await first.close()
        assert look() == 6

    asyncio.run(main())


def test_it_tells_whether_others_have_written_since_its_last_answer(tmp_path: Path) -> None:
    """Whatever account it was: what was said of any may not hold any more."""
    path = str(tmp_path / "budgets.db")

    async def main() -> list[bool]:
        one, two = SqliteStore(path, 5.0), SqliteStore(path, 5.0)
        said = []

        async def ask(store: SqliteStore, sequence: int, *debits: tuple[str, int]) -> None:
            said.append((await store.settle(batch(sequence, *debits))).alone)

        await ask(one, 1, ("a", 5))  # who knows what was before
        await ask(one, 2, ("a", 5))
        await ask(one, 3, ("b", 0))
        await ask(two, 4, ("c", 0))  # who reads has not written
        await ask(one, 5, ("a", 1))
        await ask(two, 6, ("c", 1))
        await ask(one, 7, ("b", 0))
        await ask(one, 8, ("b", 1))
        by_hand = sqlite3.connect(path)
        by_hand.execute("UPDATE accounts SET used = 0 WHERE account = 'a'")
        by_hand.commit()
        by_hand.close()
        await ask(one, 9, ("b", 0))
        await one.close()
        await two.close()
        return said

    assert asyncio.run(main()) == [False, True, True, False, True, False, False, True, False]


@pytest.mark.parametrize("others", [True, False])
def test_while_it_is_alone_each_answer_is_one_for_all_accounts(
    tmp_path: Path, others: bool
) -> None:
    path = str(tmp_path / "budgets.db")

    async def main() -> None:
        one, two = SqliteStore(path, 5.0), SqliteStore(path, 5.0)
        ledger, other = Ledger("one", 0.1), Ledger("two", 0.1)
        limit = Limit("daily", "tokens", 100, EpochWindow("day"))
        now = clock.wall()
        alice, bob = (ledger.account(limit, (name,), now) for name in ("alice", "bob"))
        theirs = other.account(limit, ("alice",), now)

        async def settle(of: Ledger, store: SqliteStore, at: float) -> None:
            while (batch := of.take()) is not None:
                of.settled(await store.settle(batch), at)

        assert ledger.stale((alice, bob), now)
        await settle(ledger, one, now)
        if others:
            other.debit((theirs,), Usage(60, 40), now)
            await settle(other, two, now + 0.05)
        ledger.debit((bob,), Usage(1, 1), now)
        await settle(ledger, one, now + 0.3)
        assert ledger.stale((alice,), now + 0.35) is others
        await settle(ledger, one, now + 0.35)
        assert (ledger.refuses((alice,)) is alice) is others
        await one.close()
        await two.close()

    asyncio.run(main())


def by_hand(path: Path, *statements: str) -> None:
    db = sqlite3.connect(path)
    for statement in statements:
        db.execute(statement)
    db.commit()
    db.close()


@pytest.mark.parametrize(
    "wrong", ["used = 12.5", "used = 'abc'", "used = 1e30", "used = x'ff'", "expires_at = 'never'"]
)
def test_a_number_that_is_none_is_the_affair_of_its_account(tmp_path: Path, wrong: str) -> None:
    """Whether it is read, debited, put back or claimed; and reports go without it."""
    path = tmp_path / "budgets.db"

    async def main() -> None:
        store = SqliteStore(str(path), 5.0)
        await store.settle(batch(1, ("odd", 5), ("even", 5)))
        by_hand(path, f"UPDATE accounts SET {wrong} WHERE account = 'odd'")
        lines = (Debit("odd", 5, LATER, 1, 10), Debit("even", 5, LATER))
        claims = (Claim(0, 100, 20, 30, 0), Claim(1, 100, 20, 30, 0))
        for _ in range(2):
            answer = await store.settle(Batch("w1", 2, lines, claims))
            assert answer.used == [UNUSABLE, 10]
            assert answer.holds == [(0, 50), (0, 50)]
        lines = (Debit("odd", 0, LATER, 2, 75), Debit("even", 1, LATER))
        answer = await store.settle(Batch("w1", 3, lines, (Claim(0, 100, 20, 30, 0, 30),)))
        assert (answer.used, answer.holds, answer.lost) == ([UNUSABLE, 11], [(0, 20)], [])
        assert await store.accounts() == {"even": (11, 50)}
        by_hand(path, "DELETE FROM accounts WHERE account = 'odd'")
        late = (Debit("odd", 5, LATER, 2, 75),)
        assert (await store.settle(Batch("w1", 4, late))).used == [80]  # and back it is
        await store.close()

    asyncio.run(main())


def test_what_is_wrong_beside_a_count_costs_nobody_a_debit(tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"

    async def main() -> None:
        store = SqliteStore(str(path), 5.0)
        claims = (Claim(0, 100, 0, 10, 0),)
        await store.settle(Batch("w1", 1, (Debit("a", 5, LATER), Debit("b", 5, LATER)), claims))
        by_hand(
            path,
            "UPDATE sequences SET sequence = 'abc'",
            "UPDATE holds SET amount = 'much'",
            "INSERT INTO holds VALUES ('a', 'w2', 1, 2.5, 99999999999)",
            "INSERT INTO holds VALUES ('a', 'w3', 1, 5, 'never')",
            "INSERT INTO holds VALUES ('a', 'w4', 'x', 5, 99999999999)",
            "INSERT INTO holds VALUES ('a', 'w5', 1, 7, 99999999999)",
        )
        lines = (Debit("a", 5, LATER), Debit("b", 5, LATER, 1, 5))
        answer = await store.settle(Batch("w1", 2, lines, claims))
        assert (answer.used, answer.holds) == ([10, 10], [(7, 10)])
        assert await store.accounts() == {"a": (10, 17), "b": (10, 0)}
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("used", [-7, MOST + 5, 2**63 - 1])
def test_a_number_beyond_the_bounds_is_at_them(tmp_path: Path, used: int) -> None:
    path = tmp_path / "budgets.db"

    async def main() -> None:
        store = SqliteStore(str(path), 5.0)
        await store.settle(batch(1, ("a", 5)))
        by_hand(path, f"UPDATE accounts SET used = {used}")
        bound = max(0, min(used, MOST))
        assert (await store.settle(batch(2, ("a", 0)))).used == [bound]
        assert await store.accounts() == {"a": (bound, 0)}
        assert (await store.settle(batch(2, ("a", 10)))).used == [min(max(0, used + 10), MOST)]
        await store.close()

    asyncio.run(main())
