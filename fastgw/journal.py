"""What a worker has debited and the store does not have yet, in a file that survives the worker.

The file is mapped into memory: a debit adds to an 8-byte word, and the kernel keeps the page
whatever becomes of the process. `kill -9` loses nothing. A power cut or a crash of the kernel may
lose what was not written back (about 30 s on Linux); it never debits twice, since every batch has
its sequence. A full disk makes no new slots: debits of new accounts then live in the process alone.

    header   4 granules of 64 bytes: a word that nobody reads, magic, last sequence begun, length of
             the JSON that follows: writer (its name for the store), store and host (digests: where
             it belongs)
    slots    one granule of 8 words, and the account's key in the granules that follow

    word 0   granules of the slot << 32 | bytes of the key; no bytes: free; 0: the end
    word 1   when the store may forget the account, epoch seconds
    word 2   TOTAL         all debits since the slot was taken
    word 3   SEQUENCE      the batch that the account was last in
    word 4   SENT          TOTAL as it was then
    word 5   ACKNOWLEDGED  what of TOTAL is in the store
    word 6   KNOWN         `used`, as the store acknowledged it
    word 7   SETTLED       the last batch that was acknowledged

Each step is one store of a word, in an order in which a death between any two of them leaves
something true: SEQUENCE before SENT, so that what was in no batch is never taken for sent.

A file belongs to the process that has its lock (flock, gone with the process). A worker takes the
first free file of the folder, and with it the name, the sequence and the debts of whoever had it
before; so an account has one field for each worker of a host, not for each start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import mmap
import os
import secrets
import socket
from typing import TYPE_CHECKING, Final

import orjson

from fastgw import clock
from fastgw.model import Owed
from fastgw.policy.ledger import MOST

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

MAGIC = b"fastgw1\n"
GRANULE = 64
WORDS = GRANULE // 8
HEADER = 4 * GRANULE
FIRST_SIZE = 64 * 1024
MAX_SIZE = 256 * 1024 * 1024
"""Some two million accounts that owe something at one time."""

_FULL: Final = 2**63 - 1  # of a word
_NUMBERS = 4096  # files of one folder at most
_SIZE, _EXPIRES, _TOTAL, _SEQUENCE, _SENT, _ACKNOWLEDGED, _KNOWN, _SETTLED = range(8)
_BEGUN, _LENGTH = 2, 3  # words of the header
_MAGIC = slice(8, 16)
_FACTS = 32  # bytes before the JSON


class JournalError(OSError):
    """The folder cannot be used; the text says why."""


class Journal:
    """One file, locked by this process. Fulfils `Slots` of policy/ledger.

    A slot is the index of its TOTAL in `words`; 0 is none.
    """

    def __init__(self, path: str, descriptor: int, belongs: dict[str, str]) -> None:
        """For `claim` and `orphans`. `belongs`: store and host. Raises OSError."""
        self.path = path
        self._file = descriptor
        self._belongs = belongs
        self._free: dict[int, list[int]] = {}
        self.owed: list[Owed] = []
        """What was not settled when the file was opened, and the slots that are still taken."""
        self.full = False
        """Whether an account found no slot, and there is no more room since."""
        self.writer = ""
        size = os.fstat(descriptor).st_size
        if size < HEADER:
            os.posix_fallocate(descriptor, 0, FIRST_SIZE)
            size = FIRST_SIZE
        self._map(size)
        if self._mapped[_MAGIC] == MAGIC:
            self._read()
        elif any(self._mapped[:HEADER]):
            raise JournalError(f"{os.path.basename(self.path)} is no journal of fastgw")
        else:
            self.rename()
            self._mapped[_MAGIC] = MAGIC
            self._end = HEADER // 8

    def _map(self, size: int) -> None:
        size -= size % GRANULE
        self._mapped = mmap.mmap(self._file, size)
        self.words: memoryview[int] = memoryview(self._mapped).cast("q")

    def _read(self) -> None:
        length = self.words[_LENGTH]
        try:
            facts = orjson.loads(self._mapped[_FACTS : _FACTS + length])
            self.writer = str(facts["writer"])
            self.store, self.host = str(facts["store"]), str(facts["host"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise JournalError(f"{os.path.basename(self.path)} is no journal of fastgw") from None
        words = self.words
        now = clock.wall()
        at = HEADER // 8
        while at + WORDS <= len(words) and words[at]:
            granules, length = words[at] >> 32, words[at] & 0xFFFFFFFF
            if granules < 1 or at + granules * WORDS > len(words):
                raise JournalError(f"{os.path.basename(self.path)} is damaged")
            owes = words[at + _TOTAL] != words[at + _ACKNOWLEDGED]
            if length and (owes or words[at + _EXPIRES] > now):
                start = (at + WORDS) * 8
                sent = words[at + _SENT] - words[at + _ACKNOWLEDGED]
                try:
                    key = self._mapped[start : start + length].decode()
                except UnicodeDecodeError:
                    raise JournalError(f"{os.path.basename(self.path)} is damaged") from None
                self.owed.append(
                    Owed(
                        key,
                        words[at + _EXPIRES],
                        at + _TOTAL,
                        words[at + _SEQUENCE],
                        _bounded(sent),
                        _bounded(words[at + _TOTAL] - words[at + _SENT]),
                        words[at + _SETTLED],
                        words[at + _KNOWN],
                    )
                )
            else:
                words[at] = granules << 32
                self._free.setdefault(granules, []).append(at)
            at += granules * WORDS
        self._end = at

    @property
    def owes(self) -> bool:
        """Whether there is anything to settle, as it was opened."""
        return any(each.sent or each.rest for each in self.owed)

    @property
    def belongs(self) -> bool:
        """Whether its name may be used on: it was made on this host."""
        return self.host == self._belongs["host"]

    @property
    def sequence(self) -> int:
        """The last sequence that was begun under this name."""
        return self.words[_BEGUN]

    # Slots of policy/ledger

    def take(self, key: str, expires_at: int) -> int:
        """See Slots."""
        name = key.encode()
        granules = 1 + -(-len(name) // GRANULE)
        free = self._free.get(granules)
        if free:
            at = free.pop()
        else:
            while self._end + (granules + 1) * WORDS > len(self.words):
                if not self._grow():
                    if not self.full:
                        log.error("journal: no room: debits of new accounts are in memory alone")
                    self.full = True
                    return 0
                self.full = False
            at = self._end
            self._end += granules * WORDS
        words = self.words
        for word in range(1, WORDS):
            words[at + word] = 0
        words[at + _EXPIRES] = expires_at
        start = (at + WORDS) * 8
        self._mapped[start : start + len(name)] = name
        words[at] = granules << 32 | len(name)
        return at + _TOTAL

    def free(self, slot: int) -> None:
        """Nothing is owed there, and nobody will write there any more."""
        at = slot - _TOTAL
        granules = self.words[at] >> 32
        self.words[at] = granules << 32
        self._free.setdefault(granules, []).append(at)

    def add(self, slot: int, amount: int) -> None:
        """See Slots. A full word stays full: by then the store counts no further either."""
        try:
            self.words[slot] += amount
        except ValueError:  # past int64
            self.words[slot] = _FULL if amount > 0 else -_FULL

    def begin(self, sequence: int) -> None:
        """See Slots."""
        self.words[_BEGUN] = sequence

    def send(self, slot: int, sequence: int) -> None:
        """See Slots."""
        words = self.words
        words[slot + 1] = sequence
        words[slot + 2] = words[slot]

    def acknowledge(self, slot: int, used: int) -> None:
        """See Slots."""
        words = self.words
        words[slot + 3] = words[slot + 2]
        words[slot + 4] = used
        words[slot + 5] = words[slot + 1]

    def unsend(self, slot: int) -> None:
        """See Slots."""
        self.words[slot + 2] = self.words[slot + 3]
        self.words[slot + 5] = 0

    def rename(self) -> str:
        """See Slots."""
        self.writer = f"{socket.gethostname()[:32]}:{secrets.token_hex(6)}"
        self.sign()
        return self.writer

    def sign(self) -> None:
        """Say where it belongs, as it is named now."""
        self.store, self.host = self._belongs["store"], self._belongs["host"]
        facts = orjson.dumps({"writer": self.writer, **self._belongs})
        self._mapped[_FACTS : _FACTS + len(facts)] = facts
        self.words[_LENGTH] = len(facts)

    def _grow(self) -> bool:
        size = len(self._mapped)
        if size >= MAX_SIZE:
            return False
        mapped, words = self._mapped, self.words
        try:
            # Not by a hole in the file: writing into one on a full disk would kill the process.
            os.posix_fallocate(self._file, size, size)
            self._map(2 * size)
        except OSError:
            return False
        words.release()
        mapped.close()
        return True

    def close(self) -> None:
        """Let go of the file; what is owed stays in it."""
        with contextlib.suppress(ValueError):
            self.words.release()
            self._mapped.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def remove(self) -> None:
        """Nothing is owed any more: the file goes, while we have its lock."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.close()

    def __repr__(self) -> str:
        return f"<Journal {os.path.basename(self.path)} {self.writer}>"


def _bounded(amount: int) -> int:
    return min(max(amount, -MOST), MOST)


def belonging(store: str) -> dict[str, str]:
    """Digests of where a journal belongs: the store's name without its credentials, this host."""
    try:
        with open("/etc/machine-id", "rb") as file:
            machine = file.read()
    except OSError:
        machine = b""
    return {
        "store": hashlib.sha256(store.encode()).hexdigest()[:16],
        "host": hashlib.sha256(machine + socket.gethostname().encode()).hexdigest()[:16],
    }


def _digests(*names: str) -> set[str]:
    return {belonging(name)["store"] for name in names}


def claim(folder: str, store: str, *older: str) -> Journal:
    """The first journal of `folder` that nobody has, for the store of this name; a new one where
    all are taken. `older`: names that the same store had. One that cannot be read is left for the
    operator. Raises JournalError."""
    belongs = belonging(store)
    names = _digests(store, *older)
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        for number in range(_NUMBERS):
            try:
                journal = _lock(os.path.join(folder, f"{number}.debits"), belongs, create=True)
            except JournalError as error:
                log.error("journal: %s; what it held is not settled, look at it", error)
                continue
            if journal is None:
                continue
            if journal.store in names and journal.belongs:
                if journal.store != belongs["store"]:
                    journal.sign()
                return journal
            journal.close()  # another store's, or from another host: its own name must settle it
    except OSError as error:
        raise JournalError(f"the journal cannot be kept: {error.strerror}") from None
    raise JournalError(f"the journal cannot be kept: {_NUMBERS} files are in use")


def orphans(folder: str, store: str, *older: str) -> Iterator[Journal]:
    """Journals of this store that no process has, and that owe something or are of another host.
    The caller settles and removes each, or closes it."""
    names = _digests(store, *older)
    for journal in _free(folder, store):
        if journal.store in names and (journal.owes or not journal.belongs):
            yield journal
        else:
            journal.close()


def strangers(folder: str, store: str, *older: str) -> list[str]:
    """The files of journals that owe something to another store, and that no process has."""
    names = _digests(store, *older)
    found = []
    for journal in _free(folder, store):
        if journal.owes and journal.store not in names:
            found.append(os.path.basename(journal.path))
        journal.close()
    return found


def _free(folder: str, store: str) -> Iterator[Journal]:
    """Every journal that no process has. The caller closes it."""
    belongs = belonging(store)
    try:
        files = sorted(name for name in os.listdir(folder) if name.endswith(".debits"))
    except OSError:
        return
    for name in files:
        try:
            journal = _lock(os.path.join(folder, name), belongs, create=False)
        except OSError:
            continue  # damaged: left for the operator to look at
        if journal is not None:
            yield journal


def _lock(path: str, belongs: dict[str, str], *, create: bool) -> Journal | None:
    """The journal at `path`, ours now; None if another process has it or it went meanwhile."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink == 0:
            raise BlockingIOError  # removed by who had it
        return Journal(path, descriptor, belongs)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
