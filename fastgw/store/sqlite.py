"""The default store: one SQLite file, no server. Survives restarts; processes may share it.

Three tables: `accounts(account, used, expires_at)`, `sequences(account, writer, sequence)` and
`holds(account, writer, sequence, amount, until)`. A
batch is one transaction, begun IMMEDIATE so that two processes never read the same `used` and
write both. What somebody wrote by hand may be no integer: columns of SQLite take anything.
WAL with synchronous=NORMAL: a crash of the process loses nothing that was settled, a power cut may
lose the last transactions. All calls run on one thread of the store's own; the loop never waits for
the disk.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from fastgw import clock
from fastgw.errors import StoreUnavailable
from fastgw.model import Settled, Standing
from fastgw.policy.ledger import MOST
from fastgw.policy.window import USAGE_KEYS
from fastgw.store.base import UNUSABLE, bounded, granted, granted_alone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastgw.model import Batch, Claim, Debit
    from fastgw.store.base import Sequences

_T = TypeVar("_T")

_SCHEMA = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    """CREATE TABLE IF NOT EXISTS accounts (
        account TEXT PRIMARY KEY, used INTEGER NOT NULL, expires_at INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS sequences (
        account TEXT NOT NULL, writer TEXT NOT NULL, sequence INTEGER NOT NULL,
        PRIMARY KEY (account, writer)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS holds (
        account TEXT NOT NULL, writer TEXT NOT NULL, sequence INTEGER NOT NULL,
        amount INTEGER NOT NULL, until INTEGER NOT NULL, PRIMARY KEY (account, writer)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS accounts_by_expiry ON accounts (expires_at)",
)
_VERSION = "PRAGMA data_version"
"""Differs from that of the transaction before on this connection where another one has written."""
_READ = "SELECT used, expires_at FROM accounts WHERE account = ?"
_CLAIM = """INSERT INTO sequences VALUES (?1, ?2, ?3)
    ON CONFLICT (account, writer) DO UPDATE SET sequence = ?3
    WHERE sequence < ?3 OR typeof(sequence) <> 'integer'"""
# A sum that overflows is a REAL for SQLite; min() makes an integer of it again.
_WRITE = f"""INSERT INTO accounts VALUES (?1, min(max(0, ?2), {MOST}), ?3)
    ON CONFLICT (account) DO UPDATE SET used = min(max(0, used + ?2), {MOST})"""
_LAST = "SELECT sequence FROM sequences WHERE account = ? AND writer = ?"
_DROP = "DELETE FROM accounts WHERE account = ?"
_RAISE = """INSERT INTO accounts VALUES (?1, ?2, ?3)
    ON CONFLICT (account) DO UPDATE SET used = max(used, ?2)"""
_SOUND = "typeof(sequence) = 'integer' AND typeof(amount) = 'integer' AND typeof(until) = 'integer'"
# Not sum(): it fails where it overflows.
_OTHERS = f"""SELECT amount FROM holds
    WHERE account = ? AND writer <> ? AND until > ? AND {_SOUND}"""
_HELD = f"SELECT sequence, amount FROM holds WHERE account = ? AND writer = ? AND {_SOUND}"
_HOLD = "INSERT OR REPLACE INTO holds VALUES (?, ?, ?, ?, ?)"
_LET_GO = "DELETE FROM holds WHERE account = ? AND writer = ?"
_AFTER_USAGE = USAGE_KEYS[:-1] + chr(ord(USAGE_KEYS[-1]) + 1)
_READ_USAGE = """SELECT account, used FROM accounts
    WHERE account >= ?2 AND account < ?3 AND expires_at > ?1 AND typeof(expires_at) = 'integer'"""
_READ_ALL = f"""SELECT account, used FROM accounts
    WHERE (account < ?2 OR account >= ?3) AND expires_at > ?1 AND typeof(expires_at) = 'integer'
    UNION ALL SELECT account, 0 FROM holds
    WHERE until > ?1 AND account NOT IN (SELECT account FROM accounts) AND {_SOUND}"""
_HOLDS = f"SELECT account, amount FROM holds WHERE until > ? AND {_SOUND}"
_PURGE_EVERY = 1000  # batches


class SqliteStore:
    """See store/base and the module."""

    shared = True
    remote = False

    def __init__(self, path: str, timeout: float) -> None:
        """`timeout`: seconds that one call may take, waiting for other processes included."""
        self._path = path
        self._timeout = timeout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fastgw-sqlite")
        self._db: sqlite3.Connection | None = None
        self._batches = 0
        self._version = 0
        self._closed = False

    async def open(self) -> None:
        """Open or create the file, readable by its owner alone."""
        await self._call(self._open)

    async def settle(self, batch: Batch) -> Settled:
        """See Store."""
        return await self._call(lambda: self._settle(batch))

    async def accounts(
        self, usage: bool = False, settled: Sequences | None = None
    ) -> dict[str, Standing]:
        """See Store."""
        wanted = tuple(settled or ())
        found, last = await self._call(lambda: self._read_all(usage, wanted))
        if settled is not None:
            settled.update(last)
        return found

    async def close(self) -> None:
        """See Store."""
        if not self._closed:
            self._closed = True
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._close)
            self._thread.shutdown()

    async def _call(self, work: Callable[[], _T]) -> _T:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._guard, work)
        # Who waits may be gone when it fails: past the deadline, or cancelled.
        running.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            # Past the deadline the work goes on in its thread; a repeat is harmless.
            return await asyncio.wait_for(asyncio.shield(running), self._timeout)
        except TimeoutError:
            raise StoreUnavailable(f"SQLite took longer than {self._timeout} s") from None

    def _guard(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except (sqlite3.Error, OverflowError) as error:
            raise StoreUnavailable(f"SQLite ({os.path.basename(self._path)}): {error}") from None

    # on the thread

    def _open(self) -> None:
        if self._db is not None:
            return
        folder = os.path.dirname(self._path) or "."
        if not os.path.isdir(folder):
            raise StoreUnavailable("SQLite: the folder of the file does not exist; create it")
        self._create()
        db = sqlite3.connect(
            self._path,
            timeout=self._timeout * 0.8,
            isolation_level=None,
            check_same_thread=True,
        )
        try:
            for statement in _SCHEMA:
                db.execute(statement)
        except sqlite3.Error:
            db.close()
            raise
        self._db = db

    def _create(self) -> None:
        """Make the file, readable by its owner alone, if there is none.

        One that exists is not opened here: closing it would drop the locks that another connection
        of this process has on it (POSIX), and then another process that ends takes the log away
        under it, with all that is debited from then on.
        """
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            if not os.access(self._path, os.R_OK | os.W_OK):
                raise StoreUnavailable("SQLite: cannot write the file: no permission") from None
        except OSError as error:
            raise StoreUnavailable(f"SQLite: cannot write the file: {error.strerror}") from None

    def _settle(self, batch: Batch) -> Settled:
        self._open()
        db = self._db
        assert db is not None
        now = int(clock.wall())
        answer = Settled([], [], [], [])
        # Only to read, no lock is asked for: another process that writes keeps nobody waiting.
        writes = bool(batch.claims) or any(debit.amount for debit in batch.debits)
        db.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            for at, debit in enumerate(batch.debits):
                answer.used.append(self._line(db, batch, debit, at, now, answer))
            for claim in batch.claims:
                used, debit = answer.used[claim.line], batch.debits[claim.line]
                if used == UNUSABLE:
                    answer.holds.append(granted_alone(claim, debit))
                else:
                    answer.holds.append(self._claim(db, batch, debit.account, claim, used, now))
            self._batches += writes
            if writes and self._batches % _PURGE_EVERY == 1:
                self._purge(db, now)
            version = db.execute(_VERSION).fetchone()[0]
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        alone, self._version = version == self._version, version
        return answer._replace(alone=alone)

    def _line(
        self,
        db: sqlite3.Connection,
        batch: Batch,
        debit: Debit,
        at: int,
        now: int,
        answer: Settled,
    ) -> int:
        """Apply one line. Returns what its account has used then, or UNUSABLE."""
        used = self._used(db, debit.account, now)
        if used != UNUSABLE and (debit.amount or debit.settled):
            self._apply(db, batch, debit, at, now, answer, used)
            used = self._used(db, debit.account, now)
        return used or 0

    def _used(self, db: sqlite3.Connection, account: str, now: int) -> int | None:
        """None: there is none, or it is over."""
        row = db.execute(_READ, (account,)).fetchone()
        if row is None:
            return None
        used, ends = bounded(row[0]), bounded(row[1])
        if ends is not None and ends <= now:
            return None
        return UNUSABLE if used is None or ends is None else used

    def _apply(
        self,
        db: sqlite3.Connection,
        batch: Batch,
        debit: Debit,
        at: int,
        now: int,
        answer: Settled,
        used: int | None,
    ) -> None:
        account, amount, expires_at, settled, known = debit
        if used is None and db.execute(_DROP, (account,)).rowcount:
            db.execute("DELETE FROM sequences WHERE account = ?", (account,))
        if settled and (used is None or used < known) and expires_at > now:
            if self._last(db, account, batch.writer) < settled:
                db.execute(_RAISE, (account, known, expires_at))
                answer.lost.append(at)
                db.execute(_CLAIM, (account, batch.writer, settled))
        if not amount:
            return
        if db.execute(_CLAIM, (account, batch.writer, batch.sequence)).rowcount:
            db.execute(_WRITE, (account, amount, expires_at))
        elif self._last(db, account, batch.writer) > batch.sequence:
            answer.ahead.append(at)

    def _last(self, db: sqlite3.Connection, account: str, writer: str) -> int:
        """0: none."""
        row = db.execute(_LAST, (account, writer)).fetchone()
        return (row is not None and bounded(row[0])) or 0

    def _claim(
        self,
        db: sqlite3.Connection,
        batch: Batch,
        account: str,
        claim: Claim,
        used: int,
        now: int,
    ) -> tuple[int, int]:
        others = sum(row[0] for row in db.execute(_OTHERS, (account, batch.writer, now)))
        row = db.execute(_HELD, (account, batch.writer)).fetchone()
        if row is not None and row[0] >= batch.sequence:
            return others, row[1]
        amount = granted(claim, claim.limit - used - others - claim.floor)
        if amount:
            until = now + batch.lapse
            db.execute(_HOLD, (account, batch.writer, batch.sequence, amount, until))
        elif row is not None:
            db.execute(_LET_GO, (account, batch.writer))
        return others, amount

    def _purge(self, db: sqlite3.Connection, now: int) -> None:
        db.execute(
            "DELETE FROM sequences WHERE account IN"
            " (SELECT account FROM accounts WHERE expires_at <= ?)",
            (now,),
        )
        db.execute("DELETE FROM accounts WHERE expires_at <= ?", (now,))
        db.execute("DELETE FROM holds WHERE until <= ?", (now,))

    def _read_all(
        self, usage: bool, wanted: Sequence[tuple[str, str]]
    ) -> tuple[dict[str, Standing], Sequences]:
        self._open()
        db = self._db
        assert db is not None
        now = int(clock.wall())
        held: dict[str, int] = {}
        db.execute("BEGIN")  # all of one moment
        try:
            for account, amount in db.execute(_HOLDS, (now,)):
                held[account] = held.get(account, 0) + amount
            read = _READ_USAGE if usage else _READ_ALL
            rows = db.execute(read, (now, USAGE_KEYS, _AFTER_USAGE)).fetchall()
            last = {each: self._last(db, *each) for each in wanted}
        finally:
            db.execute("ROLLBACK")
        standings = {
            account: Standing(used, held.get(account, 0))
            for account, number in rows
            if (used := bounded(number)) is not None  # else no count: settle tells
        }
        return standings, last

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
            self._version = 0
