"""Bytes into requests, one at a time: a fake transport for turns, real sockets for ends."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.callbacks import Callbacks
from fastgw.config.tables import Server
from fastgw.downstream.connection import LINGER_BYTES, DownstreamConnection, Handler
from fastgw.downstream.connections import Connections
from fastgw.flow_control import Sweeper
from fastgw.http1.serialize import CONTINUE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastgw.errors import Refusal
    from fastgw.http1.request import RequestHead

SERVER = Server()
HOST = b"Host: a\r\n"
GET = b"GET /get HTTP/1.1\r\n" + HOST + b"\r\n"
UPLOAD = b"POST /up HTTP/1.1\r\n" + HOST + b"Content-Length: 5000\r\n\r\n"
CHUNKS = b"POST /up HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"


class Line(asyncio.Transport):
    """A transport that notes what is done to it; `unsent` is what the client has not taken."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.7", 50_000)})
        self.written = b""
        self.over = ""
        self._reading = True
        self.unsent = 0
        self.tls = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def pause_reading(self) -> None:
        assert self._reading
        self._reading = False

    def resume_reading(self) -> None:
        assert not self._reading
        self._reading = True

    def is_reading(self) -> bool:
        return self._reading

    def can_write_eof(self) -> bool:
        return not self.tls

    def write_eof(self) -> None:
        self.over = "half closed"

    def close(self) -> None:
        self.over = "closed"

    def abort(self) -> None:
        self.over = "aborted"


class Asked(Callbacks):
    """An exchange: what the client sent of it."""

    def __init__(self, desk: Desk, connection: DownstreamConnection, head: RequestHead) -> None:
        self.desk = desk
        self.connection = connection
        self.request = (head.method, head.path)
        self.body = b""
        self.whole = False
        self.ended = ""
        self.told: list[str] = []

    def on_body(self, data: bytes, last: bool) -> None:
        assert not self.whole, "bytes after the end of the body"
        self.body += data
        self.whole = last
        if last and self.desk.prompt:
            self.desk.answer()

    def on_broken_body(self, refusal: Refusal) -> None:
        self.ended = refusal.code
        self.connection.done(False)

    def on_disconnect(self) -> None:
        assert not self.ended
        self.ended = "client_disconnected"

    def on_shutdown(self) -> None:
        assert not self.ended
        self.ended = "shutdown"
        self.connection.cut(flush=False)

    def overdue(self, now: float) -> None: ...

    def on_client_full(self) -> None:
        self.told.append("full")

    def on_client_ready(self) -> None:
        self.told.append("ready")


class Desk(Handler):
    """The handler: keeps the exchanges and the refusals, and answers when told to."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.refused: list[int] = []
        self.open: Asked | None = None
        self.prompt = False  # answers in the turn in which it is asked
        self.sizes: list[int] = []

    def begin(self, connection: DownstreamConnection, head: RequestHead, length: int) -> Asked:
        assert self.open is None, "a second request before the first was answered"
        asked = self.open = Asked(self, connection, head)
        self.asked.append(asked)
        return asked

    def reject(
        self, connection: DownstreamConnection, head: RequestHead, length: int, refusal: Refusal
    ) -> None:
        self.refuse(connection, refusal)
        connection.done(False)

    def refuse(self, connection: DownstreamConnection, refusal: Refusal) -> None:
        self.refused.append(refusal.status)
        connection.write(b"%d" % refusal.status)

    def answer(self, keep_alive: bool = True) -> None:
        asked, self.open = self.open, None
        assert asked is not None
        self.sizes.append(asked.connection.bytes_in)
        asked.connection.done(keep_alive)


class Client(NamedTuple):
    """A connection with all that is around it."""

    line: Line
    desk: Desk
    connection: DownstreamConnection
    connections: Connections
    sweeper: Sweeper

    def send(self, data: bytes) -> None:
        self.connection.data_received(data)

    def sweep(self, *moments: float) -> None:
        for now in moments:
            self.sweeper.sweep(now, [self.connection])


def connect(connections: Connections | None = None, **settings: Any) -> Client:
    connections, sweeper = connections or Connections(), Sweeper()
    line, desk = Line(), Desk()
    connection = DownstreamConnection(desk, Server(**settings), sweeper, connections)
    connection.connection_made(line)
    return Client(line, desk, connection, connections, sweeper)


REQUESTS = [
    (GET, (b"GET", b"/get", b"")),
    (b"\r\n" + GET, (b"GET", b"/get", b"")),  # RFC 9112, 2.2
    (UPLOAD.replace(b"5000", b"4") + b"GET ", (b"POST", b"/up", b"GET ")),
    (UPLOAD.replace(b"5000", b"10") + b"\r\n\r\nGET /x", (b"POST", b"/up", b"\r\n\r\nGET /x")),
    (UPLOAD.replace(b"5000", b"0"), (b"POST", b"/up", b"")),
    (CHUNKS + b"3;a=b\r\nabc\r\n1\r\nd\r\n0\r\nX: y\r\n\r\n", (b"POST", b"/up", b"abcd")),
    (CHUNKS + b"0\r\n\r\n", (b"POST", b"/up", b"")),
]  # fmt: skip


@given(
    st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=5),
    st.lists(st.integers(0, 600), max_size=8),
    st.integers(0, 4),
)
def test_requests_come_out_as_they_went_in_at_any_cut(
    requests: list[tuple[bytes, tuple[bytes, bytes, bytes]]], cuts: list[int], lag: int
) -> None:
    """`lag`: pieces that arrive before a whole request is answered; others wait their turn."""
    client = connect()
    client.desk.prompt = not lag
    data = b"".join(raw for raw, _ in requests)
    edges = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    for number, (start, end) in enumerate(pairwise(edges)):
        client.send(data[start:end])
        if lag and number % lag == 0 and client.desk.open is not None and client.desk.open.whole:
            client.desk.answer()
    while client.desk.open is not None:
        assert client.desk.open.whole
        client.desk.answer()
    assert [(*each.request, each.body) for each in client.desk.asked] == [
        expected for _, expected in requests
    ]
    assert (client.line.over, client.line.is_reading(), client.desk.refused) == ("", True, [])
    assert client.desk.sizes == [len(raw.removeprefix(b"\r\n")) for raw, _ in requests]


BAD = [
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413),
    (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
    (b"GET /\r\n", 400),  # HTTP/0.9
]


@pytest.mark.parametrize(("bad", "status"), BAD)
def test_after_a_refusal_nothing_more_is_read(bad: bytes, status: int) -> None:
    for at in range(len(bad) + 1):
        client = connect()
        for piece in (bad[:at], bad[at:], GET + GET):
            client.send(piece)
        assert (client.desk.refused, client.desk.asked) == ([status], []), at
        assert client.line.over == "half closed"  # its answer must not be lost in a reset


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"\x16", 400),
        (b"GET /\r\n", 400),
        (b"GET / HTTP/1.1\nHost", 400),
        (b"GET /" + b"a" * 16 * 1024, 414),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 64 * 1024, 431),
    ],
)
def test_what_can_never_be_a_request_is_not_waited_for(start: bytes, status: int) -> None:
    client = connect()
    client.send(start)
    assert client.desk.refused == [status]
    slow = connect()
    for at in range(0, len(start), 1024):
        slow.send(start[at : at + 1024])
    assert slow.desk.refused == [status]


def test_a_head_seen_before_is_not_believed_about_another_length() -> None:
    client = connect(max_request_body=6000)
    client.send(UPLOAD.replace(b"5000", b"1") + b"x")
    client.desk.answer()
    client.send(UPLOAD.replace(b"5000", b"7000"))
    assert (client.desk.refused, len(client.desk.asked)) == ([413], 1)


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"6\r\nabcdef\r\n6\r\nghijkl\r\n", "body_too_large"), (b"3\r\nabcd", "malformed_request"),
     (b"-1\r\n", "malformed_request")],
)  # fmt: skip
def test_a_chunked_body_that_goes_wrong_ends_its_exchange(body: bytes, reason: str) -> None:
    client = connect(max_request_body=10)
    for data in (CHUNKS, body, GET):
        client.send(data)
    assert [each.ended for each in client.desk.asked] == [reason]
    assert len(client.desk.asked[0].body) <= 10
    assert client.line.over == "half closed"


def test_100_continue_waits_for_the_welcome_and_is_not_sent_to_who_did_not_wait() -> None:
    """RFC 9110, 10.1.1."""
    head = UPLOAD.replace(HOST, HOST + b"Expect: 100-continue\r\n")
    client = connect()
    client.send(head)
    assert client.line.written == b""
    client.connection.invite_body()
    client.connection.invite_body()
    assert client.line.written == CONTINUE
    for data in (UPLOAD, head + b"x", head.replace(b"1.1", b"1.0")):
        client = connect()
        client.send(data)
        client.connection.invite_body()
        assert client.line.written == b""


def test_pipelined_requests_wait_within_a_bound() -> None:
    client = connect(buffer_size=1000)
    client.send(GET)
    for _ in range(1000 // len(GET) + 1):
        assert client.line.is_reading()
        client.send(GET)
    assert not client.line.is_reading()
    client.desk.answer()
    assert client.line.is_reading()
    while client.desk.open is not None:
        client.desk.answer()
    assert len(client.desk.asked) == 1 + 1000 // len(GET) + 1


@pytest.mark.parametrize(
    ("sent", "after", "outcome"),
    [
        (b"", SERVER.header_timeout, "aborted"),  # without a word
        (b"GET / HT", SERVER.header_timeout, "408"),
        (UPLOAD + b"x" * 4095, SERVER.body_timeout, "request_timeout"),
    ],
)
def test_slow_clients(sent: bytes, after: float, outcome: str) -> None:
    client = connect()
    for at in range(0, len(sent) or 1, 100):
        if sent:
            client.send(sent[at : at + 100])
        client.sweep(100.0 + at / 10_000)  # bytes that come do not start a head's time again
    client.sweep(99.9 + after)
    assert (client.line.over, client.line.written, client.desk.refused) == ("", b"", [])
    client.sweep(101.0 + after)
    ended = [each.ended for each in client.desk.asked]
    assert outcome in (client.line.over, client.line.written.decode(), *ended)


def test_each_state_and_each_request_has_a_clock_and_bounds_of_its_own() -> None:
    client = connect(max_request_body=5000)
    now = 100.0
    for _ in range(3):
        for data in (UPLOAD[:10], UPLOAD[10:], b"x" * 4999, b"x"):
            client.sweep(now, now + SERVER.header_timeout - 0.1)
            client.send(data)
            now += SERVER.header_timeout - 0.1
        assert client.desk.asked[-1].whole
        client.sweep(now, now + 1000)  # the provider takes its time
        now += 1000
        client.desk.answer()
    assert (client.line.over, client.desk.refused) == ("", [])
    client.sweep(now, now + SERVER.idle_timeout - 0.1)
    assert client.line.over == ""
    client.sweep(now + SERVER.idle_timeout)
    assert client.line.over == "aborted"


def test_an_upload_in_progress_or_held_up_by_us_is_not_cut() -> None:
    client = connect()
    late = 100.0 + SERVER.body_timeout
    client.send(UPLOAD)
    client.sweep(100.0)
    client.send(b"x" * 4096)
    client.sweep(late, late)
    client.connection.pause_body()
    client.sweep(2 * late, 3 * late)
    assert (client.desk.asked[0].ended, client.line.over) == ("", "")
    client.connection.resume_body()
    client.sweep(4 * late, 5 * late)
    assert client.desk.asked[0].ended == "request_timeout"


@pytest.mark.parametrize("head", [UPLOAD, CHUNKS])
def test_the_time_for_a_body_ends_with_the_body(head: bytes) -> None:
    """A provider may think for longer than a client may take to send: that clock is over."""
    client = connect()
    client.send(head)
    client.sweep(100.0)  # starts the clock of the body, of which nothing is here yet
    client.send(b"x" * 5000 if head is UPLOAD else b"1\r\nx\r\n0\r\n\r\n")
    assert client.desk.asked[0].whole
    client.sweep(100.0 + SERVER.body_timeout, 200.0, 300.0, 400.0)
    assert (client.line.over, client.desk.asked[0].ended) == ("", "")


def test_an_answer_is_cut_for_who_takes_none_of_it_and_not_for_who_is_slow() -> None:
    client = connect()
    client.send(GET)
    client.sweep(0.5, 1e6)  # nothing waits for the client: the provider is who is slow
    client.line.unsent = 3000
    late = SERVER.send_timeout + 0.1
    client.sweep(1e6, 1e6 + late - 0.2)
    client.line.unsent = 2999
    client.sweep(1e6 + late, 1e6 + late)
    assert client.line.over == ""
    client.sweep(1e6 + 3 * late)
    assert client.line.over == "aborted"


@pytest.mark.parametrize(
    ("keep_alive", "tls", "over"),
    [(True, False, ""), (False, False, "half closed"), (False, True, "closed")],
)
def test_the_rest_of_an_answer_is_not_cut_while_the_client_takes_it(
    keep_alive: bool, tls: bool, over: str
) -> None:
    """An exchange is done when its last bytes are written; a slow client has them later. What
    bounds that is `send_timeout` without a byte, whether or not the connection goes on."""
    client = connect()
    client.line.tls = tls
    client.send(GET)
    client.line.unsent = SERVER.buffer_size
    client.desk.answer(keep_alive)
    now = 100.0
    while client.line.unsent > 0:
        client.sweep(now)
        now += 2.0
        client.line.unsent -= 5000
    assert client.line.over == over
    client.line.unsent = 1
    client.connection.expires = 0.0
    client.sweep(now, now + SERVER.send_timeout - 0.1)
    assert client.line.over == over
    client.sweep(now + SERVER.send_timeout)  # and it takes no more
    assert client.line.over == "aborted"


def test_the_exchange_is_told_how_its_client_keeps_up() -> None:
    client = connect()
    client.connection.pause_writing()  # between two requests there is nobody to tell
    client.connection.resume_writing()
    client.send(GET)
    client.connection.expires = 1.0
    client.connection.pause_writing()
    assert client.connection.expires == 0.0  # `send_timeout` begins
    client.connection.resume_writing()
    assert client.desk.asked[0].told == ["full", "ready"]


def test_an_upload_that_is_paused_is_read_on_for_the_next_request() -> None:
    client = connect()
    client.send(UPLOAD)
    client.connection.pause_body()
    client.connection.pause_body()
    assert not client.line.is_reading()
    client.connection.resume_body()
    client.connection.resume_body()
    assert client.line.is_reading()
    client.connection.pause_body()
    client.desk.answer(keep_alive=False)
    assert client.line.is_reading()  # so that what lingers is discarded
    client.connection.pause_body()
    assert client.line.is_reading()


def test_who_keeps_sending_after_the_last_answer_is_cut_off() -> None:
    client = connect()
    client.send(GET)
    client.desk.answer(keep_alive=False)
    for _ in range(LINGER_BYTES // 65536):
        client.send(b"x" * 65536)
    assert client.line.over == "half closed"
    client.send(b"x")
    assert client.line.over == "aborted"
    quiet = connect()
    quiet.send(GET)
    quiet.desk.answer(keep_alive=False)
    quiet.sweep(100.0, 110.0)
    assert quiet.line.over == "aborted"


def test_an_answer_before_the_end_of_the_body_is_the_last_one() -> None:
    client = connect()
    client.send(UPLOAD + b"x")
    assert client.connection.closes_after_answer
    client.desk.answer()
    client.send(b"x" * 4999 + GET)
    assert (client.line.over, len(client.desk.asked)) == ("half closed", 1)


def test_what_is_printed_is_the_state_and_no_byte_of_the_request() -> None:
    client = connect()
    assert repr(client.connection) == "<DownstreamConnection opening 192.0.2.7>"
    client.send(GET.replace(HOST, HOST + b"X-Api-Key: sk-secret\r\n"))
    assert "answering" in repr(client.connection)
    assert "secret" not in repr(client.connection)


@contextlib.asynccontextmanager
async def served() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Desk]]:
    desk, sweeper, connections = Desk(), Sweeper(), Connections()
    server = await asyncio.get_running_loop().create_server(
        lambda: DownstreamConnection(desk, SERVER, sweeper, connections), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        async with asyncio.timeout(10):
            yield reader, writer, desk
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            await connections.drain(5.0)
            assert (len(connections.all), len(sweeper)) == (0, 0)
    finally:
        server.close()


async def begun(desk: Desk) -> Asked:
    async with asyncio.timeout(10):
        while desk.open is None:  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)
    return desk.open


def test_a_refusal_reaches_a_client_that_is_still_sending() -> None:
    async def run() -> None:
        async with served() as (reader, writer, desk):
            writer.write(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 300_000)
            assert await reader.read() == b"400"
            assert desk.asked == []

    asyncio.run(run())


@pytest.mark.parametrize("flush", [True, False])
def test_a_cut_answer_ends_as_it_must(flush: bool) -> None:
    """Where the end of the connection would be the end of the body, the end is a reset."""

    async def run() -> None:
        async with served() as (reader, writer, desk):
            writer.write(GET)
            asked = await begun(desk)
            asked.connection.write(b"half of it")
            assert await reader.read(10) == b"half of it"
            asked.connection.cut(flush)
            if flush:
                assert await reader.read() == b""
            else:
                with pytest.raises(ConnectionResetError):
                    await reader.read()

    asyncio.run(run())


def test_a_client_that_closes_its_side_has_left() -> None:
    async def run() -> None:
        async with served() as (reader, writer, desk):
            writer.write(GET)
            asked = await begun(desk)
            writer.write_eof()
            assert await reader.read() == b""
            assert asked.ended == "client_disconnected"

    asyncio.run(run())


def test_what_was_put_off_is_read_before_what_comes_after_it() -> None:
    async def run() -> None:
        async with served() as (_, writer, desk):
            writer.write(GET)
            asked = await begun(desk)
            connection = asked.connection
            connection.data_received(b"GET /second HTTP/1.1\r\nHo")
            connection.pause_writing()
            desk.answer()
            assert desk.open is None  # it takes no answers: it is asked no more
            connection.resume_writing()
            connection.data_received(b"st: a\r\n\r\n")  # in the same turn
            await asyncio.sleep(0)
            assert desk.asked[-1].request == (b"GET", b"/second")
            assert not desk.refused

    asyncio.run(run())


@pytest.mark.parametrize("here", [b"", UPLOAD[:9]])
def test_what_waits_for_a_slow_client_has_time_and_is_not_overtaken(here: bytes) -> None:
    async def run() -> None:
        client = connect()
        client.send(GET)
        if here:  # what fills it leaves at the end of the turn
            client.desk.answer()
            client.send(here)
        client.connection.pause_writing()
        client.line.unsent = 1
        client.send(UPLOAD[len(here) :])
        if not here:
            client.desk.answer()
        client.sweep(1.0, SERVER.header_timeout + 2.0)
        client.connection.resume_writing()
        assert not client.line.is_reading(), "a third request would be read before the second"
        client.line.unsent = 0
        assert not client.connection.give_way()
        await asyncio.sleep(0)
        assert client.desk.asked[-1].request == (b"POST", b"/up")
        assert client.line.is_reading()

    asyncio.run(run())
