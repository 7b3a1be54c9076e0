"""The store of tests and benchmarks: a dict that ends with the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw import clock
from fastgw.model import Settled, Standing
from fastgw.policy.ledger import MOST
from fastgw.policy.window import USAGE_KEYS
from fastgw.store.base import granted

if TYPE_CHECKING:
    from fastgw.model import Batch, Claim, Debit
    from fastgw.store.base import Sequences

_PURGE_EVERY = 10_000  # batches


class _Account:
    __slots__ = ("expires_at", "holds", "sequences", "used")

    def __init__(self, expires_at: int) -> None:
        self.used = 0
        self.expires_at = expires_at
        self.sequences: dict[str, int] = {}
        self.holds: dict[str, tuple[int, int, float]] = {}  # writer: sequence, amount, until

    def held(self, now: float, besides: str = "") -> int:
        """What writers hold, all but one."""
        return sum(
            amount
            for writer, (_, amount, until) in self.holds.items()
            if writer != besides and until > now
        )


class MemoryStore:
    """See store/base. Never unavailable."""

    shared = False
    remote = False

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._batches = 0

    async def open(self) -> None:
        """Nothing to open."""

    async def settle(self, batch: Batch) -> Settled:
        """See Store."""
        now = clock.wall()
        self._batches += 1
        if self._batches % _PURGE_EVERY == 0:
            self._purge(now)
        answer = Settled([], [], [], [])
        for at, debit in enumerate(batch.debits):
            account = self._accounts.get(debit.account)
            if account is not None and account.expires_at <= now:
                del self._accounts[debit.account]
                account = None
            if account is None and (debit.amount or debit.settled):
                account = self._accounts[debit.account] = _Account(debit.expires_at)
            if account is not None:
                self._apply(account, debit, batch, at, now, answer)
            answer.used.append(account.used if account is not None else 0)
        for claim in batch.claims:
            answer.holds.append(self._claim(batch.debits[claim.line], claim, batch, now))
        return answer

    def _apply(
        self, account: _Account, debit: Debit, batch: Batch, at: int, now: float, answer: Settled
    ) -> None:
        last = account.sequences.get(batch.writer, 0)
        if last >= batch.sequence:
            if last > batch.sequence and debit.amount:
                answer.ahead.append(at)
            return
        if last < debit.settled:
            account.sequences[batch.writer] = debit.settled
            if account.used < debit.known and debit.expires_at > now:
                account.used = debit.known
                answer.lost.append(at)
        if debit.amount:
            account.sequences[batch.writer] = batch.sequence
            account.used = min(max(0, account.used + debit.amount), MOST)

    def _claim(self, debit: Debit, claim: Claim, batch: Batch, now: float) -> tuple[int, int]:
        account = self._accounts.get(debit.account) or _Account(debit.expires_at)
        others = account.held(now, batch.writer)
        sequence, amount, _ = account.holds.get(batch.writer, (0, 0, 0.0))
        if sequence >= batch.sequence:
            return others, amount
        amount = granted(claim, claim.limit - account.used - others - claim.floor)
        account.holds.pop(batch.writer, None)
        if amount:
            account.holds[batch.writer] = (batch.sequence, amount, now + batch.lapse)
            account.expires_at = max(account.expires_at, int(now + batch.lapse) + 1)
            self._accounts[debit.account] = account
        return others, amount

    async def accounts(
        self, usage: bool = False, settled: Sequences | None = None
    ) -> dict[str, Standing]:
        """See Store."""
        now = clock.wall()
        self._purge(now)
        if settled is not None:
            for name, writer in settled:
                if name in self._accounts:
                    settled[name, writer] = self._accounts[name].sequences.get(writer, 0)
        return {
            name: Standing(account.used, account.held(now))
            for name, account in self._accounts.items()
            if name.startswith(USAGE_KEYS) == usage
        }

    async def close(self) -> None:
        """Forget everything."""
        self._accounts.clear()

    def _purge(self, now: float) -> None:
        for name in [name for name, each in self._accounts.items() if each.expires_at <= now]:
            del self._accounts[name]
