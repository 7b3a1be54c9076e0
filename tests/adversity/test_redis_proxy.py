"""What a network loses between gateway and Redis, the books do not."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from fastgw.errors import StoreUnavailable
from fastgw.model import Batch, Debit
from fastgw.store.redis import RedisStore
from tests.adversity.redis_proxy import RedisProxy
from tests.processes import ALICE, PER_USER, Gateway, Provider, chat, settled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.redis_server import RedisServer

LOST = 1000
FAR = 2_000_000_000


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[RedisProxy]:
    proxy = RedisProxy(redis_server.port)
    yield proxy
    proxy.flow()
    proxy.close()


def url(redis_server: RedisServer, proxy: RedisProxy) -> str:
    return redis_server.url.replace(str(redis_server.port), str(proxy.port))


def test_a_thousand_lost_replies_change_nothing(
    redis_server: RedisServer, proxy: RedisProxy
) -> None:
    async def settle() -> dict[str, int]:
        store = RedisStore(url(redis_server, proxy), "lost", 5.0)
        await store.open()
        proxy.loses = True
        for number in range(1, LOST + 1):
            debits = tuple(Debit(name, number, FAR) for name in ("a", "b", f"c{number % 7}"))
            batch = Batch("w", number, debits)
            with pytest.raises(StoreUnavailable):
                await store.settle(batch)
            await store.settle(batch)
        proxy.loses = False
        found: Mapping[str, Any] = await store.accounts()
        await store.close()
        return {name: value.used for name, value in found.items()}

    used = asyncio.run(settle())
    assert proxy.lost == LOST
    total = LOST * (LOST + 1) // 2
    assert used["a"] == used["b"] == total
    assert sum(amount for name, amount in used.items() if name[0] == "c") == total


def test_a_gateway_that_loses_replies_charges_once(
    redis_server: RedisServer, proxy: RedisProxy, tmp_path: Path
) -> None:
    provider = Provider(tmp_path)
    gateway = Gateway(
        tmp_path,
        provider.port,
        store=url(redis_server, proxy),
        budgets=PER_USER.format(limit=10**9),
    )
    try:
        proxy.loses = True
        for number in range(40):
            assert chat(gateway, ALICE, stub=f"prompt={number}")[0] == 200
            settled(gateway)
        assert proxy.lost >= 40
        assert gateway.used("alice") == sum(range(40)) + 40 * 9
    finally:
        proxy.loses = False
        ended = gateway.stop()
        provider.stop()
    assert ended == 0, gateway.log.read_text()
    assert "hunter2" not in gateway.log.read_text()


def test_other_faults_of_the_proxy_strike(redis_server: RedisServer, proxy: RedisProxy) -> None:
    async def strike() -> None:
        store = RedisStore(url(redis_server, proxy), "faults", 0.2)
        await store.open()
        one = Batch("w", 1, (Debit("a", 1, FAR),))
        proxy.stall()
        with pytest.raises(StoreUnavailable, match="longer than"):
            await store.settle(one)
        proxy.flow()
        await store.settle(one)
        proxy.delay = 0.1
        began = time.monotonic()
        await store.settle(one)
        assert time.monotonic() - began >= 0.1
        proxy.delay = 0.0
        resets = proxy.resets
        proxy.reset()
        for _ in range(500):
            if proxy.resets == resets:
                await asyncio.sleep(0.01)
        assert proxy.resets > resets
        await store.settle(one)  # by a new connection
        found: Mapping[str, Any] = await store.accounts()
        assert [value.used for value in found.values()] == [1]
        await store.close()

    asyncio.run(strike())


def test_a_connection_that_died_between_two_calls_costs_none(
    redis_server: RedisServer, proxy: RedisProxy
) -> None:
    """On the loop that the gateway runs on, where to write to a dead connection is an error of its
    own kind."""

    async def die() -> None:
        store = RedisStore(url(redis_server, proxy), "idle", 1.0)
        try:
            await store.open()
            for number in range(1, 4):
                proxy.reset()
                await asyncio.sleep(0.1)
                debit = Debit("a", 1, FAR)
                assert (await store.settle(Batch("w", number, (debit,)))).used == [number]
        finally:
            await store.close()
        assert proxy.resets == 3

    uvloop.run(die())
