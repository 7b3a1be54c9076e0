"""Moves the ledger's batches to the store, and wakes who waits for an answer of it.

One batch is under way at a time (group commit). Alone a debit leaves in the next turn of the loop;
under load what piled up during a call, and for the pace of the store after it, leaves with the next
one. Whoever waits for an answer ends that pause. A batch that failed is sent again as it was: its
sequence makes that harmless.

Nothing that an answer holds ends the task: one that cannot be read is one of accounts that the
store cannot keep, and whatever else goes wrong begins the task anew.

A store on a server is asked whether it is there when nobody called it for a second, and while it is
away, so that `up` is true of now and not of the last request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fastgw import clock, tasks
from fastgw.errors import StoreUnavailable
from fastgw.model import Settled
from fastgw.policy.account import NEVER
from fastgw.store.base import UNUSABLE, granted_alone

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastgw.metrics import StoreSeries
    from fastgw.model import Batch
    from fastgw.policy.account import Account
    from fastgw.policy.ledger import Ledger
    from fastgw.store.base import Store

log = logging.getLogger(__name__)

REFRESH = 0.25
"""Seconds between two looks at what is held."""
QUIET = 4
"""So many of them without a call, and a store on a server is asked whether it is there."""
PARK = 0.02
"""Seconds after which who waits for room asks again."""
FIRST_RETRY = 0.05
LAST_RETRY = 2.0
TELL_AGAIN = 60.0
"""Seconds until what is wrong still is told again."""
MAX_ROUNDS = 16
"""Settle calls that a waiter sees go by at most."""


class _Wait(NamedTuple):
    waiter: Waiter
    accounts: Sequence[Account]
    since: float
    sequence: int
    rounds: int


class Waiter(Protocol):
    """An exchange whose decision needs the store."""

    def admit(self) -> None:
        """The accounts are known now, or the store is away: decide."""

    def fail(self) -> None:
        """A fault of ours: end in whatever way is left."""


class Settlement:
    """Owner of the store connection. `up` tells whether the last call succeeded."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        *,
        pace: float = 0.0,
        series: StoreSeries | None = None,
        opened: bool = True,
    ) -> None:
        """`pace`: seconds between two calls at least, for a store whose call costs much.
        `opened`: False where the store could not be opened: a call that failed like any other."""
        self._ledger = ledger
        self._store = store
        self._pace = pace
        self._series = series
        self._wake = asyncio.Event()
        self._waiting: list[_Wait] = []
        self._parked: list[Waiter] = []
        self._refreshing: asyncio.TimerHandle | None = None
        self._unparking: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._ending = False
        self._end = asyncio.Event()
        self._hurry = asyncio.Event()
        self._told: set[str] = set()
        """Accounts that the store cannot keep, and bugs, as told since `_told_at`."""
        self._told_at = float("-inf")
        self.up = opened
        self._quiet = 0  # refreshes since the last call of a store on a server
        if not opened and series is not None:
            series.failed()
        self.wake: Callable[[], None] = self._wake.set
        """Tell it that the ledger has work. Cheap; may be called any number of times."""
        ledger.wake = self.wake

    def start(self) -> None:
        """Begin. Call once, in the loop."""
        self._task = tasks.spawn(self._outlive(), "settlement")
        self._refresh()

    def wait(
        self, waiter: Waiter, accounts: Sequence[Account], since: float, sequence: int = 0
    ) -> None:
        """Call `waiter.admit()` when every account is known as of `since`, and what was asked
        before the batch of `sequence` is answered; or when the store is away."""
        self._waiting.append(_Wait(waiter, accounts, since, sequence, 0))
        self._wake.set()
        self._hurry.set()

    def park(self, waiter: Waiter) -> None:
        """Call `waiter.admit()` a moment later: running requests may have given something back."""
        if not self._parked:
            self._unparking = asyncio.get_running_loop().call_later(PARK, self._unpark)
        self._parked.append(waiter)

    def _unpark(self) -> None:
        parked, self._parked = self._parked, []
        for waiter in parked:
            self._admit(waiter)

    def _refresh(self) -> None:
        self._refreshing = asyncio.get_running_loop().call_later(REFRESH, self._refresh)
        self._ledger.refresh(clock.wall())
        if self._store.remote:
            self._quiet += 1
        if self._ledger.has_work or self._looks():
            self._wake.set()

    def _looks(self) -> bool:
        """Whether it is time to ask if the store is there."""
        due = self._quiet >= QUIET or not self.up
        return due and self._store.remote and not self._ending

    async def _outlive(self) -> None:
        """Settle until the end, whatever bug there is: without it all debits stop in silence."""
        while True:
            try:
                if not self.up:
                    self._release()
                await self._run()
            except Exception:
                if self._news(["a bug"]):
                    log.exception("settlement: a bug; going on")
                self._went_away(StoreUnavailable("unexpected failure"))
                await asyncio.sleep(FIRST_RETRY)
            else:
                return

    async def _run(self) -> None:
        retry = FIRST_RETRY
        while not self._ending or self._ledger.unsettled:
            batch = self._ledger.take()
            if batch is None and not self._looks():
                self._wake.clear()
                await self._wake.wait()
                continue
            asked_at = clock.wall()
            began = clock.monotonic()
            answer = None
            try:
                if batch is None:
                    await self._store.open()
                else:
                    answer = await self._store.settle(batch)
                    if (len(answer.used), len(answer.holds)) != (
                        len(batch.debits),
                        len(batch.claims),
                    ):
                        raise StoreUnavailable("the store answered for another batch")
            except StoreUnavailable as error:
                self._went_away(error)
            except Exception:
                if self._news(["failure"]):
                    log.exception("settlement: unexpected failure of the store; trying again")
                self._went_away(StoreUnavailable("unexpected failure"))
            else:
                retry = FIRST_RETRY
                if batch is None or answer is None:
                    self._came_back()
                    continue
                unusable = self._enter(batch, answer, asked_at)
                took = clock.monotonic() - began
                if self._series is not None:
                    self._series.settled(took, len(batch.debits))
                if unusable:
                    self._cannot_keep(unusable)
                if answer.lost or answer.ahead:
                    self._odd(batch, answer)
                self._came_back()
                self._release()
                if self._pace > took and not self._waiting and not self._ending:
                    self._hurry.clear()
                    await self._pause(self._hurry, self._pace - took)
                continue
            self._release()
            if self._ending:
                retry = FIRST_RETRY  # `close` says when to give up
            await self._pause(self._end, retry)
            retry = min(retry * 2, LAST_RETRY)
            if self._ending:
                await asyncio.sleep(FIRST_RETRY)

    def _enter(self, batch: Batch, answer: Settled, asked_at: float) -> list[str]:
        """Into the ledger, which is left as it was by an answer that cannot be read."""
        try:
            return self._ledger.settled(answer, asked_at)
        except Exception:
            if self._news(["answer"]):
                log.exception("settlement: an answer that cannot be read; counting alone")
            holds = [granted_alone(claim, batch.debits[claim.line]) for claim in batch.claims]
            alone = Settled([UNUSABLE] * len(batch.debits), holds, [], [])
            return self._ledger.settled(alone, asked_at)

    async def _pause(self, event: asyncio.Event, seconds: float) -> None:
        """Until the event, or so long."""
        with contextlib.suppress(TimeoutError):
            # not wait_for: in 3.11 it swallows a cancellation that meets the end of its wait
            async with asyncio.timeout(seconds):
                await event.wait()

    def _release(self) -> None:
        waiting, self._waiting = self._waiting, []
        ledger = self._ledger
        for wait in waiting:
            # A clock that was set back makes every answer look old: the rounds bound the wait.
            # What was never heard of decides nothing, however many lines are before it.
            known = all(account.count.known_at > NEVER for account in wait.accounts)
            if self.up and (wait.rounds < MAX_ROUNDS or not known):
                stale = ledger.stale(wait.accounts, wait.since)
                if stale or (wait.sequence and ledger.unanswered(wait.accounts, wait.sequence)):
                    self._waiting.append(wait._replace(rounds=wait.rounds + known))
                    continue
            self._admit(wait.waiter)

    def _admit(self, waiter: Waiter) -> None:
        try:
            waiter.admit()
        except Exception:
            log.exception("settlement: an exchange failed as it was admitted")
            waiter.fail()

    def _went_away(self, error: StoreUnavailable) -> None:
        if self.up:
            log.error("store away: %s; debits are kept and sent again", error)
        self.up = False
        self._quiet = 0
        if self._series is not None:
            self._series.failed()

    def _news(self, names: list[str]) -> list[str]:
        """Those that were not told of lately; they are from now on."""
        now = clock.monotonic()
        if now - self._told_at > TELL_AGAIN:
            self._told.clear()
            self._told_at = now
        news = [name for name in names if name not in self._told]
        self._told.update(news)
        return news

    def _cannot_keep(self, keys: list[str]) -> None:
        if news := self._news(keys):
            log.error(
                "the store cannot keep %d account(s), as %s: it holds something else under that "
                "name; until that is removed this process counts them alone",
                len(news),
                news[0],
            )
        if self._series is not None:
            self._series.failed()

    def _odd(self, batch: Batch, answer: Settled) -> None:
        if answer.lost:
            log.error(
                "the store has lost data: %d account(s), as %s, were put back to what was known",
                len(answer.lost),
                batch.debits[answer.lost[0]].account,
            )
        if answer.ahead:
            log.error("another process debits as %s: going on under another name", batch.writer)

    def _came_back(self) -> None:
        if not self.up:
            log.warning("store back: settling what was kept")
        self.up = True
        self._quiet = 0

    async def close(self, within: float) -> bool:
        """Settle what is left, within so many seconds. Returns whether no debit is pending."""
        self._ending = True
        self._ledger.give_back()
        for timer in (self._refreshing, self._unparking):
            if timer is not None:
                timer.cancel()
        self._end.set()
        self._hurry.set()
        self._wake.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=within)
            while not self._task.done():
                self._task.cancel()
                await asyncio.wait({self._task}, timeout=FIRST_RETRY)
        return not self._ledger.pending
