"""The journal: whatever a process was doing when it was killed, what it owed is owed once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastgw import bookkeeping, journal
from fastgw.config.tables import Store as StoreSettings
from fastgw.journal import Journal, JournalError
from fastgw.model import Usage
from fastgw.policy.account import Limit
from fastgw.policy.ledger import MOST, Ledger
from fastgw.policy.window import EpochWindow, NoWindow
from fastgw.store.memory import MemoryStore
from fastgw.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

NOW = 4_000_000_000.0  # far ahead: the accounts of these tests do not lapse
STORE = "memory:test"
LIMIT = Limit("daily", "tokens", 10**9, EpochWindow("day"))


def book(folder: Path) -> tuple[Ledger, Journal]:
    kept = journal.claim(str(folder), STORE)
    ledger = Ledger(kept.writer, 0.1, slots=kept, sequence=kept.sequence, owed=kept.owed)
    return ledger, kept


def die(kept: Journal) -> None:
    """What the kernel does when the owner is killed: the lock goes, the pages stay."""
    kept.close()


def debit(ledger: Ledger, name: str, tokens: int) -> None:
    ledger.debit((ledger.account(LIMIT, (name,), NOW),), Usage(tokens, 0), NOW)


def settle(ledger: Ledger, store: MemoryStore) -> None:
    while (batch := ledger.take()) is not None:
        ledger.settled(asyncio.run(store.settle(batch)), NOW)


def used(store: MemoryStore) -> list[int]:
    return sorted(each.used for each in asyncio.run(store.accounts()).values())


def test_what_was_debited_and_not_sent_is_settled_by_the_next(tmp_path: Path) -> None:
    store = MemoryStore()
    ledger, kept = book(tmp_path)
    debit(ledger, "alice", 7)
    debit(ledger, "bob", 5)
    debit(ledger, "alice", 1)
    die(kept)
    ledger, kept = book(tmp_path)
    assert ledger.pending == 2
    settle(ledger, store)
    assert used(store) == [5, 8]
    die(kept)
    ledger, _ = book(tmp_path)
    assert ledger.pending == 0


@pytest.mark.parametrize("applied", [True, False])
def test_what_was_sent_and_not_answered_counts_once(tmp_path: Path, applied: bool) -> None:
    store = MemoryStore()
    ledger, kept = book(tmp_path)
    debit(ledger, "alice", 7)
    settle(ledger, store)
    debit(ledger, "alice", 10)
    batch = ledger.take()
    assert batch is not None
    debit(ledger, "alice", 100)
    if applied:
        asyncio.run(store.settle(batch))
    writer = kept.writer
    die(kept)
    ledger, kept = book(tmp_path)
    assert kept.writer == writer
    settle(ledger, store)
    assert used(store) == [117]
    debit(ledger, "alice", 1000)
    settle(ledger, store)
    assert used(store) == [1117]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["debit", "debit", "send", "lose", "settle", "die", "correct"]),
        st.integers(0, 2),
        st.integers(1, 50),
    ),
    max_size=40,
)


@given(steps=STEPS)
@settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_history_of_debits_losses_and_deaths_adds_up(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    store, total = MemoryStore(), [0, 0, 0]
    ledger, kept = book(folder)
    for kind, number, tokens in steps:
        if kind == "debit":
            debit(ledger, str(number), tokens)
            total[number] += tokens
        elif kind == "correct" and total[number] >= tokens:
            debit(ledger, str(number), -tokens)
            total[number] -= tokens
        elif kind == "send":
            ledger.take()
        elif kind == "lose" and (batch := ledger.take()) is not None:
            asyncio.run(store.settle(batch))
        elif kind == "settle":
            settle(ledger, store)
        elif kind == "die":
            die(kept)
            ledger, kept = book(folder)
    die(kept)
    ledger, kept = book(folder)
    settle(ledger, store)
    assert [each for each in used(store) if each] == sorted(each for each in total if each)
    die(kept)


class Stops(Exception):
    """The process dies here."""


class Counted:
    """Words of a journal that let so many stores happen, and then no more."""

    def __init__(self, words: memoryview[int], left: int) -> None:
        self.words = words
        self.left = left

    def __getitem__(self, at: int) -> int:
        return self.words[at]

    def __setitem__(self, at: int, value: int) -> None:
        if self.left == 0:
            raise Stops
        self.left -= 1
        self.words[at] = value

    def __len__(self) -> int:
        return len(self.words)


@pytest.mark.parametrize("left", range(40))
def test_death_between_any_two_stores_loses_nothing_that_was_in_the_journal(
    tmp_path: Path, left: int
) -> None:
    """Stores into the mapped file are all there is to a crash: stop after each of them."""
    store = MemoryStore()
    ledger, kept = book(tmp_path)
    words = kept.words
    kept.words = Counted(words, left)  # type: ignore[assignment]
    debited = doing = 0
    try:
        for tokens in (7, 10, 100):
            doing = tokens
            debit(ledger, "alice", tokens)
            debited += tokens
            doing = 0
            batch = ledger.take()
            assert batch is not None
            ledger.settled(asyncio.run(store.settle(batch)), NOW)
    except Stops:
        pass
    kept.words = words
    die(kept)
    ledger, kept = book(tmp_path)
    settle(ledger, store)
    # The debit in whose midst it died is there or not, whole; nothing counts twice.
    assert sum(used(store)) in (debited, debited + doing)


def test_a_journal_has_one_owner(tmp_path: Path) -> None:
    first = journal.claim(str(tmp_path), STORE)
    second = journal.claim(str(tmp_path), STORE)
    assert first.path != second.path
    assert first.writer != second.writer
    first.close()
    third = journal.claim(str(tmp_path), STORE)
    assert (third.path, third.writer) == (first.path, first.writer)


def test_a_journal_of_another_store_or_host_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = journal.claim(str(tmp_path), STORE)
    first.close()
    other = journal.claim(str(tmp_path), "memory:other")
    assert other.path != first.path
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    moved = journal.claim(str(tmp_path), STORE)
    assert moved.path not in (first.path, other.path)
    assert moved.writer != first.writer


def test_slots_grow_with_the_file_and_are_used_again(tmp_path: Path) -> None:
    store = MemoryStore()
    ledger, kept = book(tmp_path)
    names = [f"user-{number}" * (number % 9 + 1) for number in range(3000)]
    for number, name in enumerate(names):
        debit(ledger, name, number + 1)
    assert os.path.getsize(kept.path) > journal.FIRST_SIZE
    die(kept)
    ledger, kept = book(tmp_path)
    settle(ledger, store)
    assert used(store) == list(range(1, 3001))
    size = os.path.getsize(kept.path)
    for day in range(1, 4):  # windows end, slots are free again
        for name in names:
            account = ledger.account(LIMIT, (name,), NOW)
            ledger.debit((account,), Usage(1, 0), NOW + 86_400 * day)
        settle(ledger, store)
    assert os.path.getsize(kept.path) <= 2 * size
    assert not kept.full


def test_where_no_slot_is_to_be_had_debits_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastgw.journal.MAX_SIZE", journal.FIRST_SIZE)
    store = MemoryStore()
    ledger, kept = book(tmp_path)
    for number in range(2000):
        debit(ledger, f"user-{number}", 1)
    assert kept.full
    settle(ledger, store)
    assert used(store) == [1] * 2000


@pytest.mark.parametrize(
    "content",
    [
        b"x" * 300,
        bytes(8) + journal.MAGIC + bytes(300),
        b"y" * 70_000,
        bytes(8) + journal.MAGIC * 40,
    ],
)
def test_what_cannot_be_read_is_left_and_told(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0.debits").write_bytes(content)
    kept = journal.claim(str(tmp_path), STORE)
    assert kept.path.endswith("1.debits")
    assert "0.debits is no journal of fastgw; what it held is not settled" in caplog.text
    assert (tmp_path / "0.debits").read_bytes() == content
    assert list(journal.orphans(str(tmp_path), STORE)) == []


def test_a_key_that_is_no_text_keeps_nobody_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, kept = book(tmp_path)
    debit(ledger, "alice", 7)
    place = bytes(kept._mapped).index(b"alice")
    kept._mapped[place] = 0xFF
    die(kept)
    _, kept = book(tmp_path)
    assert kept.path.endswith("1.debits")
    assert "0.debits is damaged; what it held is not settled" in caplog.text
    assert list(journal.orphans(str(tmp_path), STORE)) == []


def test_a_file_that_cannot_be_mapped_any_larger_is_written_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As under a limit of address space."""
    ledger, kept = book(tmp_path)
    debit(ledger, "alice", 7)

    def fail(size: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(kept, "_map", fail)
    for number in range(2000):
        debit(ledger, f"user-{number}", 1)
    debit(ledger, "alice", 1)
    full = [kept.full]
    assert caplog.text.count("no room") == 1
    monkeypatch.undo()
    debit(ledger, "bob", 1)
    assert [*full, kept.full] == [True, False]
    die(kept)
    store = MemoryStore()
    ledger, _ = book(tmp_path)
    settle(ledger, store)
    assert used(store)[-1] == 8


def test_a_write_to_no_slot_spoils_nothing(tmp_path: Path) -> None:
    ledger, kept = book(tmp_path)
    debit(ledger, "alice", 7)
    kept.words[0] += 12345
    die(kept)
    ledger, _ = book(tmp_path)
    assert ledger.pending == 1


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="the journal cannot be kept"):
        journal.claim(str(tmp_path / "file"), STORE)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    kept = journal.claim(str(tmp_path / "new"), STORE)
    assert os.stat(kept.path).st_mode & 0o077 == 0
    assert os.stat(tmp_path / "new").st_mode & 0o077 == 0


def test_another_who_uses_our_name_makes_us_take_a_new_one(tmp_path: Path) -> None:
    store = MemoryStore()
    ledger, kept = book(tmp_path)
    debit(ledger, "alice", 7)
    debit(ledger, "bob", 5)
    settle(ledger, store)
    name, sequence = kept.writer, kept.sequence
    twin = Ledger(name, 0.1, sequence=sequence + 40)  # as from a copy of the machine
    debit(twin, "alice", 100)
    settle(twin, store)
    debit(ledger, "alice", 30)
    debit(ledger, "bob", 2)
    settle(ledger, store)
    assert ledger.renamed == 1
    assert kept.writer != name
    assert used(store) == [7, 137]
    die(kept)
    ledger, kept = book(tmp_path)
    debit(ledger, "alice", 1)
    settle(ledger, store)
    assert used(store) == [7, 138]


_CHILD = """
import sys
from fastgw import journal
from fastgw.model import Usage
from fastgw.policy.account import Limit
from fastgw.policy.ledger import Ledger
from fastgw.policy.window import EpochWindow, NoWindow
kept = journal.claim(sys.argv[1], sys.argv[2])
ledger = Ledger(kept.writer, 0.1, slots=kept, sequence=kept.sequence, owed=kept.owed)
account = ledger.account(Limit("daily", "tokens", 10**9, EpochWindow("day")), ("alice",), 4e9)
number = 0
while True:
    ledger.debit((account,), Usage(1, 0), 4e9)
    number += 1
    if number % 1000 == 0:
        print(number, flush=True)
"""


def test_kill_9_loses_nothing_and_the_folder_is_settled_by_whoever_comes(tmp_path: Path) -> None:
    settings_ = StoreSettings(url=f"sqlite:{tmp_path}/budgets.db", journal=str(tmp_path / "j"))
    name = bookkeeping._names_of(settings_)[0]
    told = []
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, settings_.journal, name],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(3)]
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        child.wait()
        child.stdout.close()
        told.append(int((rest.split() or [lines[-1].strip()])[-1]))

    async def main() -> int:
        task = asyncio.ensure_future(bookkeeping.settle_orphans(settings_))
        store = SqliteStore(f"{tmp_path}/budgets.db", 5.0)
        await store.open()
        while os.listdir(settings_.journal):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        found = await store.accounts()
        task.cancel()
        await store.close()
        (each,) = found.values()
        return each.used

    # The same file was taken by each in turn, with what the one before had not settled.
    total = asyncio.run(main())
    assert sum(told) <= total <= sum(told) + 3 * 1000


@pytest.mark.parametrize("sign", [1, -1])
def test_a_word_that_is_full_stays_full(tmp_path: Path, sign: int) -> None:
    ledger, kept = book(tmp_path)
    for _ in range(40):
        debit(ledger, "alice", sign * 2**60)
        debit(ledger, "bob", sign * 2**80)
        debit(ledger, "carol", 1)
    die(kept)
    ledger, kept = book(tmp_path)
    batch = ledger.take()
    assert batch is not None
    assert [each.amount for each in batch.debits] == [sign * MOST, sign * MOST, 40]


def slots(kept: Journal) -> list[str]:
    """The accounts that have a slot, as another reader of the file sees them."""
    reader = Journal(kept.path, os.open(kept.path, os.O_RDWR), {})
    keys = [each.key for each in reader.owed]
    reader.close()
    return keys


def test_an_account_has_one_slot_however_often_its_journal_changes_hands(tmp_path: Path) -> None:
    store = MemoryStore()
    for number in range(1, 6):
        ledger, kept = book(tmp_path)
        settle(ledger, store)
        for _ in range(4):  # the refresh lets go of what is over
            ledger.refresh(NOW)
        debit(ledger, "alice", 1)
        settle(ledger, store)
        debit(ledger, "alice", 10)
        assert len(slots(kept)) == 1
        assert used(store) == [11 * number - 10]
        die(kept)


def test_windows_that_end_leave_no_slots(tmp_path: Path) -> None:
    store = MemoryStore()
    ledger, kept = book(tmp_path)
    limit = Limit("fast", "tokens", 10**9, EpochWindow("second"))
    account = ledger.account(limit, ("alice",), NOW)
    for second in range(50):
        ledger.debit((account,), Usage(1, 0), NOW + second)  # pending as the window rolls
        if second % 3 == 0:
            settle(ledger, store)
    settle(ledger, store)
    for _ in range(3):
        ledger.refresh(NOW + 10_000)
    assert sum(used(store)) == 50
    assert slots(kept) == []


def test_a_name_longer_than_the_file_finds_its_place(tmp_path: Path) -> None:
    ledger, kept = book(tmp_path)
    debit(ledger, "m" * 500_000, 7)
    debit(ledger, "alice", 5)
    die(kept)
    ledger, _ = book(tmp_path)
    assert ledger.pending == 2


def test_what_ran_at_one_time_is_given_back_by_who_takes_over(tmp_path: Path) -> None:
    store = MemoryStore()
    running = Limit("running", "parallel", 3, NoWindow())
    ledger, kept = book(tmp_path)
    account = ledger.account(running, ("alice",), NOW)
    ledger.ask((account,), Usage(1, 0))
    settle(ledger, store)
    assert isinstance(ledger.reserve((account,), Usage(1, 0)), list)
    assert [each.held for each in asyncio.run(store.accounts()).values()] == [1]
    die(kept)
    ledger, _ = book(tmp_path)
    settle(ledger, store)
    assert all(each.held == 0 for each in asyncio.run(store.accounts()).values())


def test_journals_of_hosts_that_are_gone_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        monkeypatch.setattr("socket.gethostname", lambda number=number: f"pod-{number}")
        for orphan in journal.orphans(str(tmp_path), STORE):
            orphan.remove()
        _, kept = book(tmp_path)
        die(kept)
    assert len(os.listdir(tmp_path)) == 1
