"""The sweep of the store that lives in a dict; the rest is tests/store/test_contract.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastgw import clock
from fastgw.model import Batch, Debit
from fastgw.store.memory import MemoryStore

if TYPE_CHECKING:
    import pytest


def test_expired_accounts_are_swept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastgw.store.memory._PURGE_EVERY", 2)

    async def main() -> None:
        store = MemoryStore()
        await store.settle(Batch("w", 1, (Debit("old", 5, int(clock.wall()) - 5),)))
        await store.settle(Batch("w", 2, (Debit("new", 5, int(clock.wall()) + 60),)))
        assert set(store._accounts) == {"new"}

    asyncio.run(main())
