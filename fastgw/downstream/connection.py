"""One client connection: bytes into requests, one exchange at a time, answers out.

States, in the order of a connection's life:

    opening   connected, no byte yet                    header_timeout, closes without a word
    idle      between two requests                      idle_timeout, closes without a word
    head      part of a request head is here            header_timeout for the whole head, then 408
    body      the head is with an exchange, body comes  body_timeout for each 4 KiB, then 408
    answering the request is complete                   send_timeout while the client takes nothing
    lingering answered and closing, input is discarded  a few seconds, so that the answer survives
    closed

Pipelined requests wait as bytes until the exchange before them is done; past `buffer_size` reading
pauses. After any doubt about framing the connection answers and closes, and never reads on. A FIN
from the client is taken as its leaving, as nginx does: what a cancelled SDK call sends is a FIN,
and going on would spend its owner's budget.

The connection is handed its handler and knows neither keys nor budgets.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final, cast

from fastgw.compiled import mypyc_attr
from fastgw.errors import (
    BadRequest,
    BodyTooLarge,
    HeadTooLarge,
    Refusal,
    RequestTimeout,
    TargetTooLong,
)
from fastgw.http1.body import BadChunk, ChunkedDecoder
from fastgw.http1.request import UNSIZED, HeadMemo, RequestHead, read_request_head
from fastgw.http1.serialize import CONTINUE
from fastgw.turn import FULL_READ, Outlet

if TYPE_CHECKING:
    from fastgw.callbacks import Callbacks
    from fastgw.config.tables import Server
    from fastgw.downstream.connections import Connections
    from fastgw.flow_control import Sweeper

log = logging.getLogger(__name__)

LINGER = 3.0
LINGER_BYTES = 1024 * 1024
BODY_PROGRESS = 4096
"""Bytes of a body that must come within `body_timeout`: a byte a second is no upload."""
_NO_LINGER = struct.pack("ii", 1, 0)
_TCP_INFO: Final = getattr(socket, "TCP_INFO", 0)
_ACKED: Final = slice(120, 128)
"""Where `tcpi_bytes_acked` is in Linux's `struct tcp_info`."""
AT_ONCE: Final = 16
"""Requests of a connection that are begun in one turn of the loop: a pipeline of refusals, which
wait for nobody, is not to keep others waiting."""


@mypyc_attr(allow_interpreted_subclasses=True)  # by tests
class Handler:
    """What the connection is handed: where requests go."""

    __slots__ = ()

    def begin(self, connection: DownstreamConnection, head: RequestHead, length: int) -> Callbacks:
        """A request head is here; its body (`length` bytes or UNSIZED) follows by `on_body`."""
        raise NotImplementedError

    def reject(
        self, connection: DownstreamConnection, head: RequestHead, length: int, refusal: Refusal
    ) -> None:
        """A request whose body will not be read: answer with `refusal`, or with why its sender
        would have been refused anyway."""
        raise NotImplementedError

    def refuse(self, connection: DownstreamConnection, refusal: Refusal) -> None:
        """Bytes that are no request: write the answer and record it."""
        raise NotImplementedError


_TAKING = frozenset({"answering", "idle", "lingering", "closed"})
"""States in which the client may still take an answer; "closed": over TLS, where a close writes
what waits, and while draining."""


class DownstreamConnection(asyncio.Protocol):
    """See the module. The exchange writes through `write` and ends with `done`."""

    __slots__ = (
        "_body",
        "_buffer",
        "_busy",
        "_connections",
        "_decoder",
        "_exchange",
        "_expects",
        "_handler",
        "_left",
        "_mark",
        "_memo",
        "_paused",
        "_server",
        "_state",
        "_sweeper",
        "_taken",
        "_unsent",
        "address",
        "bytes_in",
        "expires",
        "full",
        "transport",
        "write",
    )

    def __init__(
        self, handler: Handler, server: Server, sweeper: Sweeper, connections: Connections
    ) -> None:
        # for the life of the connection
        self._handler = handler
        self._server = server
        self._sweeper = sweeper
        self._connections = connections
        self._memo = HeadMemo()
        self._state = "opening"
        self.expires = 0.0
        self.address = ""
        # for one request
        self._exchange: Callbacks | None = None
        self._left = 0  # body bytes to come; UNSIZED while chunked
        self._body = 0  # body bytes so far
        self._mark = 0  # body bytes, or bytes that wait, when the present time began
        self._decoder: ChunkedDecoder | None = None
        self._expects = False
        self.bytes_in = 0
        # for the flow of bytes
        self._buffer = bytearray()
        self._busy = False  # _read is on the stack
        self._paused = False
        self.full = False  # the client does not take what was written
        self._taken = 0  # by the client, as the present time began; see `_progress`
        self._unsent = 0

    # called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        outlet = self.transport = Outlet(transport, self._sweeper.turn)
        self.write = outlet.write
        cast("asyncio.Transport", transport).set_write_buffer_limits(high=self._server.buffer_size)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if isinstance(peer, tuple) else "unix"
        connections = self._connections
        if connections.draining or not connections.has_room(self._server.max_connections):
            self._state = "closed"
            outlet.abort()
            return
        connections.add(self)
        self._sweeper.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        state = self._state
        if state == "idle":
            memo = self._memo
            end = memo.match(data)
            if end and memo.length == len(data) - end and memo.head is not None and not self.full:
                self._begin(memo.head, memo.length, data, end)  # one whole request, as mostly
            else:
                self._read(self._take_buffer() + data if self._buffer else data)
        elif state in ("answering", "head", "opening"):
            if state == "opening":
                self._read(data)
                return
            self._buffer += data
            if state == "head":
                self._read(self._take_buffer(), len(data) + 3)
            elif len(self._buffer) > self._server.buffer_size and not self._paused:
                self._paused = True
                self.transport.pause_reading()
        elif state == "body":
            self._read(data)
            if len(data) >= FULL_READ and self._state == "body" and not self._paused:
                # Others have their turn before the next: this may have been many small chunks.
                self.transport.pause_reading()
                asyncio.get_running_loop().call_soon(self._read_on)
        elif state == "lingering":
            self._unsent += len(data)
            if self._unsent > LINGER_BYTES:
                self.transport.abort()

    def eof_received(self) -> bool:
        """The client closed its side: it is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by whomever."""
        self._state = "closed"
        self._sweeper.discard(self)
        self._connections.discard(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_disconnect()

    def pause_writing(self) -> None:
        """More than `buffer_size` waits for the client: it gets no more before it takes that."""
        self.full = True
        self.expires = 0.0
        if self._exchange is not None:
            self._exchange.on_client_full()

    def resume_writing(self) -> None:
        """The client took what waited."""
        self.full = False
        if self._buffer or self._paused:
            asyncio.get_running_loop().call_soon(self._go_on)
        if self._exchange is not None:
            self._exchange.on_client_ready()

    # called by the sweeper

    @property
    def patience(self) -> float:
        """Seconds that the present state may last; see flow_control."""
        state = self._state
        if state in _TAKING:
            self._mark = self.transport.get_write_buffer_size()
            if self._mark:
                self._taken = self._progress()
                return self._server.send_timeout  # of this answer, or of the last one
            if state == "answering":
                return 0.0
        if state == "idle":
            return self._server.idle_timeout
        if state == "body":
            self._mark = self._body
            return self._server.body_timeout
        return LINGER if state == "lingering" else self._server.header_timeout

    def expired(self) -> None:
        """The present state lasted too long."""
        state = self._state
        if state in _TAKING:
            if self._mark and (
                self.transport.get_write_buffer_size() < self._mark
                or self._progress() != self._taken  # and more was written meanwhile
            ):
                self.expires = 0.0  # it takes some: slow, not stuck
            elif self._mark:
                self._reset()  # what is left may end with the connection: no FIN after a part of it
            else:
                self.transport.abort()
        elif state == "head":
            self._refuse(RequestTimeout("the request head took too long; send it at once"))
        elif state == "body":
            if self._paused or self._body - self._mark >= BODY_PROGRESS:
                self.expires = 0.0  # it comes, or it is we who do not read
                return
            self._break(RequestTimeout("the request body came too slowly; send it at once"))
        else:
            self.transport.abort()

    def _progress(self) -> int:
        """A number that stays as it is while the client takes nothing: bytes that its kernel has
        acknowledged. Where no kernel tells, what waits; then it changes with what is written, too,
        until that is `buffer_size`."""
        sock = self.transport.get_extra_info("socket")
        if sock is None or sock.family == socket.AF_UNIX or not _TCP_INFO:
            return self.transport.get_write_buffer_size()
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _ACKED.stop)
        except (OSError, ValueError):  # it is closed; `patience` is asked once more
            return 0
        return int.from_bytes(info[_ACKED], sys.byteorder)

    # called by the exchange

    def pause_body(self) -> None:
        """The provider does not take the upload: stop reading it."""
        if not self._paused and self._state == "body":
            self._paused = True
            self.transport.pause_reading()

    def resume_body(self) -> None:
        """The provider takes bytes again."""
        if self._paused and self._state == "body":
            self._paused = False
            self.expires = 0.0
            self.transport.resume_reading()

    def invite_body(self) -> None:
        """The request is welcome: tell a client that waits for 100 Continue (RFC 9110, 10.1.1)."""
        if self._expects:
            self._expects = False
            self.write(CONTINUE)

    @property
    def exchange(self) -> Callbacks | None:
        """The exchange under way."""
        return self._exchange

    @property
    def closes_after_answer(self) -> bool:
        """Whether the answer being written is the last one: it must say so."""
        return self._connections.draining or self._state == "body"

    def done(self, keep_alive: bool) -> None:
        """The answer is written. Go on to the next request, or close."""
        self._exchange = None
        self.expires = 0.0
        if self._state == "closed":
            return
        unread = self._state == "body"
        if not keep_alive or unread or self._connections.draining:
            self._close(linger=unread or not keep_alive)
            return
        self._state = "idle"
        if not self._busy and (self._buffer or self._paused):
            self._go_on()

    def cut(self, flush: bool) -> None:
        """Close in the middle of an answer, so that it cannot be taken for a whole one.

        `flush` lets what was written out first; without it the client sees a reset, which is the
        only sign where the end of the connection is the end of the body.
        """
        self._exchange = None
        if self._state != "closed":
            self._state = "closed"
            if flush:
                self.transport.close()
            else:
                self._reset()

    def _reset(self) -> None:
        """Close by RST. An abort alone sends FIN; a unix socket has nothing else."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()

    # requests

    def _take_buffer(self) -> bytes:
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def _read(self, data: bytes, fresh: int = 0) -> None:
        """Take requests out of `data` until it is used up or one of them is being answered.

        `fresh` is how many bytes at the end have not been searched for the end of the head.
        """
        self._busy = True
        number = 0
        try:
            while data:
                if self._state == "body":
                    data = self._read_body(data)
                elif self._state in ("idle", "opening", "head"):
                    if self.full or number == AT_ONCE:
                        self._put_off(data)
                        return
                    number += 1
                    data = self._read_head(data, fresh)
                    fresh = 0
                else:
                    if self._state == "answering":
                        self._buffer += data
                    return
        finally:
            self._busy = False

    def _put_off(self, data: bytes) -> None:
        """Requests that wait for the next turn of the loop, in which others are served, or until
        the client has taken the answers that it has."""
        self._buffer += data
        if self._state == "head":
            self._state = "idle"  # it is we who do not read: a head has its time afterwards
            self.expires = 0.0
        if not self._paused:
            self._paused = True
            self.transport.pause_reading()
        if not self.full:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Read what was put off, unless that has to wait still."""
        if self._state in ("idle", "opening", "head"):
            if self.full:
                if not self._paused:  # what comes next is not to overtake what waits
                    self._paused = True
                    self.transport.pause_reading()
                return
            if self._paused:
                self._paused = False
                self.transport.resume_reading()
            try:
                self._read(self._take_buffer())
            except Exception:  # a fault of ours, as one in `data_received`
                log.exception("a request could not be read")
                self._reset()

    def _read_on(self) -> None:
        if not self._paused and self._state != "closed":
            self.transport.resume_reading()

    def _read_head(self, data: bytes, fresh: int) -> bytes:
        memo = self._memo
        end = memo.match(data)
        if end and memo.length != UNSIZED and memo.head is not None:
            return self._begin(memo.head, memo.length, data, end)
        if data[:2] == b"\r\n":
            data = data[2:]  # one empty line before a request line is ignored (RFC 9112, 2.2)
            if not data:
                return b""
        server = self._server
        end = data.find(b"\r\n\r\n", max(0, len(data) - fresh) if fresh else 0) + 4
        if end == 3:
            self._check_partial_head(data, fresh)
            if self._state in ("idle", "opening", "head"):
                if self._state != "head":
                    self._state = "head"
                    self.expires = 0.0
                self._buffer += data
            return b""
        try:
            if end > server.max_head:
                raise HeadTooLarge(f"the head is larger than {server.max_head} bytes")
            if data.find(b"\r\n") > server.max_request_line:
                raise TargetTooLong(f"the request line passes {server.max_request_line} bytes")
            raw = data[:end]
            heads = self._connections.heads
            found = heads.find(self.address, raw)
            if found is None:
                head, length = read_request_head(raw, server.max_header_fields)
                memo.remember(raw, head)
                heads.remember(self.address, raw, head)
            else:
                head, length = memo.recall(found), memo.length
        except Refusal as refusal:
            self._refuse(refusal)
            return b""
        kept = head.plan is not None
        rest = self._begin(head, length, data, end)
        if head.plan is None:
            memo.head = None  # refused: nobody is to keep it
        elif not kept:
            heads.keep(head)
        return rest

    def _check_partial_head(self, data: bytes, fresh: int) -> None:
        """Refuse early what can never become a request: it may wait for an answer for ever."""
        # Of a head that comes in many reads only what is new is looked at, from the byte before.
        new = data[-fresh:].removeprefix(b"\n") if fresh else data
        server = self._server
        if len(data) > server.max_head:
            self._refuse(HeadTooLarge(f"the head is larger than {server.max_head} bytes"))
        elif not 0x41 <= data[0] <= 0x5A and data != b"\r":
            self._refuse(BadRequest("not an HTTP/1.1 request; TLS and HTTP/2 are not spoken here"))
        elif new.count(b"\n") != new.count(b"\r\n"):
            self._refuse(BadRequest("a line ends in a bare LF; lines end in CRLF (RFC 9112, 2.2)"))
        elif b"\r\n" in data and b" HTTP/" not in data[: data.find(b"\r\n")]:
            self._refuse(BadRequest("the request line names no version; HTTP/0.9 is not spoken"))
        elif len(data) > server.max_request_line and not (
            0 <= data.find(b"\r\n") <= server.max_request_line
        ):
            self._refuse(TargetTooLong(f"the request line passes {server.max_request_line} bytes"))

    def _begin(self, head: RequestHead, length: int, data: bytes, end: int) -> bytes:
        """Open the exchange of a head; returns what follows the part of its body that is here."""
        size = len(data)
        self.bytes_in = end
        if length > self._server.max_request_body:
            self._state = "body"
            self._handler.reject(self, head, length, self._too_large())
            return b""
        if length >= 0 and size - end >= length:
            self._state = "answering"
            self.expires = 0.0
            stop = self.bytes_in = end + length
            exchange = self._handler.begin(self, head, length)
            if self._state == "answering":  # else it was refused, and the answer is out
                self._exchange = exchange
                exchange.on_body(data[end:] if stop == size else data[end:stop], True)
            return b"" if stop == size else data[stop:]
        self._state = "body"
        self.expires = 0.0
        self._left = length
        self._body = 0
        self._decoder = ChunkedDecoder() if length == UNSIZED else None
        self._expects = head.expects_continue and size == end
        exchange = self._handler.begin(self, head, length)
        if self._state != "body":
            return b""
        self._exchange = exchange
        return data[end:]

    def _read_body(self, data: bytes) -> bytes:
        exchange = self._exchange
        if exchange is None:
            return b""
        decoder = self._decoder
        if decoder is None:
            piece = data[: self._left]
            rest = data[self._left :]
            self._left -= len(piece)
            last = not self._left
        else:
            try:
                piece = decoder.feed(data)
            except BadChunk as error:
                self._break(BadRequest(f"chunked body: {error}"))
                return b""
            rest = decoder.rest
            last = decoder.ended
        self.bytes_in += len(data) - len(rest)
        self._body += len(piece)
        if self._body > self._server.max_request_body:
            self._break(self._too_large())
            return b""
        if last:
            self._state = "answering"
            self.expires = 0.0  # the clock of the body is over
        if piece or last:
            exchange.on_body(piece, last)
        return rest

    # ends

    def _refuse(self, refusal: Refusal) -> None:
        """Answer bytes that are no request, and close."""
        self._handler.refuse(self, refusal)
        self._close(linger=True)

    def _too_large(self) -> Refusal:
        return BodyTooLarge(f"the body is larger than {self._server.max_request_body} bytes")

    def _break(self, refusal: Refusal) -> None:
        exchange = self._exchange
        if exchange is None:
            self._close(linger=True)
        else:
            exchange.on_broken_body(refusal)

    def _close(self, linger: bool) -> None:
        """Close after what was written. With `linger` the input is discarded for a while first: a
        close with unread input makes the kernel send RST, and the client loses the answer."""
        if self._state == "closed":
            return
        self._buffer.clear()
        transport = self.transport
        if self._paused:
            self._paused = False
            transport.resume_reading()
            linger = True
        if linger and transport.can_write_eof():
            self._state = "lingering"
            self.expires = 0.0
            self._unsent = 0
            transport.write_eof()
        else:
            self._state = "closed"
            transport.close()

    def drain(self) -> None:
        """The worker stops: close now if no request is under way."""
        if self._state in ("idle", "opening"):
            self._close(linger=False)

    def give_way(self) -> bool:
        """Close if nothing but a next request is waited for, and that for a second or more."""
        if self._state not in ("idle", "opening") or not self.expires or self._buffer:
            return False
        if self.transport.get_write_buffer_size():
            return False  # it still takes its last answer
        self._state = "closed"
        self._sweeper.discard(self)
        self._connections.discard(self)
        self.transport.abort()
        return True

    def shut_down(self) -> None:
        """The worker waited long enough: end the exchange under way, if any, and close."""
        exchange = self._exchange
        if exchange is not None:
            exchange.on_shutdown()
        if self._state not in ("closed", "lingering") or exchange is None:
            self._reset()

    def __repr__(self) -> str:
        return f"<DownstreamConnection {self._state} {self.address}>"
