"""What only a server across a wire can do: restart, freeze, answer late, refuse a password."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import redis

from fastgw import clock
from fastgw.errors import StoreUnavailable
from fastgw.model import Batch, Debit
from fastgw.store.base import UNUSABLE
from fastgw.store.redis import RedisStore

if TYPE_CHECKING:
    from tests.redis_server import RedisServer

LATER = int(clock.wall()) + 3600


def batch(sequence: int, *debits: tuple[str, int]) -> Batch:
    return Batch("w1", sequence, tuple(Debit(name, amount, LATER) for name, amount in debits))


def connections(server: RedisServer) -> int:
    """Clients that the server counts, less the one that asks."""
    with redis.Redis.from_url(server.url) as client:
        return len(client.client_list()) - 1


def test_scripts_flushed_are_loaded_again(redis_server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 2.0)
        await store.open()
        assert (await store.settle(batch(1, ("a", 1)))).used == [1]
        with redis.Redis.from_url(redis_server.url) as client:
            client.script_flush()
        assert (await store.settle(batch(2, ("a", 1)))).used == [2]
        await store.close()

    asyncio.run(main())


def test_a_server_killed_and_started_again(redis_server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 2.0)
        await store.open()
        assert (await store.settle(batch(1, ("a", 1)))).used == [1]
        redis_server.kill()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.settle(batch(2, ("a", 5)))
        redis_server.start()
        assert (await store.settle(batch(2, ("a", 5)))).used == [5]  # the server forgot, we did not
        await store.close()

    asyncio.run(main())


def test_a_settle_before_open_connects_by_itself(redis_server: RedisServer) -> None:
    async def main() -> None:
        redis_server.kill()
        store = RedisStore(redis_server.url, "t", 0.5)
        with pytest.raises(StoreUnavailable):
            await store.open()
        redis_server.start()
        assert (await store.settle(batch(1, ("a", 4)))).used == [4]
        await store.close()

    asyncio.run(main())


def test_a_frozen_server_meets_the_deadline_and_its_late_reply_is_never_read(
    redis_server: RedisServer,
) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 0.3)
        await store.open()
        assert (await store.settle(batch(1, ("a", 1), ("b", 100)))).used == [1, 100]
        redis_server.freeze()
        with pytest.raises(StoreUnavailable, match=r"longer than 0\.3 s"):
            await store.settle(batch(2, ("a", 10)))
        redis_server.thaw()
        # Sent again, and another: each must get its own answer, and the repeat no second debit.
        assert (await store.settle(batch(2, ("a", 10)))).used == [11]
        assert (await store.settle(batch(3, ("b", 1)))).used == [101]
        assert connections(redis_server) == 1
        await store.close()
        assert connections(redis_server) == 0

    asyncio.run(main())


def test_a_cancelled_call_leaves_no_reply_behind(redis_server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 5.0)
        await store.open()
        redis_server.freeze()
        call = asyncio.ensure_future(store.settle(batch(1, ("a", 7))))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        redis_server.thaw()
        assert (await store.settle(batch(2, ("b", 3)))).used == [3]
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "option",
    ["max_connections=50", "decode_responses=0", "socket_timeout=9", "retry_on_timeout=1", "x=y"],
)
def test_options_that_would_undo_the_deadline_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match="option"):
        RedisStore(f"redis://127.0.0.1/0?{option}", "t", 0.3)


@pytest.mark.parametrize("scheme", ["redis://:wrong-pass-word@", "redis://"])
def test_a_refused_password_is_named_not_shown(redis_server: RedisServer, scheme: str) -> None:
    async def main() -> None:
        store = RedisStore(f"{scheme}127.0.0.1:{redis_server.port}/0", "t", 2.0)
        with pytest.raises(StoreUnavailable) as failure:
            await store.open()
        assert "wrong-pass-word" not in repr(failure.value)
        assert failure.value.__cause__ is None
        assert any(word in str(failure.value) for word in ("NOAUTH", "WRONGPASS", "Auth"))
        await store.close()

    asyncio.run(main())


def test_nobody_there_names_no_secret() -> None:
    async def main() -> None:
        store = RedisStore("redis://:hunter2@127.0.0.1:1/0", "t", 2.0)
        with pytest.raises(StoreUnavailable) as failure:
            await store.settle(batch(1, ("a", 1)))
        assert "hunter2" not in repr(failure.value)
        await store.close()

    asyncio.run(main())


def test_an_account_that_is_no_count_stops_no_other(redis_server: RedisServer) -> None:
    async def main() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            client.set("t:a:broken", "not a hash")
            client.hset("t:a:full", "used", 2**63 - 2)
        store = RedisStore(redis_server.url, "t", 2.0)
        lines = batch(1, ("broken", 1), ("full", 5), ("fine", 1), ("broken", 0))
        for _ in range(2):
            assert (await store.settle(lines)).used == [UNUSABLE, UNUSABLE, 1, UNUSABLE]
        # what could not be applied did not use up its sequence
        assert (await store.settle(batch(1, ("full", 1)))).used == [2**63 - 1]
        await store.close()

    asyncio.run(main())


def test_keys_expire_with_their_window(redis_server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 2.0)
        await store.settle(batch(1, ("a", 1)))
        await store.close()
        with redis.Redis.from_url(redis_server.url) as client:
            assert client.expiretime("t:a:a") == LATER

    asyncio.run(main())


def test_prefixes_do_not_meet(redis_server: RedisServer) -> None:
    async def main() -> None:
        one, two = RedisStore(redis_server.url, "t*", 2.0), RedisStore(redis_server.url, "tx", 2.0)
        assert (await one.settle(batch(1, ("a", 1)))).used == [1]
        assert (await two.settle(batch(1, ("a", 5)))).used == [5]
        assert await one.accounts() == {"a": (1, 0)}
        assert await two.accounts() == {"a": (5, 0)}
        await one.close()
        await two.close()

    asyncio.run(main())
