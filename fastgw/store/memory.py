"""The store of tests and benchmarks: a dict that ends with the process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw import clock

if TYPE_CHECKING:
    from fastgw.model import Batch

_PURGE_EVERY = 10_000  # batches


class _Account:
    __slots__ = ("expires_at", "sequences", "used")

    def __init__(self, expires_at: int) -> None:
        self.used = 0
        self.expires_at = expires_at
        self.sequences: dict[str, int] = {}


class MemoryStore:
    """See store/base. Never unavailable."""

    shared = False

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self._batches = 0

    async def open(self) -> None:
        """Nothing to open."""

    async def settle(self, batch: Batch) -> list[int]:
        """See Store."""
        now = clock.wall()
        self._batches += 1
        if self._batches % _PURGE_EVERY == 0:
            self._purge(now)
        used = []
        for name, amount, expires_at in batch.debits:
            account = self._accounts.get(name)
            if account is not None and account.expires_at <= now:
                del self._accounts[name]
                account = None
            if amount:
                if account is None:
                    account = self._accounts[name] = _Account(expires_at)
                if account.sequences.get(batch.writer, 0) < batch.sequence:
                    account.sequences[batch.writer] = batch.sequence
                    account.used = max(0, account.used + amount)
            used.append(account.used if account is not None else 0)
        return used

    async def accounts(self) -> dict[str, int]:
        """See Store."""
        self._purge(clock.wall())
        return {name: account.used for name, account in self._accounts.items()}

    async def close(self) -> None:
        """Forget everything."""
        self._accounts.clear()

    def _purge(self, now: float) -> None:
        for name in [name for name, each in self._accounts.items() if each.expires_at <= now]:
            del self._accounts[name]
