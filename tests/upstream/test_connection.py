"""One response to one request, over real sockets; whatever else comes fails and closes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, cast

import pytest
import trustme
import uvloop

from fastgw.callbacks import Callbacks
from fastgw.config.tables import Upstream
from fastgw.flow_control import Sweeper
from fastgw.turn import FULL_READ
from fastgw.upstream.connection import UpstreamConnection
from fastgw.upstream.pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from fastgw.http1.response import ResponseHead

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Record(Callbacks):
    """An exchange that notes what it is told; `over` is set by an end or a failure."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""
        self.end = ""
        self.over = asyncio.Event()
        self.begun = asyncio.Event()

    def on_response(self, head: ResponseHead, body: bytes, ended: bool) -> None:
        assert not self.status, "a second answer"
        self.status = head.status
        self.begun.set()
        self.on_response_body(body, None, ended)

    def on_response_body(self, body: bytes, framed: bytes | None, ended: bool) -> None:
        assert not self.end, "after the end"
        self.body += body
        if ended:
            self.end = "ended"
            self.over.set()

    def on_upstream_failure(self, reason: str) -> None:
        assert not self.end, "after the end"
        self.end = reason
        self.over.set()

    def on_upstream_full(self) -> None: ...

    def on_upstream_ready(self) -> None: ...


class Provider(asyncio.Protocol):
    """Answers what it is asked with pieces, one by one; None closes."""

    def __init__(self, pieces: list[bytes | None]) -> None:
        self.pieces = pieces

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._next(list(self.pieces))

    def _next(self, pieces: list[bytes | None]) -> None:
        if pieces:
            piece = pieces.pop(0)
            if piece is None:
                self.transport.close()
                return
            self.transport.write(piece)
            asyncio.get_running_loop().call_later(0.005, self._next, pieces)


@contextlib.asynccontextmanager
async def connected(*pieces: bytes | None) -> AsyncIterator[tuple[UpstreamConnection, Pool]]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Provider(list(pieces)), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(Upstream(name="p", base_url=f"http://127.0.0.1:{port}"), Sweeper(), 65536)
    _, connection = await loop.create_connection(
        lambda: UpstreamConnection(pool, Sweeper()), "127.0.0.1", port
    )
    pool.adopt(connection)
    assert pool.acquire(None) is connection  # type: ignore[arg-type]
    try:
        yield connection, pool
    finally:
        pool.abort()
        server.close()
        await asyncio.sleep(0.01)


async def ask(*pieces: bytes | None, method: bytes = b"GET", whole: bool = True) -> Record:
    """The record of one exchange; `record.end` has `+` after it if the connection was kept."""
    async with connected(*pieces) as (connection, pool):
        record = Record()
        connection.send(record, method, REQUEST, whole)
        async with asyncio.timeout(10):
            await record.over.wait()
        if pool.counts["idle"]:
            record.end += "+"
        return record


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("pieces", "body", "end"),
    [
        ([OK + b"ok"], b"ok", "ended+"),
        ([OK, b"o", b"k"], b"ok", "ended+"),
        ([OK[:9], OK[9:30], OK[30:] + b"ok"], b"ok", "ended+"),
        ([CHUNKED + b"2\r\nok\r\n0\r\n\r\n"], b"ok", "ended+"),
        ([CHUNKED, b"2\r\nok\r\n", b"0\r\n\r\n"], b"ok", "ended+"),
        ([b"HTTP/1.1 103 Early Hints\r\n\r\n", OK + b"ok"], b"ok", "ended+"),
        ([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"], b"", "ended"),
        ([b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"], b"ok", "ended"),
        ([b"HTTP/1.1 200 OK\r\n\r\n", b"ok", None], b"ok", "ended"),  # until it closes
        ([None], b"", "reset"),
        ([OK[:20], None], b"", "broken"),
        ([b"HTTP/1.1 103 x\r\n\r\n", None], b"", "broken"),
        ([OK, b"o", None], b"o", "reset"),
        ([CHUNKED + b"2\r\nok\r\n", None], b"ok", "reset"),
        ([OK + b"okHTTP/1.1 200 OK\r\n\r\n"], b"", "malformed"),  # a second answer
        ([OK, b"ok!"], b"", "malformed"),
        ([CHUNKED + b"0\r\n\r\nHTTP/1.1"], b"", "malformed"),
        ([CHUNKED, b"zz\r\n"], b"", "malformed"),
        ([b"HTTP/1.1 101 Switching Protocols\r\n\r\n"], b"", "malformed"),
        ([b"HTTP/1.1 103 x\r\n\r\n" * 9 + OK + b"ok"], b"", "malformed"),
        ([b"SSH-2.0-x"], b"", "malformed"),
        ([b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000], b"", "malformed"),
    ],
)
def test_answers(pieces: list[bytes | None], body: bytes, end: str) -> None:
    record = asyncio.run(ask(*pieces))
    assert (record.body, record.end) == (body, end)


def test_an_answer_to_head_has_no_body_whatever_it_announces() -> None:
    assert asyncio.run(ask(OK, method=b"HEAD")).end == "ended+"


def test_a_connection_that_still_owes_the_upload_is_not_kept() -> None:
    record = asyncio.run(ask(OK + b"ok", whole=False))
    assert (record.status, record.body, record.end) == (200, b"ok", "ended")


def test_silence_is_told_by_when_it_fell() -> None:
    async def run(*pieces: bytes) -> str:
        async with connected(*pieces) as (connection, _):
            record = Record()
            connection.send(record, b"GET", REQUEST, True)
            settings = Upstream(name="p", base_url="http://a")
            assert connection.patience == settings.first_byte_timeout
            if pieces:
                await record.begun.wait()
                assert connection.patience == settings.idle_timeout
            connection.expires = 1.0
            connection.pause()  # the client is slow, not the provider
            assert connection.expires == connection.patience == 0.0
            connection.resume()
            assert connection.patience
            connection.expired()
            assert not connection.open
            return record.end

    assert asyncio.run(run()) == "timeout"
    assert asyncio.run(run(OK)) == "stalled"


def test_a_closed_connection_tells_its_exchange_nothing_more() -> None:
    async def run() -> None:
        async with connected(OK + b"ok") as (connection, pool):
            record = Record()
            connection.send(record, b"GET", REQUEST, True)
            connection.close()
            connection.close()
            await asyncio.sleep(0.03)
            assert (record.end, sum(pool.counts.values())) == ("", 0)

    asyncio.run(run())


def test_nothing_of_one_answer_is_left_for_the_next() -> None:
    """Interim answers, decoder, length and clock are those of one exchange, not of two."""
    early = b"HTTP/1.1 103 x\r\n\r\n" * 7  # of eight that may come
    chunked, sized = CHUNKED + b"2\r\nok\r\n0\r\n\r\n", OK + b"ok"

    async def run() -> None:
        async with connected() as (connection, pool):
            for answer in (chunked, sized, chunked, sized):
                for cut in (len(answer) - 1, len(answer)):
                    record = Record()
                    connection.expires = 1.0
                    connection.send(record, b"POST", REQUEST, True)
                    assert connection.expires == 0.0
                    connection.data_received(early + answer[:cut])
                    if cut < len(answer):
                        connection.expires = 1.0
                        connection.data_received(answer[cut:])
                        assert connection.expires == 0.0  # it moves
                    assert (record.body, record.end) == (b"ok", "ended")
                    assert pool.acquire(None) is connection  # type: ignore[arg-type]
            record = Record()
            connection.send(record, b"GET", REQUEST, True)
            connection.transport.abort()
            async with asyncio.timeout(10):
                await record.over.wait()
            assert record.end == "reset"  # not "broken": no byte of this answer came
            assert pool.counts["busy"] == 0

    asyncio.run(run())


@pytest.mark.parametrize("last", [True, False])
def test_a_connection_is_kept_once_the_upload_is_sent_in_full(last: bool) -> None:
    async def run() -> str:
        async with connected() as (connection, pool):
            record = Record()
            connection.send(record, b"POST", REQUEST, False)
            connection.send_body(b"a", False)
            connection.send_body(b"b", last)
            connection.data_received(OK + b"ok")
            assert record.end == "ended"
            return "kept" if pool.counts["idle"] else "closed"

    assert asyncio.run(run()) == ("kept" if last else "closed")


def test_an_answer_that_the_client_does_not_take_is_not_read() -> None:
    class Slow(Record):
        pause: Callable[[], None]

        def on_response(self, head: ResponseHead, body: bytes, ended: bool) -> None:
            super().on_response(head, body, ended)
            self.pause()
            self.pause()

    async def run() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 30000\r\n\r\n"
        async with connected(head, *[b"x" * 10_000] * 3) as (connection, pool):
            record = Slow()
            record.pause = connection.pause
            connection.send(record, b"GET", REQUEST, True)
            await record.begun.wait()
            await asyncio.sleep(0.05)
            assert record.body == b""
            connection.expires = 1.0
            connection.resume()
            assert connection.expires == 0.0  # its silence was ours
            async with asyncio.timeout(10):
                await record.over.wait()
            assert (len(record.body), pool.counts["idle"]) == (30_000, 1)

    asyncio.run(run())


def test_others_have_their_turn_between_two_full_reads() -> None:
    """All that waits in the socket would be read in one turn of the loop, up to 8 MB."""
    size = 16 * 1024 * 1024
    reads: list[tuple[int, int]] = []
    turn = 0

    class Counts(Record):
        def on_response_body(self, body: bytes, framed: bytes | None, ended: bool) -> None:
            super().on_response_body(b"", framed, ended)
            reads.append((turn, len(body)))
            time.sleep(0.001)  # so that more is there than was read

    def count() -> None:
        nonlocal turn
        turn += 1
        asyncio.get_running_loop().call_soon(count)

    def provide(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            provider = threading.Thread(target=provide, args=(listener,))
            provider.start()
            pool = Pool(Upstream(name="p", base_url=f"http://127.0.0.1:{port}"), Sweeper(), 65536)
            _, connection = await loop.create_connection(
                lambda: UpstreamConnection(pool, Sweeper()), "127.0.0.1", port
            )
            record = Counts()
            connection.send(record, b"GET", REQUEST, True)
            count()
            async with asyncio.timeout(20):
                await record.over.wait()
            await asyncio.to_thread(provider.join)
            pool.abort()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    assert sum(length for _, length in reads) == size
    full = [number for number, length in reads if length >= FULL_READ]
    assert len(full) > 5
    assert len(full) == len(set(full))


def test_an_upload_that_the_provider_does_not_take_is_paused() -> None:
    told: list[str] = []

    class Uploads(Record):
        def on_upstream_full(self) -> None:
            told.append("full")

        def on_upstream_ready(self) -> None:
            told.append("ready")

    class Deaf(asyncio.Protocol):
        transport: asyncio.Transport
        heard = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            # In a turn of its own: asyncio begins to read after this, up to Python 3.11.3 or so.
            asyncio.get_running_loop().call_soon(transport.pause_reading)

        def data_received(self, data: bytes) -> None:
            self.heard += len(data)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        deaf, sweeper = Deaf(), Sweeper()
        server = await loop.create_server(lambda: deaf, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        pool = Pool(Upstream(name="p", base_url=f"http://127.0.0.1:{port}"), sweeper, 65536)
        _, connection = await loop.create_connection(
            lambda: UpstreamConnection(pool, sweeper), "127.0.0.1", port
        )
        assert len(sweeper) == 1  # under time-outs from the start
        connection.send(Uploads(), b"POST", REQUEST, False)
        sent = len(REQUEST)
        async with asyncio.timeout(10):
            while connection.unsent <= 65536:
                assert told == []
                connection.send_body(b"x" * 65536, False)
                sent += 65536
                await asyncio.sleep(0)
            assert told == ["full"]
            deaf.transport.resume_reading()
            while deaf.heard < sent:  # noqa: ASYNC110 - what is waited for sets no event
                await asyncio.sleep(0.001)
        assert told == ["full", "ready"]
        connection.close()
        assert len(sweeper) == 0
        server.close()
        deaf.transport.abort()
        await asyncio.sleep(0.01)

    asyncio.run(run())


UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"
SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Slow(Record):
    """A client that takes the head and, until `go`, no more."""

    connection: UpstreamConnection | None = None
    slow = True

    def on_acquired(self, connection: UpstreamConnection) -> None:
        self.connection = connection
        connection.send(self, b"GET", REQUEST, True)

    def on_acquire_failure(self, reason: str) -> None:
        self.on_upstream_failure(reason)

    def on_response(self, head: ResponseHead, body: bytes, ended: bool) -> None:
        super().on_response(head, body, ended)
        if self.slow and self.connection is not None:
            self.connection.pause()


class Ends(asyncio.Protocol):
    """Answers at once and ends: with a close_notify and a FIN, or with a FIN alone. As most
    servers it does not wait for the close_notify of the other side."""

    def __init__(self, answer: bytes, notifies: bool, over: asyncio.Event) -> None:
        self.answer, self.notifies, self.over = answer, notifies, over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(self.answer)
        self.end()

    def end(self) -> None:
        loop = asyncio.get_running_loop()
        if self.transport.get_write_buffer_size():
            loop.call_later(0.001, self.end)
            return
        if self.notifies:
            self.transport.close()
        loop.call_later(0.02, self.transport.abort)
        loop.call_later(0.04, self.over.set)


async def ended_over_tls(
    folder: Path, answer: bytes, *, notifies: bool = True, slow: bool = False
) -> tuple[int, str]:
    """Bytes of the body and the end, of an answer to a client that may be slow to take it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    over = asyncio.Event()
    server = await asyncio.get_running_loop().create_server(
        lambda: Ends(answer, notifies, over), "127.0.0.1", 0, ssl=context
    )
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
    pool = Pool(Upstream(name="p", base_url=url, ca_file=str(folder / "ca.pem")), Sweeper(), 65536)
    record = Slow()
    record.slow = slow
    try:
        pool.acquire(record)
        async with asyncio.timeout(10):
            if slow:
                await record.begun.wait()
                await asyncio.sleep(0.1)  # far more than the provider needs to send all and end
                assert record.connection is not None
                record.connection.resume()
            await record.over.wait()
            await over.wait()
    finally:
        pool.abort()
        server.close()
        await asyncio.sleep(0.01)
    return len(record.body), record.end


@pytest.mark.parametrize(
    ("answer", "notifies", "expected"),
    [
        (UNTIL_CLOSE + b"ok", True, (2, "ended")),
        (UNTIL_CLOSE + b"ok", False, (2, "reset")),  # may be anybody's end
        (UNTIL_CLOSE, False, (0, "reset")),
        (SIZED % 2 + b"ok", False, (2, "ended")),  # its end is told within
        (SIZED % 3 + b"ok", True, (2, "reset")),
        (CHUNKED + b"2\r\nok\r\n", True, (2, "reset")),
        (UNTIL_CLOSE[:-2], True, (0, "broken")),
    ],
)
def test_over_tls_a_body_ends_with_the_connection_only_after_close_notify(
    tmp_path: Path, answer: bytes, notifies: bool, expected: tuple[int, str]
) -> None:
    """RFC 8446, 6.1: without one the answer may be cut short by whoever is on the way."""
    assert uvloop.run(ended_over_tls(tmp_path, answer, notifies=notifies)) == expected


@pytest.mark.parametrize("notifies", [True, False])
@pytest.mark.parametrize("size", [70_000, 150_000, 300_000])
def test_over_tls_a_slow_client_gets_the_end_too(tmp_path: Path, size: int, notifies: bool) -> None:
    """What the provider sent before it closed is not lost while the client takes its time."""
    answer = SIZED % size + b"x" * size
    got = uvloop.run(ended_over_tls(tmp_path, answer, notifies=notifies, slow=True))
    assert got == (size, "ended")
    if notifies:
        answer = UNTIL_CLOSE + b"x" * size
        assert uvloop.run(ended_over_tls(tmp_path, answer, slow=True)) == (size, "ended")


def test_a_request_that_is_not_out_yet_keeps_its_connection_from_the_next() -> None:
    """An early answer: what is left of the body would be read as the next request."""

    async def run(size: int, apart: bool) -> str:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            port = listener.getsockname()[1]
            pool = Pool(Upstream(name="p", base_url=f"http://127.0.0.1:{port}"), Sweeper(), 65536)
            _, connection = await loop.create_connection(
                lambda: UpstreamConnection(pool, Sweeper()), "127.0.0.1", port
            )
            provider, _ = await loop.sock_accept(listener)
        pool.adopt(connection)
        assert pool.acquire(None) is connection  # type: ignore[arg-type]
        record = Record()
        if apart:
            connection.send_apart(record, b"POST", REQUEST, bytes(size))
        else:
            connection.send(record, b"POST", REQUEST + bytes(size), True)
        with provider:
            await loop.sock_sendall(provider, OK + b"no")  # not a byte was read
            async with asyncio.timeout(10):
                await record.over.wait()
            kept = pool.counts["idle"]
            pool.abort()
            await asyncio.sleep(0.01)
        return record.end + "+" * kept

    for apart in (False, True):
        assert asyncio.run(run(32_000_000, apart)) == "ended"
        assert uvloop.run(run(32_000_000, apart)) == "ended"
        assert asyncio.run(run(1000, apart)) == "ended+"
        assert uvloop.run(run(1000, apart)) == "ended+"


def test_interim_answers_do_not_count_as_the_first_byte() -> None:
    async def run() -> None:
        async with connected() as (connection, _):
            record = Record()
            connection.send(record, b"GET", REQUEST, True)
            connection.expires = 7.0
            connection.data_received(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            connection.data_received(OK[:9])
            assert connection.expires == 7.0
            connection.data_received(OK[9:])
            assert connection.expires == 0.0

    asyncio.run(run())


def test_a_fault_of_the_exchange_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Record):
        def on_response(self, head: ResponseHead, body: bytes, ended: bool) -> None:
            raise ZeroDivisionError

    async def run(data: bytes) -> None:
        async with connected(data) as (connection, pool):
            record = Faulty()
            connection.send(record, b"GET", REQUEST, True)
            async with asyncio.timeout(10):
                await record.over.wait()
            assert record.end == "malformed"
            assert not pool.counts["idle"]

    for data in (OK + b"ok", OK, CHUNKED):
        asyncio.run(run(data))
    assert caplog.text.count("an answer could not be read") == 3
