"""The worker's own book: what each account has used, and what is still to be told to the store.

1. A `Count` is an account in one window. used = what the store last said; pending = debited here,
   not yet sent; sent = in the batch that is under way. What a decision looks at is the sum of the
   three: a debit is seen by the very next request of this worker.
2. An account whose window has ended gets a new Count. The old one stays in the queue until its
   debits are settled: a debit belongs to the window in which it was made.
3. Only one batch is under way. Until it is acknowledged it is sent again as it was, with its
   sequence; meanwhile debits add up in pending. So the batch size follows the load by itself.
4. Check all, then write all: `admit` changes nothing unless every account lets the request in.
5. A count older than `max_staleness` is asked for again before it decides, and missing is not zero:
   a count never heard of is always asked for first.
6. Settling cannot fail and does not wait: `debit` adds to an integer.

No clock, no store, no loop: settlement moves the batches, and hands time in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from fastgw.model import Batch, Debit
from fastgw.policy.window import GRACE, AccountName, Window, account_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastgw.model import Usage

NEVER = float("-inf")
MAX_BATCH = 2000
"""Lines of one batch: bounds the time that one call occupies the store."""
MAX_KEPT = 100_000
"""Accounts that are remembered while nobody uses them: about 50 MB."""


class Limit:
    """A budget as the ledger sees it: name, unit, amount, window, whether it refuses."""

    __slots__ = ("amount", "fields", "name", "refusals", "shadow", "unit", "warn_at", "window")

    def __init__(
        self,
        name: str,
        unit: str,
        amount: int,
        window: Window,
        *,
        shadow: bool = False,
        warn_at: float = 0.0,
    ) -> None:
        self.name = name
        self.unit = unit
        self.amount = amount
        self.fields = b"x-ratelimit-limit: %d\r\nx-ratelimit-remaining: " % amount
        self.window = window
        self.shadow = shadow
        self.warn_at = warn_at
        self.refusals = 0
        """Requests that it refused (or, in shadow, would have refused)."""


class Count:
    """An account in one window."""

    __slots__ = (
        "__weakref__",
        "asked",
        "expires_at",
        "key",
        "known_at",
        "pending",
        "queued",
        "sent",
        "used",
    )

    def __init__(self, key: str, expires_at: int) -> None:
        self.key = key
        self.expires_at = expires_at
        self.used = 0
        self.pending = 0
        self.sent = 0
        self.known_at = NEVER
        self.queued = False  # waits for the next batch
        self.asked = False  # is in the batch under way

    @property
    def spent(self) -> int:
        """What a decision looks at."""
        return self.used + self.pending + self.sent

    def __repr__(self) -> str:
        return f"<Count {self.key} used={self.used} pending={self.pending} sent={self.sent}>"


class Account:
    """One limit for one value of its `per`. `count` is the count of the current window."""

    __slots__ = ("__weakref__", "_counts", "count", "end", "limit", "start", "values", "warned_at")

    def __init__(
        self,
        limit: Limit,
        values: tuple[str, ...],
        now: float,
        counts: WeakValueDictionary[str, Count] | None = None,
    ) -> None:
        """`counts`: those that live, by key. An account that was forgotten and is made again finds
        the count that still waits for the store: one key never has two."""
        self.limit = limit
        self.values = values
        self._counts = WeakValueDictionary() if counts is None else counts
        self.warned_at = 0
        self.roll(now)

    def roll(self, now: float) -> None:
        """Begin the window that holds `now` (epoch seconds)."""
        limit = self.limit
        self.start, self.end = limit.window.bounds(now)
        name = AccountName(limit.name, limit.unit, limit.window.name, self.start, self.values)
        key = account_key(name)
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = Count(key, self.end + GRACE)
        self.count = count

    @property
    def remaining(self) -> int:
        """What is left of the limit, never negative; 0 means refused."""
        return max(0, self.limit.amount - self.count.spent)


class Ledger:
    """All accounts that this worker serves. Times are epoch seconds, amounts integers."""

    def __init__(self, writer: str, max_staleness: float) -> None:
        """`writer` names this worker and its boot for the store. `max_staleness` in seconds; use
        infinity where no other process can debit."""
        self._writer = writer
        self._sequence = 0
        self._max_staleness = min(max_staleness, 1e15)  # NEVER is older than any
        self._accounts: WeakValueDictionary[tuple[str, tuple[str, ...]], Account] = (
            WeakValueDictionary()
        )
        self._counts: WeakValueDictionary[str, Count] = WeakValueDictionary()
        self._kept: dict[Account, None] = {}
        self._queue: list[Count] = []
        self._in_flight: tuple[Batch, list[Count]] | None = None

    def account(self, limit: Limit, values: tuple[str, ...], now: float) -> Account:
        """The account of these values: one object for all who name it."""
        name = (limit.name, values)
        account = self._accounts.get(name)
        if account is None or account.limit is not limit:
            account = Account(limit, values, now, self._counts)
            self._accounts[name] = account
            self._keep(account)
        return account

    def _keep(self, account: Account) -> None:
        """Hold on to an account when its clients have gone: what it knows decides while the store
        is away. Past MAX_KEPT the oldest goes, unless it owes debits."""
        kept = self._kept
        kept[account] = None
        for _ in range(len(kept) - MAX_KEPT):
            oldest = next(iter(kept))
            del kept[oldest]
            if oldest.count.pending or oldest.count.sent:
                kept[oldest] = None

    def accounts(self) -> list[Account]:
        """Every account in use, for reports."""
        return list(self._accounts.values())

    def stale(self, accounts: Iterable[Account], now: float) -> bool:
        """Whether a decision of the moment `now` needs the store first; if so it is being asked.

        Whoever waits calls again with the moment at which it began to wait: an answer that was
        asked for since then is young enough, however slow the store is.
        """
        found = False
        for account in accounts:
            if not account.start <= now < account.end:
                account.roll(now)
            count = account.count
            if now - count.known_at > self._max_staleness:
                found = True
                if not count.queued and not count.asked:
                    count.queued = True
                    self._queue.append(count)
        return found

    def refuses(self, accounts: Iterable[Account]) -> Account | None:
        """The first account that is used up, or None: then `requests` units are debited."""
        for account in accounts:
            count = account.count
            limit = account.limit
            if count.used + count.pending + count.sent >= limit.amount:
                limit.refusals += 1
                if not limit.shadow:
                    return account
        self.admit(accounts)
        return None

    def admit(self, accounts: Iterable[Account]) -> None:
        """Let a request in without asking: debit what is counted at admission."""
        for account in accounts:
            if account.limit.unit == "requests":
                self._add(account.count, 1)

    def debit(self, accounts: Iterable[Account], usage: Usage, now: float) -> None:
        """Charge what an exchange cost to every account, in the window that is current now."""
        for account in accounts:
            unit = account.limit.unit
            if unit == "tokens":
                amount = usage.input_tokens + usage.output_tokens
            elif unit == "input_tokens":
                amount = usage.input_tokens
            elif unit == "output_tokens":
                amount = usage.output_tokens
            else:
                continue
            if amount:
                if now >= account.end:
                    account.roll(now)
                self._add(account.count, amount)

    def _add(self, count: Count, amount: int) -> None:
        count.pending += amount
        if not count.queued:
            count.queued = True
            self._queue.append(count)

    @property
    def has_work(self) -> bool:
        """Whether a batch is under way or waits."""
        return self._in_flight is not None or bool(self._queue)

    @property
    def pending(self) -> int:
        """Counts with debits that the store has not acknowledged."""
        in_flight = self._in_flight[1] if self._in_flight is not None else ()
        return sum(1 for count in in_flight if count.sent) + sum(
            1 for count in self._queue if count.pending and not count.sent
        )

    def take(self) -> Batch | None:
        """The batch to send: the one under way again, else the next; None if there is nothing."""
        if self._in_flight is not None:
            return self._in_flight[0]
        if not self._queue:
            return None
        counts = self._queue[:MAX_BATCH]
        self._queue = self._queue[MAX_BATCH:]
        debits = []
        for count in counts:
            count.queued = False
            count.asked = True
            count.sent = count.pending
            count.pending = 0
            debits.append(Debit(count.key, count.sent, count.expires_at))
        self._sequence += 1
        batch = Batch(self._writer, self._sequence, tuple(debits))
        self._in_flight = (batch, counts)
        return batch

    def settled(self, used: list[int], asked_at: float) -> list[str]:
        """The store applied the batch under way; `used` is its answer, line by line.

        `asked_at` is when the batch left: the answer is at least as young. Returns the keys of the
        accounts that the store cannot keep (a negative answer): this worker alone counts them.
        """
        unusable: list[str] = []
        if self._in_flight is None:
            return unusable
        _, counts = self._in_flight
        self._in_flight = None
        for count, value in zip(counts, used, strict=True):
            if value < 0:
                unusable.append(count.key)
                value = count.used + count.sent
            count.used = value
            count.sent = 0
            count.asked = False
            count.known_at = asked_at
        return unusable
