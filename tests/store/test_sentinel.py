"""A master, its replica and a Sentinel, all real: who is asked, who is believed, failover."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from fastgw.errors import StoreUnavailable
from fastgw.store.redis import RedisStore
from tests.redis_server import PASSWORD, RedisServer, Sentinel, until
from tests.store.lines import settle, settle_at_last, used

if TYPE_CHECKING:
    from collections.abc import Iterator


class Pair:
    """A master and its replica under one Sentinel."""

    def __init__(self) -> None:
        self.master = RedisServer(PASSWORD)
        self.replica = RedisServer(PASSWORD)
        self.replica.replicate(self.master)
        self.sentinel = Sentinel(self.master)
        until(lambda: self.sentinel.ask("SENTINEL", "REPLICAS", "main"), "a replica in its list")

    def url(self, *hosts: str, options: str = "", password: str = PASSWORD) -> str:
        places = ",".join(hosts or (self.sentinel.address,))
        return f"redis+sentinel://:{password}@{places}/main/0{options}"

    def replicated(self) -> None:
        """Wait until the replica has all that the master has acknowledged."""
        until(
            lambda: (
                self.master.ask("INFO", "replication")["master_repl_offset"]
                == self.replica.ask("INFO", "replication")["slave_repl_offset"]
            ),
            "the replica to catch up",
        )

    def end(self) -> None:
        for server in (self.sentinel, self.master, self.replica):
            server.thaw()
            server.end()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.end()


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_master_that_is_gone_is_followed_by_its_replica(pair: Pair, how: str) -> None:
    async def main() -> None:
        store = RedisStore(pair.url(), "t", 0.5)
        await store.open()
        for sequence in range(1, 21):
            await settle(store, sequence, ("a", 1), (f"b{sequence}", 1))
        pair.replicated()
        pair.master.kill() if how == "killed" else pair.master.freeze()
        # Sent until it arrives; it counts once, and on top of all that was acknowledged before.
        assert await settle_at_last(store, 21, ("a", 100)) == [120]
        assert await settle(store, 22, ("a", 1), ("b1", 1)) == [121, 2]
        assert pair.sentinel.named() == pair.replica.port
        assert (await used(store))["b20"] == 1
        await store.close()

    asyncio.run(main())


def test_a_master_that_is_not_told_is_left_all_the_same(pair: Pair) -> None:
    # as after a failover in order, when the old master is told after ten seconds; here never
    async def main() -> None:
        store = RedisStore(pair.url(), "t", 0.5)
        await store.open()
        assert await settle(store, 1, ("a", 1)) == [1]
        pair.replicated()
        pair.replica.ask("REPLICAOF", "NO", "ONE")
        pair.sentinel.ask("SENTINEL", "REMOVE", "main")
        pair.sentinel.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", pair.replica.port, 1)
        pair.sentinel.ask("SENTINEL", "SET", "main", "auth-pass", PASSWORD)
        sequence = 1
        while pair.replica.ask("HGET", "t:a:a", "used") == "1":
            sequence += 1
            await settle(store, sequence, ("a", 1))  # none fails
            await asyncio.sleep(0.05)
        with pair.master.client() as client:
            assert len(client.client_list()) == 1 + len(client.client_list(_type="replica"))
        assert pair.master.ask("ROLE")[0] == "master"
        await store.close()

    asyncio.run(main())


def test_a_master_demoted_behind_the_back_of_sentinel_is_refused(pair: Pair) -> None:
    pair.sentinel.ask("SENTINEL", "SET", "main", "down-after-milliseconds", 60_000)

    async def main() -> None:
        store = RedisStore(pair.url(), "t", 2.0)
        assert await settle(store, 1, ("a", 1)) == [1]
        pair.sentinel.freeze()
        pair.replica.ask("REPLICAOF", "NO", "ONE")
        pair.master.replicate(pair.replica)
        pair.sentinel.thaw()
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await settle(store, 2, ("a", 1))
        if pair.sentinel.named() == pair.master.port:
            with pytest.raises(StoreUnavailable, match="calls it the master, itself a replica"):
                await settle(store, 2, ("a", 1))
        await store.close()

    asyncio.run(main())


def test_a_sentinel_that_is_silent_or_down_costs_nothing(pair: Pair) -> None:
    async def main() -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            places = (f"127.0.0.1:{silent.getsockname()[1]}", "127.0.0.1:1", pair.sentinel.address)
            # With a deadline far off, only a lookup that waits for the silent one would fail.
            store = RedisStore(pair.url(*places), "t", 60.0)
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


def test_failures_say_who_and_why(pair: Pair) -> None:
    async def main() -> None:
        assert "knows no service of that name" in await fails(
            pair.url().replace("/main/", "/other/")
        )
        assert f"Redis at {pair.master.address}: WRONGPASS" in await fails(
            pair.url(password=f"{PASSWORD}2")
        )
        assert "does not exist" in await fails(pair.url().removesuffix("/0") + "/99")
        assert "Sentinel at 127.0.0.1:1: cannot connect" in await fails(pair.url("127.0.0.1:1"))
        assert "lacks a command" in await fails(
            pair.url(pair.master.address, options=f"?sentinel_password={PASSWORD}")
        )
        pair.master.freeze()
        assert "longer than 2.0 s" in await fails(pair.url())

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
