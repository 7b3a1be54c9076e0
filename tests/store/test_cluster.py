"""Three masters, with and without replicas, all real: slots on the move, failover, lost nodes."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from fastgw.errors import StoreUnavailable
from fastgw.store.cluster import SLOTS, TAGS, group, slot
from fastgw.store.redis import RedisStore
from tests.redis_server import PASSWORD, RedisCluster, RedisServer, caught_up, node_id
from tests.store.lines import settle, settle_at_last, used

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = [f"account-{at}" for at in range(300)]
"""Some in each group."""


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    """One of this test's own, without replicas."""
    cluster = RedisCluster()
    yield cluster
    cluster.end()


def owner(cluster: RedisCluster, tag: str) -> RedisServer:
    """The master of a tag's slot, as the cluster was laid out."""
    return cluster.masters[slot(tag) * len(cluster.masters) // SLOTS]


def names_of(tag: str) -> list[str]:
    return [name for name in NAMES if TAGS[group(name)] == tag]


def key(name: str) -> str:
    return f"t:a:{{{TAGS[group(name)]}}}:{name}"


def test_groups_lie_evenly_over_the_slots_and_never_move() -> None:
    assert [slot(tag) * len(TAGS) // SLOTS for tag in TAGS] == list(range(len(TAGS)))
    assert min(Counter(map(group, NAMES)).values()) > 5
    # A group that changed would look for its counts elsewhere.
    names = ("", "a", "ä", "account-1", "account-2", "account-3", "account-4")
    assert [group(name) for name in names] == [0, 3, 3, 0, 10, 12, 15]


def test_the_slot_is_the_one_that_the_server_computes(redis_cluster: RedisCluster) -> None:
    for tag in TAGS:
        assert redis_cluster.masters[0].ask("CLUSTER", "KEYSLOT", f"t:a:{{{tag}}}:x") == slot(tag)


def test_a_batch_is_spread_over_the_masters_and_answered_line_by_line(
    redis_cluster: RedisCluster, redis_prefix: str
) -> None:
    async def main() -> None:
        store = RedisStore(redis_cluster.url, redis_prefix, 5.0)
        await store.open()
        amounts = [(name, at) for at, name in enumerate(NAMES, 1)]
        assert await settle(store, 1, *amounts) == [amount for _, amount in amounts]
        assert await settle(store, 1, *reversed(amounts)) == [a for _, a in reversed(amounts)]
        assert await used(store) == dict(amounts)
        for node in redis_cluster.masters:
            assert node.ask("DBSIZE") > 50
            node.ask("SCRIPT", "FLUSH")
        assert await settle(store, 2, *amounts) == [2 * amount for _, amount in amounts]
        await store.close()

    asyncio.run(main())


def test_a_slot_on_the_move_is_found_here_there_and_line_by_line(cluster: RedisCluster) -> None:
    tag = TAGS[0]
    source, target = owner(cluster, tag), cluster.masters[2]
    names = names_of(tag)
    old, moved, new = names[:4], names[:2], names[4:8]

    async def main() -> None:
        store = RedisStore(cluster.url, "t", 5.0)
        await store.open()
        assert await settle(store, 1, *((name, 1) for name in old)) == [1] * 4
        target.ask("CLUSTER SETSLOT", slot(tag), "IMPORTING", node_id(source))
        source.ask("CLUSTER SETSLOT", slot(tag), "MIGRATING", node_id(target))
        migrate(source, target, moved)
        # Some keys are here, some there, some are new: a script over all of them is TRYAGAIN.
        mixed = [*old, *new]
        assert await settle(store, 2, *((name, 10) for name in mixed)) == [11] * 4 + [10] * 4
        assert await settle(store, 2, *((name, 10) for name in mixed)) == [11] * 4 + [10] * 4
        # All have gone: the source answers ASK.
        assert await settle(store, 3, *((name, 100) for name in moved)) == [111] * 2
        migrate(source, target, old[2:])
        for node in (target, source, cluster.masters[1]):
            node.ask("CLUSTER SETSLOT", slot(tag), "NODE", node_id(target))
        # The source answers MOVED.
        assert (
            await settle(store, 4, *((name, 0) for name in mixed))
            == [111] * 2 + [11] * 2 + [10] * 4
        )
        assert await settle(store, 5, *((name, 1) for name in NAMES))
        counts = await used(store)
        assert [counts[name] for name in mixed] == [112] * 2 + [12] * 2 + [11] * 4
        assert target.ask("EXISTS", *map(key, mixed)) == len(mixed)
        errors = source.ask("INFO", "errorstats")
        for code in ("TRYAGAIN", "ASK", "MOVED"):
            assert f"errorstat_{code}" in errors
        await store.close()

    asyncio.run(main())


def migrate(source: RedisServer, target: RedisServer, names: list[str]) -> None:
    source.ask(
        *("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS"),
        *map(key, names),
    )


def test_a_killed_master_is_followed_by_its_replica(redis_replicated: RedisCluster) -> None:
    async def main() -> None:
        store = RedisStore(redis_replicated.url, "t", 1.0)
        await store.open()
        for sequence in range(1, 11):
            await settle(store, sequence, *((name, 1) for name in NAMES))
        lost, heir = redis_replicated.masters[1], redis_replicated.replicas[1]
        caught_up(lost, heir)
        lost.kill()
        lines = [(name, 1) for name in NAMES]
        assert await settle_at_last(store, 11, *lines) == [11] * len(NAMES)
        assert await settle(store, 12, *lines) == [12] * len(NAMES)
        assert heir.ask("ROLE")[0] == "master"
        assert await used(store) == dict.fromkeys(NAMES, 12)
        await store.close()

    asyncio.run(main())


def test_a_frozen_master_costs_one_deadline_and_the_others_stay_in_step(
    redis_cluster: RedisCluster, redis_prefix: str
) -> None:
    frozen = redis_cluster.masters[0]

    async def main() -> None:
        store = RedisStore(redis_cluster.url, redis_prefix, 0.5)
        await store.open()
        assert await settle(store, 1, *((name, 1) for name in NAMES)) == [1] * len(NAMES)
        frozen.freeze()
        try:
            with pytest.raises(StoreUnavailable, match=r"longer than 0\.5 s"):
                await settle(store, 2, *((name, 1) for name in NAMES))
        finally:
            frozen.thaw()
        # What the others had applied is known by its sequence.
        again = await settle_at_last(store, 2, *((name, 1) for name in NAMES))
        assert again == [2] * len(NAMES)
        assert await settle_at_last(store, 3, *((name, 1) for name in NAMES)) == [3] * len(NAMES)
        await store.close()

    asyncio.run(main())


def test_opening_again_asks_each_master_and_not_for_the_map(
    redis_cluster: RedisCluster, redis_prefix: str
) -> None:
    frozen = redis_cluster.masters[2]

    def calls(node: RedisServer, command: str) -> int:
        return int(node.ask("INFO", "commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    async def main() -> None:
        store = RedisStore(redis_cluster.url, redis_prefix, 0.5)
        await store.open()
        maps = [calls(node, "cluster|slots") for node in redis_cluster.masters]
        pings = [calls(node, "ping") for node in redis_cluster.masters]
        await store.open()
        await store.open()
        assert [calls(node, "cluster|slots") for node in redis_cluster.masters] == maps
        assert [calls(node, "ping") - 2 for node in redis_cluster.masters] == pings
        frozen.freeze()
        try:
            with pytest.raises(StoreUnavailable):
                await store.open()
        finally:
            frozen.thaw()
        await settle_at_last(store, 1, *((name, 1) for name in NAMES))
        await store.open()
        await store.close()

    asyncio.run(main())


def test_slots_without_a_master_are_named(cluster: RedisCluster) -> None:
    async def main() -> None:
        store = RedisStore(cluster.url, "t", 0.5)
        await store.open()
        cluster.masters[1].kill()
        with pytest.raises(StoreUnavailable, match=r"Redis at 127\.0\.0\.1:\d+: "):
            await settle(store, 1, *((name, 1) for name in NAMES))
        cluster.masters[1].start()  # it keeps its name and slots in a file, its data not
        lines = [(name, 1) for name in NAMES]
        assert await settle_at_last(store, 1, *lines) == [1] * len(NAMES)
        await store.close()

    asyncio.run(main())


async def fails(url: str) -> str:
    """The text of a settle that fails, in which nothing is secret."""
    store = RedisStore(url, "t", 2.0)
    with pytest.raises(StoreUnavailable) as failure:
        await settle(store, 1, *((name, 1) for name in NAMES))
    await store.close()
    assert PASSWORD not in repr(failure.value)
    assert failure.value.__cause__ is None
    return str(failure.value)


def test_failures_say_who_and_why(redis_cluster: RedisCluster, redis_server: RedisServer) -> None:
    node = redis_cluster.masters[0].address

    async def main() -> None:
        single = f"redis://:{PASSWORD}@{node}"
        assert "belongs to a cluster; write redis+cluster://" in await fails(single)
        assert "database" in await fails(f"{single}/3")
        alone = f"redis+cluster://:{PASSWORD}@{redis_server.address}"
        assert "belongs to no cluster; write redis://" in await fails(alone)
        assert f"{node}: WRONGPASS" in await fails(f"redis+cluster://:{PASSWORD}2@{node}")
        assert "127.0.0.1:1: cannot connect" in await fails("redis+cluster://127.0.0.1:1")

    asyncio.run(main())


def test_one_node_of_the_url_is_enough(redis_cluster: RedisCluster, redis_prefix: str) -> None:
    async def main() -> None:
        node = redis_cluster.masters[1].address
        store = RedisStore(f"redis+cluster://:{PASSWORD}@127.0.0.1:1,{node}", redis_prefix, 5.0)
        assert await settle(store, 1, *((name, 1) for name in NAMES)) == [1] * len(NAMES)
        await store.close()

    asyncio.run(main())
