"""The worker's own book: what each account has used, and what is still to be told to the store.

1. A `Count` is an account in one window. used = what the store last said; pending = debited here,
   not yet sent; sent = in the batch that is under way. What a decision looks at is the sum of the
   three: a debit is seen by the very next request of this worker.
2. An account whose window has ended gets a new Count. The old one stays in the queue until its
   debits are settled: a debit belongs to the window in which it was made.
3. Only one batch is under way. Until it is acknowledged it is sent again as it was, with its
   sequence; meanwhile debits add up in pending. So the batch size follows the load by itself.
4. Check all, then write all: `refuses` and `reserve` change nothing unless every account lets the
   request in.
5. A count older than `max_staleness` is asked for again before it decides, and missing is not zero:
   a count never heard of is always asked for first.
   While nobody else writes to the store each answer is one for all accounts: a thousand that
   take turns do not each wait for a call.
6. Settling cannot fail and does not wait: `settle` adds to integers, and to the journal's.
7. Where requests need a promise, the store grants a hold to the worker (`Count.hold`) and the
   worker promises parts of it. A hold shrinks when a batch is taken and grows when it is answered:
   never is more promised than the store knows of. Debits use it up, in one step of the script.

No clock, no store, no loop: settlement moves the batches, and hands time in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from fastgw.model import Batch, Claim, Debit
from fastgw.policy.account import NEVER, Account, Count, Limit, Promise
from fastgw.policy.kept import Counts, KeptAccount, KeptCount
from fastgw.policy.window import FAR, GRACE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fastgw.model import Owed, Settled, Usage

MAX_BATCH = 2000
"""Lines of one batch: bounds the time that one call occupies the store."""
MAX_KEPT = 100_000
"""Accounts that are remembered while nobody uses them: about 50 MB."""
LAPSE = 30
"""Seconds after which the holds of a worker that died are free again."""
RENEW = LAPSE / 3
"""Seconds after which a hold is claimed again."""
MOST = 2**62
"""What an account counts at most: there sums stop, in every store, before an int64 ends."""
BACK = 60
"""Seconds by which a clock must be set back before an account goes back to an earlier window: who
waits asks with the moment at which it began to."""
SWEEP = 500
"""Counts that one refresh looks at for slots to free."""


class Slots(Protocol):
    """Where debits survive the process: the journal. It has a sum for each account."""

    def add(self, slot: int, amount: int) -> None:
        """Add to the sum of all debits. It is all that a debit costs."""

    def take(self, key: str, expires_at: int) -> int:
        """A slot for this account; 0 if none can be had."""

    def begin(self, sequence: int) -> None:
        """The next batch has this sequence; no other will."""

    def send(self, slot: int, sequence: int) -> None:
        """All that was debited up to now is in the batch of this sequence."""

    def acknowledge(self, slot: int, used: int) -> None:
        """What was sent is in the store, which holds `used` now."""

    def unsend(self, slot: int) -> None:
        """What was sent did not count."""

    def free(self, slot: int) -> None:
        """The slot is not used any more."""

    def rename(self) -> str:
        """A name for this writer that nobody else has."""


class Ledger:
    """All accounts that this worker serves. Times are epoch seconds, amounts integers."""

    def __init__(
        self,
        writer: str,
        max_staleness: float,
        *,
        slots: Slots | None = None,
        sequence: int = 0,
        owed: Sequence[Owed] = (),
    ) -> None:
        """`writer` names this worker for the store. `max_staleness` in seconds; infinity where no
        other process can debit. `slots`, the last `sequence` it began and what is `owed` come from
        the journal of whoever had this name before."""
        self.wake: Callable[[], None] = lambda: None
        """Called as a count begins to wait for the next batch; the settlement sets it."""
        self.writer = writer
        self.sequence = sequence  # the last that was begun
        self._max_staleness = min(max_staleness, 1e15)  # NEVER is older than any
        self._slots = slots
        self._accounts: WeakValueDictionary[tuple[str, tuple[str, ...]], Account] = (
            WeakValueDictionary()
        )
        self._counts = Counts()
        self._count_of = self._counts.of  # one object for all accounts
        self._kept: dict[Account, None] = {}
        self._queue: list[Count] = []
        self._holding: dict[Count, None] = {}
        self._in_flight: tuple[Batch, list[Count]] | None = None
        self._again: list[tuple[Batch, list[Count]]] = []
        self._repeated = False  # the batch under way was sent before: who wrote since is not known
        self._alone_from = FAR
        """What batches from this sequence on have said holds still, as of `_alone_at`."""
        self._alone_at = NEVER
        self._sweep: list[Count] = []
        self._placed: set[Count] = set()
        """Counts that have a slot: they live until it is free, or one account had two."""
        self.lost = 0
        """Times that the store had lost an account and got it back from here."""
        self.renamed = 0
        """Times that another process was found to use our name."""
        self._restore(owed)

    def _restore(self, owed: Sequence[Owed]) -> None:
        """Take over what a worker that died had not settled, batch by batch as it was sent."""
        sent: dict[int, list[Count]] = {}
        for entry in owed:
            lives = entry.expires_at if entry.expires_at < FAR else 0
            count = self._counts[entry.key] = KeptCount(entry.key, lives)
            count.slot = entry.slot
            self._placed.add(count)
            count.settled = entry.settled
            count.used = entry.known
            count.sent = entry.sent
            count.pending = entry.rest
            self._enqueue(count)  # with nothing owed too: what it held is given back
            self._holding[count] = None
            if entry.sent:
                sent.setdefault(entry.sequence, []).append(count)
        for sequence in sorted(sent, reverse=True):
            counts = sent[sequence]
            debits = tuple(
                Debit(each.key, each.sent, each.expires_at, each.settled, each.used)
                for each in counts
            )
            self._again.append((Batch(self.writer, sequence, debits, (), LAPSE), counts))

    # accounts

    def account(self, limit: Limit, values: tuple[str, ...], now: float) -> Account:
        """The account of these values: one object for all who name it."""
        name = (limit.name, values)
        account = self._accounts.get(name)
        if account is None or account.limit is not limit:
            account = KeptAccount(limit, values, now, self._count_of)
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
            else:
                self._forget(oldest.count)

    def _place(self, count: Count) -> None:
        """Give the count a slot of the journal, if there is one to be had."""
        if self._slots is not None and not count.slot:
            count.slot = self._slots.take(count.key, count.expires_at or FAR)
            if count.slot:
                self._placed.add(count)

    def _roll(self, account: Account, now: float) -> None:
        old = account.count
        account.roll(now)
        if old is not account.count:
            self._forget(old)

    def _forget(self, count: Count) -> None:
        """Nobody will debit this count again: its place in the journal is free if it owes nothing.
        A late debit takes another."""
        owes = count.pending or count.sent or count.hold or count.held
        if count.slot and self._slots is not None and not owes:
            self._slots.free(count.slot)
            count.slot = 0
            self._placed.discard(count)

    def accounts(self) -> list[Account]:
        """Every account in use, for reports."""
        return list(self._accounts.values())

    # counts that nobody decides by: policy/tallies

    @property
    def slots(self) -> Slots | None:
        """The journal."""
        return self._slots

    def count(self, key: str, expires_at: int) -> Count:
        """The count of this key, with a place in the journal if it can be had."""
        count = self._count_of(key, expires_at)
        self._place(count)
        return count

    def counts_of(self, begin: str) -> list[Count]:
        """The counts whose keys begin so."""
        return [count for key, count in self._counts.items() if key.startswith(begin)]

    def enqueue(self, count: Count) -> None:
        """What is pending there goes with the next batch."""
        self._enqueue(count)

    def let_go(self, count: Count) -> bool:
        """Free the count's place in the journal, unless it owes something still."""
        if count.queued or count.asked or count.pending or count.sent:
            return False
        self._forget(count)
        return True

    # admission

    def stale(self, accounts: Iterable[Account], now: float) -> bool:
        """Whether a decision of the moment `now` needs the store first; if so it is being asked.

        Whoever waits calls again with the moment at which it began to wait: an answer that was
        asked for since then is young enough, however slow the store is.
        """
        found = False
        for account in accounts:
            if now >= account.end or now < account.start - BACK:
                self._roll(account, now)
            count = account.count
            if now - count.known_at > self._max_staleness and (
                count.answered < self._alone_from or now - self._alone_at > self._max_staleness
            ):
                found = True
                if not count.queued and not count.asked:
                    self._enqueue(count)
        return found

    def passes(self, accounts: Iterable[Account], now: float) -> bool:
        """Whether a request is let in without more ado, as nearly all are: every view is young, no
        account is used up, and none is debited at admission. Otherwise `stale` and `refuses` say
        what is to be done; nothing has changed."""
        oldest = now - self._max_staleness
        since = self._alone_from if self._alone_at >= oldest else FAR
        for account in accounts:
            count, limit = account.count, account.limit
            if (
                (count.known_at < oldest and count.answered < since)
                or count.used + count.pending + count.sent >= limit.amount
                or limit.unit == "requests"
                or not account.start - BACK <= now < account.end
            ):
                return False
        return True

    def refuses(self, accounts: Iterable[Account]) -> Account | None:
        """The first account that is used up, or None: then `requests` units are debited."""
        counted = False
        for account in accounts:
            count, limit = account.count, account.limit
            if count.used + count.pending + count.sent >= limit.amount:
                limit.refusals += 1
                if not limit.shadow:
                    return account
            if limit.unit == "requests":
                counted = True
        if counted:
            self.admit(accounts)
        return None

    def admit(self, accounts: Iterable[Account]) -> None:
        """Let a request in without asking: debit what is counted at admission."""
        for account in accounts:
            if account.limit.unit == "requests":
                self._add(account.count, 1)

    def reserve(
        self, accounts: Iterable[Account], estimate: Usage, *, alone: bool = False
    ) -> Account | list[Promise]:
        """Promise `estimate` on every account that needs it, or on none.

        Returns the promises, one for each account, or the account that stands against it: used up,
        or with too little room, for which the store can be asked (`ask`). `alone`: the store is
        away, so the last known numbers decide.
        """
        against = None
        for account in accounts:
            limit, count = account.limit, account.count
            if limit.shadow:
                continue
            if count.used + count.pending + count.sent >= limit.amount:
                return account
            if limit.reserves:
                ahead = account.remaining if alone else count.hold - count.held - count.pending
                room = min(ahead, account.remaining)  # the limit may be lower than it was
                if limit.claim(estimate) > room:
                    against = against or account
        return against if against is not None else self.promise(accounts, estimate)

    def promise(self, accounts: Iterable[Account], estimate: Usage) -> list[Promise]:
        """Promise without asking."""
        promises = []
        for account in accounts:
            limit, count = account.limit, account.count
            promise = Promise(account)
            if limit.shadow and account.remaining <= 0:
                limit.refusals += 1
            if limit.unit == "requests":
                self._add(count, 1)
            elif limit.reserves:
                promise.held = promise.most = limit.claim(estimate)
                count.held += promise.held
                count.limit = limit
                self._hold(count, promise.held)
                if limit.shadow and not count.queued:
                    self._enqueue(count)  # nobody asked: the store is told now
            promises.append(promise)
        return promises

    def ask(self, accounts: Iterable[Account], estimate: Usage) -> int:
        """Ask the store for room. Returns the sequence that answers it: see `unanswered`."""
        for account in accounts:
            limit, count = account.limit, account.count
            if limit.reserves and not limit.shadow:
                claim = limit.claim(estimate)
                count.limit = limit  # a reload may have made another
                count.need += claim
                least = 1 if limit.clamps else claim  # an answer that shrinks takes any part
                count.least = min(count.least, least) if count.least else least
                self._hold(count, claim)
                if not count.queued:
                    self._enqueue(count)
        return self.sequence + 1

    def _hold(self, count: Count, claim: int) -> None:
        count.step = claim
        count.active = True
        if count not in self._holding:
            self._holding[count] = None
            self._place(count)  # so that whoever takes over gives back what we hold

    def unanswered(self, accounts: Iterable[Account], sequence: int) -> bool:
        """Whether the store has yet to answer what `ask` returned `sequence` for."""
        return any(
            account.limit.reserves
            and not account.limit.shadow
            and account.count.answered < sequence
            for account in accounts
        )

    def refresh(self, now: float) -> None:
        """Claim again what we hold before it lapses, give back what nobody asked for lately, and
        free the slots of windows that are over. Call every quarter of a second or so."""
        for count in list(self._holding):
            idle = not count.active and count.step > 0 and count.room > 0
            if not count.active:
                count.step = 0
            count.active = False
            if not count.hold and not count.held and not count.queued and not count.asked:
                del self._holding[count]
            elif (idle or not 0 <= now - count.known_at <= RENEW) and not count.queued:
                self._enqueue(count)
        if self._slots is not None:
            if not self._sweep:
                self._sweep = list(self._placed)
            for count in self._sweep[-SWEEP:]:
                if now > count.expires_at - GRACE and count not in self._holding:
                    self._forget(count)
            del self._sweep[-SWEEP:]

    # settling

    def debit(self, accounts: Iterable[Account], usage: Usage, now: float) -> None:
        """Charge what an exchange cost to every account, in the window that is current now."""
        slots = self._slots
        for account in accounts:
            limit = account.limit
            amount = usage[0] + usage[1] if limit.unit == "tokens" else limit.cost(usage)
            if amount:
                if now >= account.end:
                    self._roll(account, now)
                count = account.count
                if count.queued and slots is not None and count.slot:
                    count.pending += amount
                    slots.add(count.slot, amount)
                else:
                    self._add(count, amount)

    def charge(
        self, promises: Iterable[Promise], usage: Usage, now: float, *, final: bool = False
    ) -> None:
        """Charge what an exchange has cost so far, as its answer passes. What was charged before
        counts as part of `usage`; a correction goes where the charge went. What is rough stays
        within the promise; only what is `final` may pass it."""
        for promise in promises:
            account = promise.account
            limit = account.limit
            cost = usage[0] + usage[1] if limit.unit == "tokens" else limit.cost(usage)
            if promise.most and not final:
                cost = min(cost, promise.most)
            amount = cost - promise.charged
            if not amount:
                continue
            if promise.most:
                held = max(0, promise.most - cost)
                promise.count.held += held - promise.held
                promise.held = held
            if amount > 0 and not limit.reserves:
                if now >= account.end:
                    self._roll(account, now)
                if promise.charged_in is not account.count:
                    promise.move(account.count)
            for count, part in promise.take_back(amount) if amount < 0 else ():
                self._add(count, part)
                amount -= part
            self._add(promise.charged_in, amount)
            promise.charged = cost

    def release(self, promises: Iterable[Promise]) -> None:
        """The exchange is over: nothing is held for it any more."""
        for promise in promises:
            if promise.held:
                count = promise.count
                count.held -= promise.held
                promise.held = 0
                if not count.queued:
                    self._enqueue(count)

    def _add(self, count: Count, amount: int) -> None:
        count.pending += amount
        slots = self._slots
        if slots is not None:
            if not count.slot:
                self._place(count)
            if count.slot:
                slots.add(count.slot, amount)
        if not count.queued:
            self._enqueue(count)

    def _enqueue(self, count: Count) -> None:
        count.queued = True
        self._queue.append(count)
        self.wake()

    # batches

    @property
    def has_work(self) -> bool:
        """Whether a batch is under way or waits."""
        return self._in_flight is not None or bool(self._queue) or bool(self._again)

    @property
    def pending(self) -> int:
        """Counts with debits that the store has not acknowledged."""
        waiting = {count for count in self._queue if count.pending or count.sent}
        if self._in_flight is not None:
            waiting.update(count for count in self._in_flight[1] if count.sent)
        return len(waiting)

    @property
    def unsettled(self) -> bool:
        """Whether the store is owed a debit, or holds something for us that nobody needs."""
        claims = self._in_flight is not None and bool(self._in_flight[0].claims)
        return claims or bool(self.pending) or any(count.hold for count in self._holding)

    def give_back(self) -> None:
        """The worker ends: nothing is held ahead any more."""
        for count in self._holding:
            count.step = count.need = count.least = 0
            if not count.queued:
                self._enqueue(count)

    @property
    def held(self) -> int:
        """Counts on which something is promised to exchanges in flight."""
        return sum(1 for count in self._holding if count.held)

    def take(self) -> Batch | None:
        """The batch to send: the one under way again, else the next; None if there is nothing."""
        if self._in_flight is not None:
            self._repeated = True
            return self._in_flight[0]
        if self._again:
            self._in_flight = self._again.pop()
            return self._in_flight[0]
        if not self._queue:
            return None
        counts = self._queue[:MAX_BATCH]
        self._queue = self._queue[MAX_BATCH:]
        self.sequence += 1
        sequence, slots = self.sequence, self._slots
        if slots is not None:
            slots.begin(sequence)
        debits: list[Debit] = []
        claims: list[Claim] = []
        for count in counts:
            count.queued = False
            count.asked = True
            count.sent = min(max(count.pending, -MOST), MOST)
            count.pending = 0
            if count.limit is not None or count.hold or count in self._holding:
                claims.append(self._claim(count, len(debits)))
            if count.slot and slots is not None and count.sent:
                slots.send(count.slot, sequence)
            debits.append(Debit(count.key, count.sent, count.expires_at, count.settled, count.used))
        batch = Batch(self.writer, sequence, tuple(debits), tuple(claims), LAPSE)
        self._in_flight = (batch, counts)
        return batch

    def _claim(self, count: Count, line: int) -> Claim:
        """What to ask for. What is sent leaves the hold, and of the rest only that is kept which is
        promised, waited for or wanted as a slice."""
        need, least = count.need, count.least
        count.need = count.least = 0
        left = max(0, count.hold - count.sent - count.held)
        ahead = count.slice()
        kept = min(left, need + ahead)
        if kept < (least or count.step):
            kept = 0  # too little for a request; elsewhere it may be what lacks
        count.hold = count.held + kept
        limit = count.limit
        return Claim(
            line,
            limit.amount if limit is not None else 0,
            count.hold,
            max(0, need - kept),
            max(0, ahead - max(0, kept - need)),
            least if kept < least else 0,
        )

    def settled(self, answer: Settled, asked_at: float) -> list[str]:
        """The store applied the batch under way; `answer` is what it said, line by line.

        `asked_at` is when the batch left: the answer is at least as young. Returns the keys of the
        accounts that the store cannot keep (a negative answer): this worker alone counts them.
        """
        unusable: list[str] = []
        if self._in_flight is None:
            return unusable
        batch, counts = self._in_flight
        slots = self._slots
        if not answer.alone or self._repeated:
            self._alone_from = batch.sequence
            self._repeated = False
        self._alone_at = asked_at
        if answer.ahead:
            self._rename(answer.ahead, counts)
        for count, value in zip(counts, answer.used, strict=True):
            if value < 0:
                unusable.append(count.key)
                value = min(max(count.used + count.sent, 0), MOST)
            if count.sent:
                if count.slot and slots is not None:
                    slots.acknowledge(count.slot, value)
                count.sent = 0
                count.settled = batch.sequence
            count.used = value
            count.asked = False
            count.known_at = asked_at
            count.answered = batch.sequence
        for claim, (others, granted) in zip(batch.claims, answer.holds, strict=True):
            count = counts[claim.line]
            count.others = others
            count.hold = granted
        self.lost += len(answer.lost)
        for count in self._holding if answer.lost else ():  # what we hold may be lost, too
            if not count.queued:
                self._enqueue(count)
        self._in_flight = None
        return unusable

    def _rename(self, lines: list[int], counts: list[Count]) -> None:
        """The store left lines out since it has seen higher sequences under our name: go on under
        one that is ours alone, and send them again."""
        slots = self._slots
        self.writer = slots.rename() if slots is not None else self.writer + "+"
        self.renamed += 1
        for count in list(self._counts.values()):
            count.settled = 0
        for line in lines:
            count = counts[line]
            count.pending += count.sent
            count.sent = 0
            if count.slot and slots is not None:
                slots.unsend(count.slot)
            if not count.queued:
                self._enqueue(count)
