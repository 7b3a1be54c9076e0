"""The admin port: /metrics, /healthz, /api.

Strictness over speed: h11 reads every request. Everything that shows keys or budgets asks for the
token; without a token configured it does not exist. Bounds: MAX_CONNECTIONS, a head of h11's 16 KiB
within HEAD_TIMEOUT, no request body. A slow client holds one connection and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import h11
import orjson
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from fastgw import clock
from fastgw.downstream.listener import name_of
from fastgw.errors import StoreUnavailable
from fastgw.usage_report import DEFAULT_BY, DEFAULT_SINCE, read_since

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    UsageView = Callable[[Sequence[str], float], Awaitable[list[dict[str, Any]]]]

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
HEAD_TIMEOUT = 10.0
IDLE_TIMEOUT = 75.0
LINGER_TIMEOUT = 2.0
READ_SIZE = 16 * 1024
_JSON = "application/json"
_PATHS = "paths: /metrics /healthz/live /healthz/ready /api/status /api/budgets /api/usage"


@dataclass(frozen=True, slots=True)
class Views:
    """What the port shows. `ready` gives whether the process serves, and the reason in a word."""

    metrics: Callable[[], Awaitable[bytes]]
    ready: Callable[[], tuple[bool, str]]
    status: Callable[[], Awaitable[dict[str, Any]]]
    budgets: Callable[[], Awaitable[list[dict[str, Any]]]]
    usage: UsageView | None = None
    """By which fields, since which epoch second. Raises ValueError for a field that is none."""


class _Answer(Exception):
    """An answer, from wherever it is decided."""

    def __init__(
        self, status: int, body: bytes, kind: str = _JSON, extra: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.kind = kind
        self.extra = extra


def _error(status: int, code: str, message: str, *extra: tuple[str, str]) -> _Answer:
    return _Answer(
        status, orjson.dumps({"error": {"code": code, "message": message}}), _JSON, extra
    )


class AdminServer:
    """See the module. `address` is where it listens, after `start`."""

    def __init__(self, listen: str, token: str, views: Views) -> None:
        self.address = ""
        self._listen = listen
        self._views = views
        self.use_token(token)
        self._server: asyncio.Server | None = None
        self._open = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._idle: dict[asyncio.Task[Any], None] = {}
        """Those that wait for a next request, the longest waiting first."""

    def use_token(self, token: str) -> None:
        """Ask for this token from now on; "" turns the API off."""
        self._token = token.encode()

    async def start(self, sock: socket.socket | None = None) -> None:
        """Listen, on `sock` where one is given. Raises OSError."""
        if sock is not None:
            if sock.family == socket.AF_UNIX:
                start_unix = asyncio.start_unix_server
                self._server = await start_unix(self._serve, sock=sock, limit=READ_SIZE)
            else:
                self._server = await asyncio.start_server(self._serve, sock=sock, limit=READ_SIZE)
            self.address = name_of(sock)
            self._listen = ""  # its path is not ours to remove
            return
        if self._listen.startswith("unix:"):
            path = self._listen.removeprefix("unix:")
            _remove_stale(path)
            self._server = await asyncio.start_unix_server(self._serve, path, limit=READ_SIZE)
            os.chmod(path, 0o600)
            self.address = self._listen
            return
        host, _, port = self._listen.rpartition(":")
        self._server = await asyncio.start_server(
            self._serve, host.strip("[]"), int(port), limit=READ_SIZE
        )
        self.address = name_of(self._server.sockets[0])

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listen.startswith("unix:"):
            _remove_stale(self._listen.removeprefix("unix:"))
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open += 1
        try:
            if self._open <= MAX_CONNECTIONS or self._give_way():
                await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            self._open -= 1
            self._tasks.discard(task)
            self._idle.pop(task, None)
            writer.close()

    def _give_way(self) -> bool:
        """End the connection that has waited longest for a next request: who keeps connections open
        does not keep a probe of readiness out. False if there is none."""
        if not self._idle:
            return False
        longest = next(iter(self._idle))
        del self._idle[longest]
        longest.cancel()
        return True

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        timeout = HEAD_TIMEOUT
        task = asyncio.current_task()
        assert task is not None
        while True:
            try:
                if timeout == IDLE_TIMEOUT:
                    self._idle[task] = None
                async with asyncio.timeout(timeout):
                    request = await _next_request(connection, reader)
                if request is None:
                    return
                answer = await self._answer(request)
                head_only = request.method == b"HEAD"
            except h11.RemoteProtocolError as error:
                answer = _error(error.error_status_hint, "malformed_request", str(error))
                head_only = False
            except _Answer as refusal:
                answer, head_only = refusal, False
            self._idle.pop(task, None)
            for data in _frames(connection, answer, head_only):
                writer.write(data)
            async with asyncio.timeout(HEAD_TIMEOUT):
                await writer.drain()
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                await _linger(reader, writer)
                return
            connection.start_next_cycle()
            timeout = IDLE_TIMEOUT

    async def _answer(self, request: h11.Request) -> _Answer:
        target = request.target.decode("ascii", "replace")
        path = target.partition("?")[0]
        views = self._views
        try:
            if path in ("/metrics", "/healthz/live", "/healthz/ready"):
                _require_get(request)
                if path == "/metrics":
                    return _Answer(200, await views.metrics(), CONTENT_TYPE_PLAIN_0_0_4)
                if path == "/healthz/live":
                    return _Answer(200, b'{"status":"live"}')
                ready, reason = views.ready()
                return _Answer(200 if ready else 503, orjson.dumps({"status": reason}))
            if path in ("/api/status", "/api/budgets", "/api/usage"):
                self._authorise(request)
                _require_get(request)
                if path == "/api/usage" and views.usage is not None:
                    return _Answer(200, orjson.dumps(await _usage(views.usage, target)))
                if path == "/api/status":
                    return _Answer(200, orjson.dumps(await views.status()))
                return _Answer(200, orjson.dumps(await views.budgets()))
        except _Answer as answer:
            return answer
        except StoreUnavailable as error:
            log.warning("admin: %s: store away: %s", path, error)
            return _error(
                503,
                "store_unavailable",
                "the store is away, and this view asks it; try again",
                ("retry-after", "1"),
            )
        except Exception:
            log.exception("admin: %s failed", path)
            return _error(500, "internal_error", "this view failed; the log has the reason")
        return _error(404, "not_found", _PATHS)

    def _authorise(self, request: h11.Request) -> None:
        if not self._token:
            raise _error(404, "api_off", "the admin API is off; set [admin] token to turn it on")
        shown = [value for name, value in request.headers if name == b"authorization"]
        scheme, _, token = shown[0].partition(b" ") if len(shown) == 1 else (b"", b"", b"")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._token):
            raise _error(
                401,
                "invalid_token",
                "send 'Authorization: Bearer <[admin] token>'",
                ("www-authenticate", "Bearer"),
            )


async def _next_request(
    connection: h11.Connection, reader: asyncio.StreamReader
) -> h11.Request | None:
    """The next request, its body refused; None when the client is done."""
    request = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(READ_SIZE))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage):
            return request
        elif isinstance(event, h11.Data):
            raise _error(413, "body_too_large", "no path of this port takes a body")
        else:
            return None


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read on for a while: closing over unread bytes resets the connection and with it the answer
    that the client has not read yet (RFC 9112, 9.6)."""
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_TIMEOUT):
            while await reader.read(READ_SIZE):
                pass


def _frames(connection: h11.Connection, answer: _Answer, head_only: bool) -> list[bytes]:
    headers = [
        ("content-type", answer.kind),
        ("content-length", str(len(answer.body))),
        ("cache-control", "no-store"),
        *answer.extra,
    ]
    if connection.their_state is not h11.DONE:
        headers.append(("connection", "close"))
    out = [connection.send(h11.Response(status_code=answer.status, headers=headers))]
    if not head_only:
        out.append(connection.send(h11.Data(data=answer.body)))
    out.append(connection.send(h11.EndOfMessage()))
    return [data for data in out if data]


async def _usage(view: UsageView, target: str) -> list[dict[str, Any]]:
    """The rows that `?by=…&since=…` asks for; `by` may be repeated or hold commas."""
    query = parse_qs(target.partition("?")[2])
    by = [name for text in query.get("by", ()) for name in text.split(",") if name]
    try:
        since = read_since(query.get("since", [DEFAULT_SINCE])[-1], clock.wall())
        return await view(by or DEFAULT_BY, since)
    except ValueError as error:
        raise _error(400, "invalid_query", str(error)) from None


def _require_get(request: h11.Request) -> None:
    if request.method not in (b"GET", b"HEAD"):
        raise _error(405, "method_not_allowed", "GET or HEAD", ("allow", "GET, HEAD"))


def _remove_stale(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
