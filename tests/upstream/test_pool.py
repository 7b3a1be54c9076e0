"""The connections to a provider, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from fastgw.config.tables import Upstream
from fastgw.flow_control import Sweeper
from fastgw.upstream.connection import UpstreamConnection
from fastgw.upstream.pool import Pool, Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest


class Provider(asyncio.Protocol):
    """Accepts, and speaks first if told to."""

    def __init__(self, peers: list[asyncio.Transport], greeting: bytes) -> None:
        self.peers = peers
        self.greeting = greeting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.peers.append(transport)
        if self.greeting:
            transport.write(self.greeting)


class Gets:
    """Who waits; keeps what it was told."""

    def __init__(self) -> None:
        self.got: list[UpstreamConnection | str] = []

    def on_acquired(self, connection: UpstreamConnection) -> None:
        self.got.append(connection)

    def on_acquire_failure(self, reason: str) -> None:
        self.got.append(reason)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def provider(
    greeting: bytes = b"", most: int = 10, patience: float = 5.0
) -> AsyncIterator[tuple[Pool, list[asyncio.Transport]]]:
    peers: list[asyncio.Transport] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Provider(peers, greeting), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = Upstream(
        name="p",
        base_url=f"http://127.0.0.1:{port}/v1",
        max_connections=most,
        connect_timeout=patience,
    )
    pool = Pool(settings, Sweeper(), 65536)
    try:
        yield pool, peers
    finally:
        pool.abort()
        for peer in peers:
            peer.abort()
        server.close()
        await asyncio.sleep(0)


async def acquire(pool: Pool, fresh: bool = False) -> UpstreamConnection | str:
    waiter = Gets()
    found = pool.acquire(waiter, fresh)
    if isinstance(found, UpstreamConnection):
        return found
    await until(lambda: bool(waiter.got))
    return waiter.got[0]


async def connected(pool: Pool) -> UpstreamConnection:
    found = await acquire(pool)
    assert isinstance(found, UpstreamConnection)
    return found


def test_the_connection_used_last_is_used_next() -> None:
    async def run() -> None:
        async with provider() as (pool, peers):
            first, second = await connected(pool), await connected(pool)
            assert [first.reused, second.reused] == [False, False]
            pool.release(second, 0)
            pool.release(first, 0)
            assert pool.counts == {"idle": 2, "busy": 0, "connecting": 0, "waiting": 0}
            assert pool.acquire(Gets()) is first
            assert first.reused
            assert pool.acquire(Gets()) is second
            pool.release(first, 0)
            assert await acquire(pool, fresh=True) not in (first, second)
            assert len(peers) == 3

    asyncio.run(run())


def test_a_provider_that_speaks_before_it_is_asked_is_never_used() -> None:
    async def run() -> None:
        forged = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno"
        async with provider(greeting=forged) as (pool, peers):
            found = await acquire(pool)
            if isinstance(found, UpstreamConnection):  # its bytes came a turn later
                await until(lambda: not found.open)
            else:
                assert found == "malformed"
            await until(lambda: sum(pool.counts.values()) == 0)
            assert peers
        async with provider() as (pool, peers):
            connection = await connected(pool)
            pool.release(connection, 0)
            peers[0].write(forged)
            await until(lambda: pool.counts["idle"] == 0)
            assert not connection.open
            assert await connected(pool) is not connection

    asyncio.run(run())


def test_a_connection_that_the_provider_closed_is_not_handed_out() -> None:
    async def run() -> None:
        async with provider() as (pool, peers):
            connection = await connected(pool)
            pool.release(connection, 0)
            peers[0].close()
            await until(lambda: not connection.open)
            assert await connected(pool) is not connection

    asyncio.run(run())


def test_idle_connections_end_before_the_provider_ends_them() -> None:
    async def run() -> None:
        async with provider() as (pool, _):
            connection = await connected(pool)
            pool.release(connection, 5)  # Keep-Alive: timeout=5; ours would be 15
            hinted = connection.idle_until
            assert pool.acquire(Gets()) is connection
            pool.release(connection, 0)
            assert hinted < connection.idle_until - 9
            assert pool.acquire(Gets()) is connection
            pool.release(connection, 1)  # no time left for a request to arrive
            assert await acquire(pool) is not connection
            assert not connection.open
            other = await connected(pool)
            pool.release(other, 0)
            pool.expire(other.idle_until - 0.01)
            assert other.open
            pool.expire(other.idle_until)
            assert not other.open

    asyncio.run(run())


def test_past_the_bound_requests_wait_in_order_and_those_who_left_are_passed_over() -> None:
    async def run() -> None:
        async with provider(most=1) as (pool, peers):
            connection = await connected(pool)
            waiters = [Gets() for _ in range(3)]
            tickets = [pool.acquire(each) for each in waiters]
            assert isinstance(tickets[0], Ticket)
            tickets[0].cancel()
            assert pool.counts["waiting"] == 2
            pool.release(connection, 0)
            assert not waiters[1].got  # in a turn of its own
            await until(lambda: bool(waiters[1].got))
            assert waiters[1].got == [connection]
            connection.close()  # an exchange that failed: the line goes on, with a new one
            await until(lambda: bool(waiters[2].got))
            assert isinstance(waiters[2].got[0], UpstreamConnection)
            assert waiters[2].got[0] is not connection
            assert waiters[0].got == []
            assert len(peers) == 2

    asyncio.run(run())


def test_a_connection_that_dies_on_its_way_to_a_waiter_does_not_fail_it() -> None:
    async def run() -> None:
        async with provider(most=1) as (pool, _):
            connection = await connected(pool)
            waiter = Gets()
            pool.acquire(waiter)
            pool.release(connection, 0)
            connection.close()
            await until(lambda: bool(waiter.got))
            assert isinstance(waiter.got[0], UpstreamConnection), "the provider is there"
            assert waiter.got[0].open

    asyncio.run(run())


def test_waiting_ends_and_a_refused_connection_says_so() -> None:
    async def run() -> None:
        async with provider(most=1, patience=0.05) as (pool, _):
            await connected(pool)
            assert await acquire(pool) == "full"
            assert pool.counts["waiting"] == 0
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # bound, not listening
            url = f"http://127.0.0.1:{unused.getsockname()[1]}"
            pool = Pool(Upstream(name="p", base_url=url, max_connections=1), Sweeper(), 65536)
            assert await acquire(pool) == "refused"
            assert await acquire(pool) == "refused"  # a failed attempt holds no place
            assert sum(pool.counts.values()) == 0

    asyncio.run(run())


def test_those_who_left_or_gave_up_keep_no_place_in_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> None:
        monkeypatch.setattr("fastgw.upstream.pool.MAX_WAITING", 2)
        async with provider(most=1, patience=0.2) as (pool, _):
            connection = await connected(pool)
            for _ in range(3):
                left = pool.acquire(Gets())
                assert isinstance(left, Ticket)
                left.cancel()
            late = [Gets(), Gets()]
            for each in late:
                pool.acquire(each)
            assert await acquire(pool) == "full"  # at once: two wait already
            assert late[0].got == []
            await until(lambda: all(each.got for each in late))
            assert (pool.counts["waiting"], len(pool._waiting)) == (0, 0)
            waiter = Gets()
            pool.acquire(waiter)
            pool.release(connection, 0)
            await until(lambda: bool(waiter.got))
            assert waiter.got == [connection]

    asyncio.run(run())


def test_a_closed_pool_makes_no_connection_for_those_who_wait() -> None:
    async def run() -> None:
        async with provider(most=1, patience=0.2) as (pool, peers):
            connection = await connected(pool)
            waiter = Gets()
            pool.acquire(waiter)
            pool.close()
            connection.close()
            assert pool.counts["connecting"] == 0
            await until(lambda: bool(waiter.got))
            assert waiter.got == ["full"]
            assert len(peers) == 1

    asyncio.run(run())


def test_a_client_that_left_while_we_connected_leaves_a_connection_for_the_next() -> None:
    async def run() -> None:
        async with provider() as (pool, peers):
            waiter = Gets()
            ticket = pool.acquire(waiter)
            assert isinstance(ticket, Ticket)
            ticket.cancel()
            await until(lambda: pool.counts["idle"] == 1)
            assert isinstance(pool.acquire(Gets()), UpstreamConnection)
            assert waiter.got == []
            assert len(peers) == 1

    asyncio.run(run())


def test_a_closed_pool_keeps_nothing_and_lets_the_busy_finish() -> None:
    async def run() -> None:
        async with provider() as (pool, _):
            idle, busy = await connected(pool), await connected(pool)
            pool.release(idle, 0)
            pool.close()
            assert [idle.open, busy.open] == [False, True]
            pool.release(busy, 0)
            assert not busy.open
            assert sum(pool.counts.values()) == 0

    asyncio.run(run())
