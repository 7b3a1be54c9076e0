"""One connection to a provider: a request out, one response in, the connection back to its pool.

States: idle (in the pool), asking (request sent or being sent, no byte of the answer yet),
answering (the head is here), closed.

The provider is not trusted with framing either. Whatever does not read as exactly one response to
the one request that was asked fails the exchange and closes the connection: bytes while idle, bytes
after the end, a bad head, a bad chunk, an end before the end. A connection goes back to the pool
only from a message that ended soundly, with nothing after it, to a request that was sent in full.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

from fastgw.compiled import mypyc_attr
from fastgw.http1.body import BadChunk, ChunkedDecoder
from fastgw.http1.response import (
    CHUNKED,
    UNTIL_CLOSE,
    BadResponse,
    ResponseHead,
    read_response_head,
)
from fastgw.turn import DIRECT, FULL_READ, Outlet

if TYPE_CHECKING:
    from fastgw.callbacks import Callbacks
    from fastgw.flow_control import Sweeper
    from fastgw.upstream.pool import Pool

log = logging.getLogger(__name__)

MAX_HEAD = 64 * 1024
MAX_INTERIM = 8

SMALL: Final = 16 * 1024
"""Bytes of a request that a socket takes at once: its buffer is larger (tcp_wmem), and empty."""


@mypyc_attr(allow_interpreted_subclasses=True)  # by tests
class UpstreamConnection(asyncio.Protocol):
    """See the module. `send` starts a request; what comes back goes to the exchange."""

    __slots__ = (
        "_buffer",
        "_decoder",
        "_ended",
        "_exchange",
        "_head",
        "_interim",
        "_large",
        "_left",
        "_method",
        "_paused",
        "_pool",
        "_state",
        "_sweeper",
        "_whole",
        "expires",
        "idle_until",
        "reused",
        "transport",
    )

    def __init__(self, pool: Pool, sweeper: Sweeper) -> None:
        # for the life of the connection
        self._pool = pool
        self._sweeper = sweeper
        self._state = "idle"
        self.expires = 0.0
        self.reused = False
        self._ended = False  # the provider said that it sends no more
        self.idle_until = 0.0  # monotonic second at which the pool gives it up
        # for one exchange
        self._exchange: Callbacks | None = None
        self._method = b""
        self._whole = False  # the request is written in full
        self._large = False  # it may not fit into the kernel's buffer
        self._buffer = b""
        self._head: ResponseHead | None = None
        self._left = 0
        self._decoder: ChunkedDecoder | None = None
        self._interim = 0
        self._paused = False

    # called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = Outlet(transport, self._sweeper.turn)
        cast("asyncio.Transport", transport).set_write_buffer_limits(high=self._pool.buffer_size)
        limit_reading = getattr(transport, "set_read_buffer_limits", None)
        if limit_reading is not None:
            # Over TLS a paused transport reads on, by default 256 KiB that nobody asked for, and
            # drops them when the provider closes: the end of an answer to a slow client.
            limit_reading(high=1)
        self._sweeper.add(self)

    def data_received(self, data: bytes) -> None:
        """Bytes from the provider."""
        exchange = self._exchange
        if exchange is None:
            self.close()  # nobody asked: never to be taken for an answer
            return
        try:
            if self._state == "answering":
                self.expires = 0.0
                decoder = self._decoder
                if decoder is not None and (body := decoder.one(data)):
                    exchange.on_response_body(body, data, False)
                else:
                    self._take_body(exchange, data)
                if len(data) >= FULL_READ and self._state == "answering" and not self._paused:
                    # Others have their turn before the next: 8 MB that are metered take 5 ms.
                    self.transport.pause_reading()
                    asyncio.get_running_loop().call_soon(self._read_on)
            elif self._state == "asking":
                if self._buffer:
                    data = self._buffer + data
                    self._buffer = b""
                self._take_head(exchange, data)
        except Exception:  # a fault of ours: the client is not to wait for what nobody reads
            log.exception("an answer could not be read")
            self.close()
            exchange.on_upstream_failure("malformed")

    def _read_on(self) -> None:
        if not self._paused and self._state != "closed":
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        """The provider closed its side; connection_lost follows. Over TLS by close_notify: an end
        without one may be anybody's (RFC 8446, 6.1), and then this is not called."""
        self._ended = True
        if self._exchange is None:
            self.close()  # now: who asks later in this turn is not to get it
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed, by whomever."""
        exchange, self._exchange = self._exchange, None
        state, self._state = self._state, "closed"
        self._sweeper.discard(self)
        self._pool.forget(self)
        if exchange is None:
            return
        head = self._head
        until_close = state == "answering" and head is not None and head.length == UNTIL_CLOSE
        if until_close and self._ended and exc is None:
            exchange.on_response_body(b"", None, True)
        else:
            begun = self._buffer or self._interim
            exchange.on_upstream_failure("broken" if begun else "reset")

    def pause_writing(self) -> None:
        """The provider does not take the request body."""
        if self._exchange is not None:
            self._exchange.on_upstream_full()

    def resume_writing(self) -> None:
        """The provider takes bytes again."""
        if self._exchange is not None:
            self._exchange.on_upstream_ready()

    # called by the sweeper

    @property
    def patience(self) -> float:
        """Seconds that the present state may last; see flow_control."""
        if self._paused:
            return 0.0  # it is the client who takes long, perhaps with the answer before
        if self._state == "asking":
            return self._pool.settings.first_byte_timeout
        return self._pool.settings.idle_timeout if self._state == "answering" else 0.0

    def expired(self) -> None:
        """The provider was silent too long."""
        reason = "timeout" if self._state == "asking" else "stalled"
        self._fail(reason)

    # called by the pool and the exchange

    @property
    def open(self) -> bool:
        """Whether a request can be sent: the provider neither closed it nor spoke unasked."""
        return self._state == "idle"

    def send(self, exchange: Callbacks, method: bytes, data: bytes, whole: bool) -> None:
        """Send a request head with the body that is there; `whole` if no more of it follows."""
        self._exchange = exchange
        self._method = method
        self._whole = whole
        self._large = not whole or len(data) > SMALL
        self._state = "asking"
        self._head = None
        self._interim = 0
        self.expires = 0.0
        self.transport.write(data)

    def send_apart(self, exchange: Callbacks, method: bytes, head: bytes, body: bytes) -> None:
        """As `send`, for a whole request. A large body is not joined to the head."""
        self._exchange = exchange
        self._method = method
        self._whole = self._large = True
        self._state = "asking"
        self._head = None
        self._interim = 0
        self.expires = 0.0
        if len(body) > DIRECT:
            self.transport.writelines((head, body))
        else:
            self.transport.write(head + body)

    def send_body(self, data: bytes, last: bool) -> None:
        """Send more of the request body, framed as announced."""
        self.expires = 0.0
        if data:
            self.transport.write(data)
        self._whole = last

    @property
    def unsent(self) -> int:
        """Bytes of the request that the provider has not taken yet."""
        return self.transport.get_write_buffer_size()

    def pause(self) -> None:
        """The client does not take the answer: stop reading it."""
        if not self._paused and self._state != "closed":
            self._paused = True
            self.expires = 0.0
            self.transport.pause_reading()

    def resume(self) -> None:
        """The client takes bytes again."""
        if self._paused and self._state != "closed":
            self._paused = False
            self.expires = 0.0
            self.transport.resume_reading()

    def close(self) -> None:
        """Give the connection up: the provider sees that nobody listens any more."""
        self._exchange = None
        if self._state != "closed":
            self._state = "closed"
            self._sweeper.discard(self)
            self._pool.forget(self)
            self.transport.abort()

    # responses

    def _take_head(self, exchange: Callbacks, data: bytes) -> None:
        end = data.find(b"\r\n\r\n") + 4
        if end == 3:
            if (
                len(data) > MAX_HEAD
                or not b"HTTP/1.".startswith(data[:7])
                or data.count(b"\n") != data.count(b"\r\n")
            ):
                self._fail("malformed")
            else:
                self._buffer = data
            return
        try:
            if end > MAX_HEAD:
                raise BadResponse("head too large")
            head = read_response_head(
                data[:end], self._method, self._pool.settings.forward_ratelimit_headers
            )
            if head.status < 200:
                self._interim += 1
                if head.status not in (100, 103) or self._interim > MAX_INTERIM:
                    raise BadResponse("an interim answer that nobody asked for")
        except BadResponse:
            self._fail("malformed")
            return
        if head.status < 200:
            if end < len(data):
                self._take_head(exchange, data[end:])
            return
        self._head = head
        self._state = "answering"
        self.expires = 0.0
        length = head.length
        size = len(data) - end
        if 0 <= length <= size:
            if length < size and not head.bodyless:
                self._fail("malformed")
                return
            body = data[end:] if length == size else data[end : end + length]
            self._finish(length == size)
            exchange.on_response(head, body, True)
            return
        if length == CHUNKED:
            decoder = self._decoder = ChunkedDecoder()
            try:
                body = decoder.feed(data[end:]) if size else b""
            except BadChunk:
                self._fail("malformed")
                return
            if decoder.rest:
                self._fail("malformed")
                return
            if decoder.ended:
                self._finish(True)
            exchange.on_response(head, body, decoder.ended)
            return
        self._decoder = None
        self._left = length - size
        exchange.on_response(head, data[end:], False)

    def _take_body(self, exchange: Callbacks, data: bytes) -> None:
        decoder = self._decoder
        if decoder is not None:
            try:
                body = decoder.feed(data)
            except BadChunk:
                self._fail("malformed")
                return
            if decoder.rest:
                if body:  # its usage counts; without the last chunk it is no whole answer
                    exchange.on_response_body(body, None, False)
                self._fail("malformed")
                return
            if decoder.ended:
                self._finish(True)
                exchange.on_response_body(body, None, True)
            elif body:
                exchange.on_response_body(body, None, False)
            return
        if self._head is not None and self._head.length == UNTIL_CLOSE:
            exchange.on_response_body(data, None, False)
            return
        left = self._left - len(data)
        if left > 0:
            self._left = left
            exchange.on_response_body(data, None, False)
            return
        if left:
            self._fail("malformed")
            return
        self._finish(True)
        exchange.on_response_body(data, None, True)

    def _finish(self, clean: bool) -> None:
        """The response ended: keep the connection if nothing about it is in doubt."""
        head = self._head
        self._exchange = None
        self._decoder = None
        if self._paused:
            self._paused = False
            self.transport.resume_reading()
        if (
            clean
            and self._whole
            and head is not None
            and head.keep_alive
            # An early answer may come before the provider has taken all of a large request.
            and not (self._large and self.transport.unsent)
        ):
            self._state = "idle"
            self.expires = 0.0
            self._pool.release(self, head.keep_for)
        else:
            self.close()

    def _fail(self, reason: str) -> None:
        exchange = self._exchange
        self.close()
        if exchange is not None:
            exchange.on_upstream_failure(reason)

    def __repr__(self) -> str:
        return f"<UpstreamConnection {self._state} {self._pool.settings.name}>"
