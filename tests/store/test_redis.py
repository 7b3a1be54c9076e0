"""What only a server across a wire can do: restart, freeze, answer late, refuse a password."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import redis
import uvloop

from fastgw.errors import StoreUnavailable
from fastgw.model import Batch, Claim, Debit
from fastgw.policy.ledger import MOST
from fastgw.policy.window import USAGE_KEYS
from fastgw.store.base import UNUSABLE
from fastgw.store.redis import RedisStore
from tests.processes import ROOT
from tests.redis_server import PASSWORD, RedisServer, caught_up
from tests.store.lines import LATER, settle, used

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def replica(redis_server: RedisServer) -> Iterator[RedisServer]:
    server = RedisServer(PASSWORD)
    server.replicate(redis_server)
    yield server
    server.end()


def connections(server: RedisServer) -> int:
    """Clients that the server counts, less the one that asks."""
    with redis.Redis.from_url(server.url) as client:
        return len(client.client_list()) - 1


def test_scripts_flushed_are_loaded_again(redis_server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 2.0)
        await store.open()
        assert await settle(store, 1, ("a", 1)) == [1]
        with redis.Redis.from_url(redis_server.url) as client:
            client.script_flush()
        assert await settle(store, 2, ("a", 1)) == [2]
        await store.close()

    asyncio.run(main())


def test_a_server_killed_and_started_again(redis_server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 2.0)
        await store.open()
        assert await settle(store, 1, ("a", 1)) == [1]
        redis_server.kill()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await settle(store, 2, ("a", 5))
        redis_server.start()
        assert await settle(store, 2, ("a", 5)) == [5]  # the server forgot, we did not
        await store.close()

    asyncio.run(main())


def test_a_connection_that_died_in_between_costs_no_call(redis_server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 2.0)
        await store.open()
        for sequence in range(1, 4):
            assert await settle(store, sequence, ("a", 1)) == [sequence]
            with redis.Redis.from_url(redis_server.url) as client:
                client.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.05)  # the loop hears of it
        await store.close()

    for run in (asyncio.run, uvloop.run):
        run(main())
        with redis.Redis.from_url(redis_server.url) as client:
            client.flushall()


def test_a_settle_before_open_connects_by_itself(redis_server: RedisServer) -> None:
    async def main() -> None:
        redis_server.kill()
        store = RedisStore(redis_server.url, "t", 0.5)
        with pytest.raises(StoreUnavailable):
            await store.open()
        redis_server.start()
        assert await settle(store, 1, ("a", 4)) == [4]
        await store.close()

    asyncio.run(main())


def test_a_frozen_server_meets_the_deadline_and_its_late_reply_is_never_read(
    redis_server: RedisServer,
) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 0.3)
        await store.open()
        assert await settle(store, 1, ("a", 1), ("b", 100)) == [1, 100]
        redis_server.freeze()
        with pytest.raises(StoreUnavailable, match=r"longer than 0\.3 s"):
            await settle(store, 2, ("a", 10))
        redis_server.thaw()
        # Sent again, and another: each must get its own answer, and the repeat no second debit.
        assert await settle(store, 2, ("a", 10)) == [11]
        assert await settle(store, 3, ("b", 1)) == [101]
        assert connections(redis_server) == 1
        await store.close()
        assert connections(redis_server) == 0

    asyncio.run(main())


def test_a_cancelled_call_leaves_no_reply_behind(redis_server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 5.0)
        await store.open()
        redis_server.freeze()
        call = asyncio.ensure_future(settle(store, 1, ("a", 7)))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        redis_server.thaw()
        assert await settle(store, 2, ("b", 3)) == [3]
        await store.close()

    asyncio.run(main())


def test_a_frozen_server_that_takes_no_more_bytes_costs_one_deadline(
    redis_server: RedisServer,
) -> None:
    # more than sockets buffer: sending waits, and so would a polite end of the connection
    many = [(f"{at}-{'x' * 500}", 1) for at in range(20_000)]

    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 0.5)
        await store.open()
        redis_server.freeze()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="longer than"):
                async with asyncio.timeout(10):
                    await settle(store, 1, *many)
        redis_server.thaw()
        patient = RedisStore(redis_server.url, "t", 20.0)
        assert await settle(patient, 1, *many) == [1] * len(many)
        await patient.close()
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


def test_a_replica_takes_no_debits(redis_server: RedisServer, replica: RedisServer) -> None:
    assert asyncio.run(fails(replica.url)).startswith("Redis: READONLY: ")


def test_a_master_that_is_demoted_takes_no_more_debits(
    redis_server: RedisServer, replica: RedisServer
) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 2.0)
        assert await settle(store, 1, ("a", 1)) == [1]
        caught_up(redis_server, replica)  # or the debit is lost with the master's data
        replica.ask("REPLICAOF", "NO", "ONE")
        redis_server.replicate(replica)
        with pytest.raises(StoreUnavailable, match="READONLY"):
            await settle(store, 2, ("a", 1), ("b", 1))
        redis_server.ask("REPLICAOF", "NO", "ONE")
        assert await settle(store, 2, ("a", 1), ("b", 1)) == [2, 1]
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("setting", "value", "code"),
    [("maxmemory", 1, "OOM"), ("min-replicas-to-write", 1, "NOREPLICAS")],
)
def test_a_server_that_takes_no_writes_is_away_and_blames_no_account(
    redis_server: RedisServer, setting: str, value: int, code: str
) -> None:
    redis_server.ask("CONFIG", "SET", setting, value)
    assert asyncio.run(fails(redis_server.url)).startswith(f"Redis: {code}: ")


def test_a_server_that_loads_its_data(redis_server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 2.0)
        assert await settle(store, 1, *((f"a{at}", 1) for at in range(2000))) == [1] * 2000
        redis_server.ask("SAVE")
        redis_server.kill()
        redis_server.more = (
            "--key-load-delay",
            "1000",
            "--loading-process-events-interval-bytes",
            "1024",
        )
        redis_server.start()
        assert (await fails(redis_server.url)).startswith("Redis: LOADING: ")
        await store.close()

    asyncio.run(main())


def test_a_user_without_the_rights(redis_server: RedisServer) -> None:
    redis_server.ask("ACL", "SETUSER", "low", "on", f">{PASSWORD}", "~*", "+ping")
    url = f"redis://low:{PASSWORD}@{redis_server.address}"
    assert asyncio.run(fails(url)).startswith("Redis: NOPERM: ")


def test_the_rights_that_the_page_names_are_enough(redis_server: RedisServer) -> None:
    page = (ROOT / "docs/stores.md").read_text()
    [line] = [line for line in page.splitlines() if line.startswith("ACL SETUSER fastgw ")]
    redis_server.ask(*line.replace(">PASSWORD", f">{PASSWORD}").split())
    url = f"redis://fastgw:{PASSWORD}@{redis_server.address}"

    async def main() -> None:
        store = RedisStore(url, "fastgw", 2.0)
        await store.open()
        lines = Batch("w", 1, (Debit("a", 5, LATER),), (Claim(0, 100, 0, 10, 10),))
        assert (await store.settle(lines)).used == [5]
        forgot = Batch("w", 3, (Debit("b", 1, LATER, 2, 7), Debit("a", -9, LATER)))
        assert (await store.settle(forgot)).used == [8, 0]
        released = Batch("w", 4, (Debit("a", 0, LATER),), (Claim(0, 100, 0, 0, 0),))
        assert (await store.settle(released)).used == [0]
        assert await used(store) == {"a": 0, "b": 8}
        reported = Batch("w", 5, (Debit(USAGE_KEYS + "alice", 3, LATER),))
        assert (await store.settle(reported)).used == [3]
        assert len(await store.accounts(usage=True)) == 1
        await store.close()

    asyncio.run(main())


def test_a_password_where_there_is_none(redis_url: str) -> None:
    host = redis_url.rpartition("@")[2].removeprefix("redis://")
    if "@" in redis_url:
        pytest.skip("the server of these tests has a password")
    text = asyncio.run(fails(f"redis://:{PASSWORD}@{host}"))
    assert text == "Redis: the URL has a password, the server has none"


def test_a_database_that_does_not_exist(redis_server: RedisServer) -> None:
    text = asyncio.run(fails(redis_server.url.removesuffix("/0") + "/99"))
    assert text == "Redis: the database of the URL does not exist"


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
            await settle(store, 1, ("a", 1))
        assert "hunter2" not in repr(failure.value)
        await store.close()

    asyncio.run(main())


def test_an_account_that_is_no_count_stops_no_other(redis_server: RedisServer) -> None:
    async def main() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            client.set("t:a:broken", "not a hash")
        store = RedisStore(redis_server.url, "t", 2.0)
        for _ in range(2):
            lines = [("broken", 1), ("fine", 1), ("broken", 0)]
            assert await settle(store, 1, *lines) == [UNUSABLE, 1, UNUSABLE]
        with redis.Redis.from_url(redis_server.url) as client:
            client.delete("t:a:broken")
        # what could not be applied did not use up its sequence
        assert await settle(store, 1, ("broken", 1)) == [1]
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "used", [None, "abc", "12.5", "", "1e3", "+5", "0x10", "nan", b"\xff", "9" * 20, "9" * 400]
)
def test_a_number_that_is_none_is_the_affair_of_its_account(
    redis_server: RedisServer, used: str | bytes | None
) -> None:
    """Whether it is read, debited, put back or claimed; and reports go without it."""

    async def main() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            if used is None:
                client.set("t:a:odd", "not a hash")
            else:
                client.hset("t:a:odd", "used", used)
        store = RedisStore(redis_server.url, "t", 2.0)
        lines = (Debit("odd", 5, LATER, 0, 10), Debit("even", 5, LATER))
        claims = (Claim(0, 100, 20, 30, 0), Claim(1, 100, 20, 30, 0))
        for _ in range(2):
            answer = await store.settle(Batch("w", 1, lines, claims))
            assert answer.used == [UNUSABLE, 5]
            assert answer.holds == [(0, 50), (0, 50)]
        # nothing fits beside what the writer has counted alone
        lines = (Debit("odd", 0, LATER, 1, 75), Debit("even", 1, LATER))
        answer = await store.settle(Batch("w", 2, lines, (Claim(0, 100, 20, 30, 0, 30),)))
        assert (answer.used, answer.holds, answer.lost) == ([UNUSABLE, 6], [(0, 20)], [])
        assert await store.accounts() == {"even": (6, 50)}
        with redis.Redis.from_url(redis_server.url) as client:
            client.delete("t:a:odd")
        late = (Debit("odd", 5, LATER, 1, 75),)
        assert (await store.settle(Batch("w", 3, late))).used == [80]  # and back it is
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "hold", ["nonsense", "", "1:2", "1:2.5:9999999999", "1:-2:9999999999", f"1:{'9' * 400}:1"]
)
def test_a_hold_that_cannot_be_read_is_none(redis_server: RedisServer, hold: str) -> None:
    async def main() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            client.hset("t:a:a", mapping={"h:other": hold, "h:w": hold, "s:w": hold})
        store = RedisStore(redis_server.url, "t", 2.0)
        lines = (Debit("a", 5, LATER), Debit("b", 5, LATER))
        answer = await store.settle(Batch("w", 1, lines, (Claim(0, 100, 0, 30, 0),)))
        assert (answer.used, answer.holds) == ([5, 5], [(0, 30)])
        assert await store.accounts() == {"a": (5, 30), "b": (5, 0)}
        await store.close()

    asyncio.run(main())


@pytest.mark.parametrize("used", [2**62 + 5, 2**63 - 1])
def test_a_number_above_the_most_is_the_most(redis_server: RedisServer, used: int) -> None:
    async def main() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            client.hset("t:a:a", "used", used)
        store = RedisStore(redis_server.url, "t", 2.0)
        for amount in (0, 5, MOST, 0):
            assert await settle(store, 1, ("a", amount)) == [MOST]
        assert await settle(store, 2, ("a", -MOST)) == [0]
        await store.close()

    asyncio.run(main())


def test_a_number_below_zero_is_zero(redis_server: RedisServer) -> None:
    async def main() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            client.hset("t:a:a", "used", -7)
        store = RedisStore(redis_server.url, "t", 2.0)
        assert await used(store) == {"a": 0}
        assert await settle(store, 1, ("a", 0)) == [0]
        assert await settle(store, 1, ("a", 10)) == [3]
        await store.close()

    asyncio.run(main())


def test_keys_expire_with_their_window(redis_server: RedisServer) -> None:
    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 2.0)
        await store.settle(Batch("w", 1, (Debit("a", 1, LATER + 3600),)))
        await store.close()
        with redis.Redis.from_url(redis_server.url) as client:
            assert client.expiretime("t:a:a") == LATER + 3600

    asyncio.run(main())


def test_a_worker_whose_clock_is_behind_loses_no_debit(redis_server: RedisServer) -> None:
    """Its windows end in the past of the server: keys live an hour by the server's clock."""

    async def main() -> None:
        store = RedisStore(redis_server.url, "t", 2.0)
        past = LATER - 100_000
        for sequence in range(1, 4):
            lines = (Debit("a", 10, past), Debit("b", 0, past))
            claims = (Claim(0, 100, 0, 10, 0), Claim(1, 100, 0, 10, 0))
            answer = await store.settle(Batch("w", sequence, lines, claims))
            assert answer.used == [10 * sequence, 0]
        assert await store.accounts() == {"a": (30, 10), "b": (0, 10)}
        await store.settle(Batch("w", 9, (Debit("p", 0, 0),), (Claim(0, 9, 0, 1, 0),), 30))
        await store.close()
        with redis.Redis.from_url(redis_server.url) as client:
            assert all(3500 < client.ttl(f"t:a:{name}") <= 3600 for name in "ab")
            assert 0 < client.ttl("t:a:p") <= 30  # requests at one time: it lives by its holds

    asyncio.run(main())


def test_prefixes_do_not_meet(redis_server: RedisServer) -> None:
    async def main() -> None:
        one, two = RedisStore(redis_server.url, "t*", 2.0), RedisStore(redis_server.url, "tx", 2.0)
        assert await settle(one, 1, ("a", 1)) == [1]
        assert await settle(two, 1, ("a", 5)) == [5]
        assert await used(one) == {"a": 1}
        assert await used(two) == {"a": 5}
        await one.close()
        await two.close()

    asyncio.run(main())
