"""A provider that records every byte and answers by script; and clients that send raw bytes.

h11 is the judge on both sides: it cuts what the provider received into requests, and what a client
received into answers. Neither it nor this file shares a line with the parsers under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import h11
import orjson

from tests.processes import ALICE, PER_USER, Gateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

PATIENCE = 30.0
"""Seconds until a test that waits for something gives up. Nothing is measured by it."""

GO, PAUSE, CLOSE, SEVER, RESET = "go", "pause", "close", "sever", "reset"
"""Steps of a script beside bytes: wait for `Recorder.go`; let the bytes so far arrive by
themselves; end the connection with a FIN (over TLS with a close_notify before it); end it with a
FIN alone; end it with an RST."""

_SHORT = 0.02


class Script(NamedTuple):
    """How to answer a request. `early`: as soon as its head is here."""

    steps: Sequence[bytes | str]
    early: bool = False


class Message:
    """One request as the provider saw it; `raw` is what it was read from, to the byte."""

    def __init__(self, link: Link, start: int, request: h11.Request) -> None:
        self.link = link
        self._start = start
        self._end: int | None = None
        self.method = request.method
        self.target = request.target
        self.version = request.http_version
        self.fields = [(bytes(name), bytes(value)) for name, value in request.headers]
        self.trailers: list[tuple[bytes, bytes]] = []
        self.body = b""

    @property
    def raw(self) -> bytes:
        return bytes(self.link.data[self._start : self._end])

    @property
    def complete(self) -> bool:
        return self._end is not None

    def end(self, position: int) -> None:
        self._end = position

    def field(self, name: bytes) -> bytes:
        return dict(self.fields).get(name, b"")

    @property
    def id(self) -> str:
        return self.field(b"x-request-id").decode()

    def __repr__(self) -> str:
        return f"<{self.method!r} {self.target!r} {self.id}>"


class Link(asyncio.Protocol):
    """One connection from the gateway."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.data = bytearray()
        self.messages: list[Message] = []
        self.error = ""
        self.closed = False
        self._judge = _judge(h11.SERVER)
        self._read = 0  # bytes that belong to requests that ended

    @property
    def rest(self) -> bytes:
        """Bytes after the last complete request."""
        return bytes(self.data[self._read :])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._recorder.links.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.error:
            return
        try:
            self._judge.receive_data(data)
            self._take_events()
        except h11.RemoteProtocolError as error:
            self.error = str(error)
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            self._transport.close()

    def _take_events(self) -> None:
        while True:
            event = self._judge.next_event()
            if isinstance(event, h11.Request):
                message = Message(self, self._read, event)
                self.messages.append(message)
                self._recorder.messages.append(message)
                self._recorder.answer(message, early=True)
            elif isinstance(event, h11.Data):
                self.messages[-1].body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                message = self.messages[-1]
                message.trailers = [(bytes(n), bytes(v)) for n, v in event.headers]
                rest = self._judge.trailing_data[0]
                self._read = len(self.data) - len(rest)
                message.end(self._read)
                self._judge = _judge(h11.SERVER)
                if rest:
                    self._judge.receive_data(rest)
                self._recorder.answer(message, early=False)
            else:
                return

    async def play(self, steps: Sequence[bytes | str]) -> None:
        """Answer by script. One that ends without CLOSE or RESET leaves the connection open."""
        for step in steps:
            if self.closed:
                return
            if isinstance(step, bytes):
                self._transport.write(step)
            elif step == GO:
                await self._recorder.gone()
            elif step == PAUSE:
                await asyncio.sleep(_SHORT)
            elif step == CLOSE:
                self._transport.close()
            elif step == SEVER:
                self._transport.abort()
            else:
                raw = self._transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._transport.abort()


class Recorder:
    """The provider, in a thread of its own; with `tls` it speaks TLS. Use as a context manager."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.links: list[Link] = []
        self.messages: list[Message] = []
        self.scripts: dict[str, Script] = {}
        self.port = 0
        self._go = asyncio.Event()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._plays: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Recorder:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        loop = self._loop
        server = loop.run_until_complete(
            loop.create_server(lambda: Link(self), "127.0.0.1", 0, backlog=512, ssl=self._tls)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        loop.run_forever()
        server.close()
        for link in self.links:
            if not link.closed:
                link._transport.abort()
        for play in self._plays:
            play.cancel()
        loop.run_until_complete(asyncio.sleep(_SHORT))
        loop.close()

    def answer(self, message: Message, early: bool) -> None:
        """Called in the loop: play the script of this request, or say whose request it was."""
        script = self.scripts.get(message.id, Script(()))
        if script.early is not early:
            return
        steps = script.steps or (echo(message.method, message.id, message.target),)
        play = self._loop.create_task(message.link.play(steps))
        self._plays.add(play)
        play.add_done_callback(self._plays.discard)

    async def gone(self) -> None:
        """Returns when the test said `go`."""
        await self._go.wait()

    def go(self) -> None:
        """The client has seen the beginning: scripts pass their GO."""
        self._loop.call_soon_threadsafe(self._go.set)

    def hold(self) -> None:
        """Scripts stop at their next GO."""
        self._loop.call_soon_threadsafe(self._go.clear)


def echo(method: bytes, request_id: str, target: bytes) -> bytes:
    """The answer of a sound provider: it says which request it answers."""
    body = b'{"echo":"%b","target":"%b"}' % (request_id.encode(), target.replace(b'"', b'\\"'))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(
        body
    )
    head += b"x-echo: %b\r\n\r\n" % request_id.encode()
    return head if method == b"HEAD" else head + body


def _judge(role: type[h11.CLIENT] | type[h11.SERVER]) -> h11.Connection:
    return h11.Connection(role, max_incomplete_event_size=1024 * 1024)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for what must happen sooner or later."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.002)


def given_up(link: Link) -> None:
    """Wait for the gateway to close a connection that it must not use again."""
    until(lambda: link.closed, "the gateway gives its connection up")


class Answer:
    """One answer as a client saw it. `complete` is the judge's word; `interims` came before it."""

    def __init__(self) -> None:
        self.status = 0
        self.fields: dict[bytes, bytes] = {}
        self.body = b""
        self.complete = False
        self.interims: list[int] = []

    @property
    def closes(self) -> bool:
        return b"close" in self.fields.get(b"connection", b"").lower()

    def __repr__(self) -> str:
        return f"<{self.status} {self.fields} {self.body[:200]!r} complete={self.complete}>"


class Client:
    """A client that sends what it is told and reads what comes, one answer at a time. With `tls` it
    speaks TLS to a gateway called localhost."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self._sock = tls.wrap_socket(
                self._sock, server_hostname="localhost", suppress_ragged_eofs=False
            )
        self._rest = b""
        self.reset = False
        self.on_bytes: Callable[[], None] | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.close()

    def send(self, data: bytes) -> None:
        """All of `data`. A gateway that has refused already may not take the rest of it."""
        try:
            self._sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            self.reset = True

    def finish(self) -> None:
        """Close this side: nothing more will be sent."""
        self._sock.shutdown(socket.SHUT_WR)

    def receive(self) -> bytes:
        """What is there, b"" at the end; `reset` tells how it ended."""
        try:
            data = self._sock.recv(262144)
        except (ConnectionResetError, ssl.SSLEOFError):
            self.reset = True  # or, over TLS, an end that nobody vouches for
            return b""
        if data and self.on_bytes is not None:
            self.on_bytes()
        return data

    def answer(self, method: bytes = b"GET") -> Answer:
        """The next answer, as far as it goes. The judge raises on what is no HTTP at all."""
        judge = _judge(h11.CLIENT)
        judge.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        judge.send(h11.EndOfMessage())
        answer = Answer()
        ended = False
        if self._rest:
            judge.receive_data(self._rest)
            self._rest = b""
        while True:
            try:
                event = judge.next_event()
            except h11.RemoteProtocolError:
                if ended:
                    return answer  # the end came before the end of the message
                raise
            if event is h11.NEED_DATA:
                data = self.receive()
                ended = not data
                if self.reset:
                    return answer  # the judge does not tell a reset from a FIN
                judge.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                answer.interims.append(event.status_code)
            elif isinstance(event, h11.Response):
                answer.status = event.status_code
                answer.fields = dict(event.headers)
            elif isinstance(event, h11.Data):
                answer.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._rest = judge.trailing_data[0]
                answer.complete = True
                return answer
            else:
                return answer

    def rest(self) -> bytes:
        """Everything until the connection ends."""
        data, self._rest = self._rest, b""
        while part := self.receive():
            data += part
        return data


GOOD = (
    b"GET /openai/models HTTP/1.1\r\n"
    b"Host: gateway\r\n"
    b"Authorization: Bearer @KEY@\r\n"
    b"X-Request-Id: @ID@\r\n\r\n"
)


def fill(data: bytes, name: str) -> bytes:
    """Put in the id of the request and Alice's key."""
    return data.replace(b"@ID@", name.encode()).replace(b"@KEY@", ALICE.encode())


class Stage:
    """The gateway of a whole table and its provider."""

    def __init__(
        self, gateway: Gateway, recorder: Recorder, tls: ssl.SSLContext | None = None
    ) -> None:
        self.gateway = gateway
        self.recorder = recorder
        self._tls = tls
        self._numbers = itertools.count()

    def name(self, kind: str) -> str:
        """An id that no other request has."""
        return f"{kind}-{next(self._numbers)}"

    def client(self) -> Client:
        return Client(self.gateway.port, self._tls)

    def good(self, client: Client) -> str:
        """One good request, and that the answer is its own. Returns its id."""
        name = self.name("next")
        client.send(fill(GOOD, name))
        answer = client.answer()
        assert (answer.status, answer.complete) == (200, True), answer
        assert orjson.loads(answer.body)["echo"] == name
        return name

    def good_elsewhere(self) -> str:
        """The same on a connection of its own."""
        with self.client() as client:
            return self.good(client)

    def seen(self, name: str) -> list[Message]:
        """What the provider saw of this id."""
        return [each for each in self.recorder.messages if each.id == name]


@contextlib.contextmanager
def staged(
    folder: Path,
    *,
    recorder_tls: ssl.SSLContext | None = None,
    client_tls: ssl.SSLContext | None = None,
    more: str = "",
    **settings: Any,
) -> Iterator[Stage]:
    """One gateway for a whole table; it must end well and have met no error of its own. `@PORT@`
    in `more` and `base_url` stands for the provider's port."""
    with Recorder(recorder_tls) as recorder:
        port = str(recorder.port)
        if "base_url" in settings:
            settings["base_url"] = settings["base_url"].replace("@PORT@", port)
        gateway = Gateway(
            folder,
            recorder.port,
            store="memory:",
            budgets=PER_USER.format(limit=10**12),
            more=more.replace("@PORT@", port),
            **settings,
        )
        try:
            yield Stage(gateway, recorder, client_tls)
        finally:
            code = gateway.stop()
        log = gateway.log.read_text()
        assert code == 0, log
        assert "Traceback" not in log, log
