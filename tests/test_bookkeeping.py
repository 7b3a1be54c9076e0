"""The book of a worker: whose journal it opens, and how the debts of the dead are settled."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from fastgw import bookkeeping, journal
from fastgw.config.tables import Store as StoreSettings
from fastgw.errors import StoreUnavailable
from fastgw.model import Batch, Settled, Usage
from fastgw.policy.account import Limit
from fastgw.policy.ledger import Ledger
from fastgw.policy.window import EpochWindow
from fastgw.store.memory import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from fastgw.journal import Journal

NOW = 4_000_000_000.0  # far ahead: the accounts of these tests do not lapse
LIMIT = Limit("daily", "tokens", 10**9, EpochWindow("day"))


def debit(ledger: Ledger, name: str, tokens: int) -> None:
    ledger.debit((ledger.account(LIMIT, (name,), NOW),), Usage(tokens, 0), NOW)


def die(kept: Journal) -> None:
    """What the kernel does when the owner is killed: the lock goes, the pages stay."""
    kept.close()


def test_debts_of_the_dead_wait_for_a_store_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastgw.bookkeeping.RETRY", 0.001)

    class Away(MemoryStore):
        failures = 3

        async def settle(self, batch: Batch) -> Settled:
            if Away.failures:
                Away.failures -= 1
                raise StoreUnavailable("away")
            return await super().settle(batch)

    store = Away()
    monkeypatch.setattr("fastgw.bookkeeping.open_store", lambda _settings: store)
    settings_ = StoreSettings(url="redis://localhost", journal=str(tmp_path))
    kept = journal.claim(str(tmp_path), bookkeeping._names_of(settings_)[0])
    ledger = Ledger(kept.writer, 0.1, slots=kept)
    debit(ledger, "alice", 9)
    kept.close()

    async def main() -> list[int]:
        task = asyncio.ensure_future(bookkeeping.settle_orphans(settings_))
        while os.listdir(tmp_path):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()
        return [each.used for each in (await store.accounts()).values()]

    # MemoryStore forgets as it is closed; what it held then is what counts.
    monkeypatch.setattr(MemoryStore, "close", lambda self: asyncio.sleep(0))
    assert asyncio.run(main()) == [9]


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("memory:", ""),
        ("sqlite:/var/lib/x.db", "/var/lib/x.db.debits"),
        ("redis://u:p@h:1/0", "fastgw.debits"),
    ],
)
def test_where_journals_are(url: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert bookkeeping.folder_of(StoreSettings(url=url)) == folder
    assert bookkeeping.folder_of(StoreSettings(url=url, journal="")) == ""
    assert bookkeeping.folder_of(StoreSettings(url=url, journal="/x")) == "/x"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/fastgw")
    if url.startswith("redis"):
        assert bookkeeping.folder_of(StoreSettings(url=url)) == "/var/lib/fastgw/fastgw.debits"


def names(url: str, prefix: str = "fastgw") -> tuple[str, ...]:
    return bookkeeping._names_of(StoreSettings(url=url, prefix=prefix))


def test_the_name_of_a_store_holds_no_credentials() -> None:
    one = names("redis://user:sec@ret@host:1/0?client_name=secret")
    two = names("redis://user:other@host:1/0?client_name=secret")
    assert one == two
    assert "ret" not in one[0]


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("redis://h", "redis://h:6379"),
        ("redis://h", "redis://H/"),
        ("redis://h", "redis://u:p@h/0"),
        ("redis://h", "redis://h/0?client_name=x"),
        ("redis://h", "rediss://h?ssl_cert_reqs=none"),
        ("redis://127.0.0.1:7", "redis://localhost:7/0"),
        ("redis+sentinel://a/main", "redis+sentinel://u:p@b:1,c/main/0?sentinel_password=x"),
        ("redis+cluster://a,b", "redis+cluster://u:p@b:6379,a:6379/0"),
    ],
)
def test_a_store_has_one_name_however_it_is_written(one: str, same: str) -> None:
    assert names(one)[0] == names(same)[0]


def test_stores_that_differ_have_names_that_differ() -> None:
    urls = [
        "redis://h",
        "redis://h/1",
        "redis://h:1",
        "redis://i",
        "redis+sentinel://h/h",
        "redis+sentinel://h/other",
        "redis+sentinel://h/h/1",
        "redis+cluster://h",
        "redis+cluster://h,i",
        "sqlite:h",
        "memory:",
    ]
    found = [name for url in urls for name in (names(url)[0], names(url, "more")[0])]
    # the prefix is nothing to a file
    assert len(set(found)) == len(found) - 1


def _open(settings_: StoreSettings) -> tuple[Ledger, Journal]:
    ledger, kept = bookkeeping.open_book(settings_, MemoryStore())
    assert kept is not None
    return ledger, kept


def test_debts_are_found_by_another_way_of_writing_the_store(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for url in ("redis://127.0.0.1:7", "redis://localhost:7/0", "redis://u:p@127.0.0.1:7/"):
        ledger, kept = _open(StoreSettings(url=url, journal=str(tmp_path)))
        debit(ledger, "alice", 7)
        die(kept)
    assert os.listdir(tmp_path) == ["0.debits"]
    assert "another store" not in caplog.text


def test_debts_under_the_name_of_older_versions_are_found_and_named_anew(tmp_path: Path) -> None:
    settings_ = StoreSettings(url="redis://u:p@localhost:7/0?client_name=x", journal=str(tmp_path))
    older = names(settings_.url)[1]
    assert older == "redis:localhost:7/0?client_name=x fastgw".replace(":l", "://l")
    first, second = journal.claim(str(tmp_path), older), journal.claim(str(tmp_path), older)
    for kept in (first, second):
        debit(Ledger(kept.writer, 0.1, slots=kept), "alice", 7)
    writer = first.writer
    die(first)
    die(second)
    ledger, kept = _open(settings_)
    assert (kept.writer, ledger.pending) == (writer, 1)
    (orphan,) = journal.orphans(str(tmp_path), *names(settings_.url))
    assert orphan.writer == second.writer
    orphan.close()
    die(kept)
    # whoever writes the url in another way finds it now
    again = journal.claim(str(tmp_path), names("redis://127.0.0.1:7")[0])
    assert again.writer == writer
    assert again.owes


def test_debts_to_another_store_are_told_of_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        for _ in range(2):
            settings_ = StoreSettings(url=f"redis://h/{number}", journal=str(tmp_path))
            ledger, kept = _open(settings_)
            if number < 2:
                debit(ledger, "alice", 7)
            die(kept)
    told = [each.getMessage() for each in caplog.records if "another store" in each.getMessage()]
    assert len(told) == 4
    assert "0.debits in " in told[0]
    assert "0.debits, 1.debits in " in told[-1]


def test_one_orphan_that_cannot_be_settled_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(MemoryStore):
        async def settle(self, batch: Batch) -> Settled:
            if batch.debits[0].amount == 1:
                raise TypeError("a bug")
            answer = await super().settle(batch)
            return answer._replace(used=[-1]) if batch.debits[0].amount == 2 else answer

    store = Odd()
    monkeypatch.setattr("fastgw.bookkeeping.open_store", lambda _settings: store)
    monkeypatch.setattr(MemoryStore, "close", lambda self: asyncio.sleep(0))
    settings_ = StoreSettings(url="redis://localhost", journal=str(tmp_path))
    kept = [journal.claim(str(tmp_path), *names(settings_.url)) for _ in range(3)]
    for number, each in enumerate(kept, 1):
        debit(Ledger(each.writer, 0.1, slots=each), "alice", number)
    for each in kept:
        die(each)

    async def main() -> None:
        task = asyncio.ensure_future(bookkeeping.settle_orphans(settings_))
        while len(os.listdir(tmp_path)) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(main())
    assert os.listdir(tmp_path) == ["0.debits"]
    assert "cannot be settled; it is kept" in caplog.text
    assert "the store cannot keep 1 account(s)" in caplog.text
