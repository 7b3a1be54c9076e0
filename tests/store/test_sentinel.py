"""A master, its replica and a Sentinel, all real: who is asked, who is believed, failover."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from fastgw.errors import StoreUnavailable
from fastgw.store.redis import RedisStore
from tests.redis_server import PASSWORD, Sentinel
from tests.store.lines import settle, settle_at_last, used

if TYPE_CHECKING:
    from tests.redis_server import RedisServer, SentinelPair


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_master_that_is_gone_is_followed_by_its_replica(
    redis_pair: SentinelPair, how: str
) -> None:
    async def main() -> None:
        store = RedisStore(redis_pair.url(), "t", 0.5)
        await store.open()
        for sequence in range(1, 21):
            await settle(store, sequence, ("a", 1), (f"b{sequence}", 1))
        redis_pair.replicated()
        redis_pair.master.kill() if how == "killed" else redis_pair.master.freeze()
        # Sent until it arrives; it counts once, and on top of all that was acknowledged before.
        assert await settle_at_last(store, 21, ("a", 100)) == [120]
        assert await settle(store, 22, ("a", 1), ("b1", 1)) == [121, 2]
        assert redis_pair.sentinel.named() == redis_pair.replica.port
        assert (await used(store))["b20"] == 1
        await store.close()

    asyncio.run(main())


def test_a_master_that_is_not_told_is_left_all_the_same(redis_pair: SentinelPair) -> None:
    # as after a failover in order, when the old master is told after ten seconds; here never
    async def main() -> None:
        store = RedisStore(redis_pair.url(), "t", 0.5)
        await store.open()
        assert await settle(store, 1, ("a", 1)) == [1]
        redis_pair.replicated()
        redis_pair.replica.ask("REPLICAOF", "NO", "ONE")
        redis_pair.sentinel.ask("SENTINEL", "REMOVE", "main")
        redis_pair.sentinel.ask(
            "SENTINEL", "MONITOR", "main", "127.0.0.1", redis_pair.replica.port, 1
        )
        redis_pair.sentinel.ask("SENTINEL", "SET", "main", "auth-pass", PASSWORD)
        sequence = 1
        while redis_pair.replica.ask("HGET", "t:a:a", "used") == "1":
            sequence += 1
            await settle(store, sequence, ("a", 1))  # none fails
            await asyncio.sleep(0.05)
        with redis_pair.master.client() as client:
            assert len(client.client_list()) == 1 + len(client.client_list(_type="replica"))
        assert redis_pair.master.ask("ROLE")[0] == "master"
        await store.close()

    asyncio.run(main())


def test_a_master_demoted_behind_the_back_of_sentinel_is_refused(redis_pair: SentinelPair) -> None:
    redis_pair.sentinel.ask("SENTINEL", "SET", "main", "down-after-milliseconds", 60_000)

    async def main() -> None:
        store = RedisStore(redis_pair.url(), "t", 2.0)
        assert await settle(store, 1, ("a", 1)) == [1]
        redis_pair.sentinel.freeze()
        redis_pair.replica.ask("REPLICAOF", "NO", "ONE")
        redis_pair.master.replicate(redis_pair.replica)
        redis_pair.sentinel.thaw()
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await settle(store, 2, ("a", 1))
        if redis_pair.sentinel.named() == redis_pair.master.port:
            with pytest.raises(StoreUnavailable, match="calls it the master, itself a replica"):
                await settle(store, 2, ("a", 1))
        await store.close()

    asyncio.run(main())


def test_a_sentinel_that_is_silent_or_down_costs_nothing(redis_pair: SentinelPair) -> None:
    async def main() -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            places = (
                f"127.0.0.1:{silent.getsockname()[1]}",
                "127.0.0.1:1",
                redis_pair.sentinel.address,
            )
            # With a deadline far off, only a lookup that waits for the silent one would fail.
            store = RedisStore(redis_pair.url(*places), "t", 60.0)
            async with asyncio.timeout(20):
                assert await settle(store, 1, ("a", 1)) == [1]
            await store.close()

    asyncio.run(main())


async def fails(url: str) -> str:
    """The text of a settle that fails, in which nothing is secret."""
    store = RedisStore(url, "t", 2.0)
    with pytest.raises(StoreUnavailable) as failure:
        await settle(store, 1, ("a", 1))
    await store.close()
    assert PASSWORD not in repr(failure.value)
    assert failure.value.__cause__ is None
    return str(failure.value)


def test_failures_say_who_and_why(redis_pair: SentinelPair) -> None:
    async def main() -> None:
        assert "knows no service of that name" in await fails(
            redis_pair.url().replace("/main/", "/other/")
        )
        assert f"Redis at {redis_pair.master.address}: WRONGPASS" in await fails(
            redis_pair.url(password=f"{PASSWORD}2")
        )
        assert "does not exist" in await fails(redis_pair.url().removesuffix("/0") + "/99")
        assert "Sentinel at 127.0.0.1:1: cannot connect" in await fails(
            redis_pair.url("127.0.0.1:1")
        )
        assert "lacks a command" in await fails(
            redis_pair.url(redis_pair.master.address, options=f"?sentinel_password={PASSWORD}")
        )
        redis_pair.master.freeze()
        assert "longer than 2.0 s" in await fails(redis_pair.url())

    asyncio.run(main())


def test_sentinels_have_a_password_of_their_own(redis_server: RedisServer) -> None:
    guarded = Sentinel(redis_server, f"{PASSWORD}-2")
    url = f"redis+sentinel://:{PASSWORD}@{guarded.address}/main"

    async def main() -> None:
        assert "NOAUTH: the server wants a password; give it as sentinel_password" in await fails(
            url
        )
        assert "WRONGPASS" in await fails(f"{url}?sentinel_password={PASSWORD}")
        store = RedisStore(f"{url}?sentinel_password={PASSWORD}-2", "t", 2.0)
        await store.open()
        assert await settle(store, 1, ("a", 1)) == [1]
        await store.close()

    try:
        asyncio.run(main())
    finally:
        guarded.end()
