"""The connections to a provider, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from fastgw.config.tables import Upstream
from fastgw.flow_control import Sweeper
from fastgw.upstream.connection import UpstreamConnection
from fastgw.upstream.pool import Pool, Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


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


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_nor_one_that_it_closes_in_the_turn_in_which_it_is_wanted(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """The loop says that it is lost in its next turn only; what is sent until then goes nowhere."""

    class Asks(asyncio.Protocol):
        def __init__(self, pool: Pool) -> None:
            self.pool = pool
            self.found: list[UpstreamConnection | Ticket] = []

        def data_received(self, data: bytes) -> None:
            self.found.append(self.pool.acquire(Gets()))

    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            pool = Pool(Upstream(name="p", base_url=f"http://127.0.0.1:{port}"), Sweeper(), 65536)
            pool.release(await connected(pool), 0)
            client, ours = socket.socketpair()
            asks = Asks(pool)
            await asyncio.get_running_loop().create_connection(lambda: asks, sock=ours)
            theirs, _ = listener.accept()
            with theirs, client:
                theirs.shutdown(socket.SHUT_WR)
                client.sendall(b"a")  # both are there as the loop looks
                await until(lambda: bool(asks.found))
                assert isinstance(asks.found[0], Ticket)
                pool.abort()
                await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


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


class Names:
    """A name server that answers for `hang` once it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = threading.Event()
        self.asked: list[str] = []
        self._ask = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.ask)

    def ask(self, host: str, port: int, *more: Any, **named: Any) -> list[Any]:
        self.asked.append(host)
        if host == "hang":
            assert self.answers.wait(10)
        if host == "unknown":
            raise socket.gaierror(-2, "Name or service not known")
        if host == "\udc80":
            raise UnicodeError("not a name")
        addresses = ("127.0.0.2", "127.0.0.1") if host == "two" else ("127.0.0.1",)
        return [entry for each in addresses for entry in self._ask(each, port, *more, **named)]


def named(like: Pool, host: str, patience: float = 5.0) -> Pool:
    """A pool of the same provider by another name."""
    url = like.settings.base_url.replace("127.0.0.1", host)
    settings = dataclasses.replace(like.settings, base_url=url, connect_timeout=patience)
    return Pool(settings, Sweeper(), 65536)


def test_a_name_server_that_is_silent_keeps_no_other_provider_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch)

    async def run() -> None:
        async with provider() as (pool, _):
            silent, other = named(pool, "hang", 0.3), named(pool, "other", 0.3)
            waiting = [Gets() for _ in range(9)]
            for waiter in waiting:
                silent.acquire(waiter)
            await asyncio.sleep(0.05)
            await connected(other)
            await until(lambda: all(waiter.got for waiter in waiting))
            assert {str(waiter.got[0]) for waiter in waiting} == {"timeout"}
            late = Gets()
            silent.acquire(late)
            names.answers.set()
            await until(lambda: bool(late.got))
            assert isinstance(late.got[0], UpstreamConnection)
            assert names.asked.count("hang") == 1
            await connected(silent)
            assert names.asked.count("hang") == 2  # it may have another address by now
            for each in (silent, other):
                each.abort()
            assert pool.counts == silent.counts == dict.fromkeys(pool.counts, 0)

    asyncio.run(run())


def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch)

    async def run() -> None:
        async with provider() as (pool, _):
            two = named(pool, "two")
            await connected(two)
            two.abort()

    asyncio.run(run())


def test_an_address_that_is_local_to_a_link_keeps_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    link = socket.if_nametoindex("lo")
    entry = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 80, 0, link))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry])

    async def run() -> None:
        pool = Pool(Upstream(name="p", base_url="http://near"), Sweeper(), 65536)
        assert await pool._addresses() == ["fe80::1%lo"]

    asyncio.run(run())


@pytest.mark.parametrize("name", ["unknown", "\udc80"])
def test_a_name_without_an_address_says_so_each_time(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = Names(monkeypatch)

    async def run() -> None:
        async with provider() as (pool, _):
            nowhere = named(pool, "unknown")
            nowhere._host = name
            assert [await acquire(nowhere) for _ in range(2)] == ["refused", "refused"]
            assert nowhere.counts == dict.fromkeys(nowhere.counts, 0)
            assert names.asked.count(name) == 2
            assert "upstream p: cannot connect" in caplog.text

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
