"""Batches for tests of stores across a wire, and their answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastgw import clock
from fastgw.errors import StoreUnavailable
from fastgw.model import Batch, Debit

if TYPE_CHECKING:
    from fastgw.store.redis import RedisStore

LATER = int(clock.wall()) + 3600


def batch(sequence: int, *debits: tuple[str, int]) -> Batch:
    return Batch("w1", sequence, tuple(Debit(name, amount, LATER) for name, amount in debits))


async def settle(store: RedisStore, sequence: int, *debits: tuple[str, int]) -> list[int]:
    """`used` of each line, once settled."""
    return (await store.settle(batch(sequence, *debits))).used


async def settle_at_last(
    store: RedisStore, sequence: int, *debits: tuple[str, int], tries: int = 150
) -> list[int]:
    """The same batch again and again until it is settled, as the settlement does."""
    for _ in range(tries):
        try:
            return await settle(store, sequence, *debits)
        except StoreUnavailable as error:
            last = error
            await asyncio.sleep(0.1)
    raise AssertionError(f"never settled: {last}")


async def used(store: RedisStore) -> dict[str, int]:
    """`used` of every account, as reports see it."""
    return {name: standing.used for name, standing in (await store.accounts()).items()}
