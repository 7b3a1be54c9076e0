"""A stub of an LLM provider: for the demo, the tests and the benchmark.

    POST …/chat/completions, /completions, /embeddings, /responses    JSON or server-sent events
    POST …/messages, …/models/NAME:generateContent, :streamGenerateContent       the same
    GET  …/models
    GET  /stub/log, /stub/last, DELETE /stub/log                      what it was asked and did

Answers are deterministic and made once; `behaviour` says what can be asked for, faults included. It
is no example of a strict server: it reads what the gateway sends, fast.

    fastgw stub --listen 127.0.0.1:8000 --behaviour "events=50;pace=0.02" --log stub.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import os
import signal
import socket
import ssl
import sys
from functools import lru_cache
from typing import Any, cast

import orjson
import uvloop

from fastgw.demo import answers, formats
from fastgw.demo.behaviour import Behaviour
from fastgw.demo.options import add_options
from fastgw.demo.stub_log import Line, StubLog, said_by_body, said_by_events
from fastgw.usage.vocabulary import warm

_OPERATIONS = {
    b"/chat/completions": "chat",
    b"/completions": "completions",
    b"/embeddings": "embeddings",
    b"/responses": "responses",
    b"/models": "models",
}
_LOG_LIMIT = 100_000
_ANSWERS = ("", "cut", "reset", "stall", "error_event")
"""Faults in which an answer is begun."""
_REASONS = {200: b"OK", 400: b"Bad Request", 404: b"Not Found", 429: b"Too Many Requests",
            500: b"Internal Server Error"}  # fmt: skip


class StubProvider:
    """A listening stub. `log` has an entry for each request, `last` the bytes of the latest one.

    An entry: `request_id`, `path`, `model`, `stream`, `prompt`, `completion` (usage that was
    reported; 0 where none was), `events` sent, `end` (done, client_closed or the fault).
    """

    def __init__(
        self, behaviour: str = "", keep_log: bool = True, books: StubLog | None = None
    ) -> None:
        """`books`: gets a line for each exchange; closed with the provider."""
        self.behaviour = Behaviour().changed(behaviour)
        self.books = books
        self.keep_log = keep_log
        self.log: list[dict[str, Any]] = []
        self.last = b""
        self.port = 0
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        reuse: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Listen; `port` 0 takes a free one."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), sock=sock, backlog=4096, ssl=tls
        )
        self.port = sock.getsockname()[1]

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        if self.books is not None:
            for _ in range(100):
                if self.connections:  # each has a line to write
                    await asyncio.sleep(0)
            self.books.close()
            self.books = None


class _Connection(asyncio.Protocol):
    """One connection: requests in order, each answered before the next is looked at."""

    def __init__(self, provider: StubProvider) -> None:
        self._provider = provider
        self._buffer = b""
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._entry: dict[str, Any] | None = None
        self._line: Line | None = None  # of the exchange that is not in the books yet
        self._full = False  # the socket does not take what it was handed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._provider.connections.add(self)
        if self._provider.books is not None:
            self.transport.set_write_buffer_limits(0)  # so that we are told what it has taken

    def connection_lost(self, exc: Exception | None) -> None:
        self._provider.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._entry is not None and not self._entry["end"]:
            self._entry["end"] = "client_closed"
        self._write_down()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._line is not None:
            self._line.flushed = self._line.events
            if self._line.over:
                self._write_down()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._busy:
            self._read()

    def _read(self) -> None:
        while self._buffer and not self._busy:
            end = self._buffer.find(b"\r\n\r\n") + 4
            if end == 3:
                return
            head = self._buffer[:end]
            lowered = head.lower()
            if b"\r\nexpect: 100-continue" in lowered and len(self._buffer) == end:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body, rest = _body(lowered, self._buffer[end:])
            if rest is None:
                return
            if b" /stub/" not in head[:16]:
                self._provider.last = self._buffer[: len(self._buffer) - len(rest)]
            self._buffer = rest
            self._busy = True
            self._answer(head, lowered, body)

    # answers

    def _answer(self, head: bytes, lowered: bytes, body: bytes) -> None:
        method, target, _ = head[: head.index(b"\r\n")].split(b" ")
        path = target.partition(b"?")[0]
        if path.startswith(b"/stub/"):
            self._control(method, path)
            return
        provider = self._provider
        operation, named = formats.find(target, lowered)
        if not operation:
            operation = next((_OPERATIONS[each] for each in _OPERATIONS if path.endswith(each)), "")
        request = orjson.loads(body) if body[:1] == b"{" else {}
        model = named or request.get("model") or "gpt-3.5-turbo"
        try:
            behaviour = _choose(provider.behaviour, _header(head, lowered, b"x-stub"), model)
        except ValueError as error:
            self._send_json(400, orjson.dumps({"error": {"message": str(error)}}))
            return
        stream = request.get("stream") is True or operation in (
            formats.STREAMS_BY_PATH,
            formats.ARRAY,
        )
        if provider.books is not None:
            self._write_down()
            self._line = Line(
                _header(head, lowered, b"x-request-id"),
                _header(head, lowered, b"x-stub-account"),
                request,
                model,
            )
        if provider.keep_log:
            entry = self._entry = {
                "request_id": _header(head, lowered, b"x-request-id"),
                "path": path.decode(),
                "model": model,
                "stream": stream,
                "prompt": 0,
                "completion": 0,
                "events": 0,
                "end": "",
            }
            if len(provider.log) < _LOG_LIMIT:
                provider.log.append(entry)
        else:
            self._entry = None
        options = request.get("stream_options")
        asked = isinstance(options, dict) and options.get("include_usage") is True
        if options is not None and behaviour.rejects:
            self._ended("rejected")
            self._reject(behaviour.rejects)
            return
        run = (operation, model, behaviour, stream, asked)
        if behaviour.first:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(behaviour.first, self._begin, *run)
        else:
            self._begin(*run)

    def _begin(
        self, operation: str, model: str, behaviour: Behaviour, stream: bool, asked: bool
    ) -> None:
        fault, _, at = behaviour.fault.partition(":")
        streams = stream and operation != "embeddings"
        if self._line is not None and operation and fault in _ANSWERS:
            line = self._line
            line.status = 200
            line.usage = (behaviour.prompt, 0 if operation == "embeddings" else behaviour.output)
            line.at_once = not streams or behaviour.split > 0
            line.said = (
                said_by_events(operation, model, behaviour, asked)
                if streams
                else (said_by_body(operation, model, behaviour),)
            )
        if fault == "never":
            self._ended(fault)
        elif fault == "close":
            self._ended(fault)
            self.transport.close()
        elif fault == "garbage":
            self._ended(fault)
            self.transport.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        elif fault == "status":
            message = {"message": f"the stub was asked for a {at}", "type": "stub", "code": None}
            self._ended(fault)
            self._send_json(int(at), orjson.dumps({"error": message}))
        elif not operation:
            self._ended("done")
            self._send_json(404, b'{"error":{"message":"the stub has no such path"}}')
        elif streams:
            kind = b"application/json" if operation == formats.ARRAY else b"text/event-stream"
            events = answers.events(operation, model, behaviour, asked)
            _Stream(self, behaviour, events, kind).next()
            self._reported(behaviour, stream, asked, operation)
        elif fault:
            self._faulty_json(answers.body(operation, model, behaviour), fault, int(at))
        else:
            self._reported(behaviour, stream, asked, operation)
            self._ended("done")
            if behaviour.split or behaviour.framing not in ("auto", "length"):
                data = _whole_json(operation, model, behaviour)
                _Pieces(self, data, behaviour.split, behaviour.framing == "close").next()
            else:
                self.transport.write(_whole_json(operation, model, behaviour))
                self.finished()

    def _faulty_json(self, body: bytes, fault: str, at: int) -> None:
        self._ended(fault)
        self.transport.write(_head(200, b"application/json", len(body)) + body[:at])
        if fault == "cut":
            self.transport.close()
        elif fault == "reset":
            self._reset()

    def _reported(self, behaviour: Behaviour, stream: bool, asked: bool, operation: str) -> None:
        if (
            self._entry is None
            or operation in formats.REPORTS_NOTHING
            or behaviour.usage == "never"
        ):
            return
        always = operation in formats.ALWAYS_REPORT
        if stream and behaviour.usage == "asked" and not asked and not always:
            return
        self._entry["prompt"] = behaviour.prompt
        self._entry["completion"] = 0 if operation == "embeddings" else behaviour.output

    def _ended(self, how: str) -> None:
        if self._entry is not None:
            self._entry["end"] = how
        if self._line is not None:
            self._line.end = how

    def _write_down(self) -> None:
        """The exchange is over, or the connection: put a line into the books."""
        line, self._line = self._line, None
        if line is not None and self._provider.books is not None:
            self._provider.books.write(line.entry(not self._full))

    def _reset(self) -> None:
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.transport.abort()

    def _send_json(self, status: int, body: bytes) -> None:
        if self._line is not None:
            self._line.status = status
        self.transport.write(_head(status, b"application/json", len(body)) + body)
        self.finished()

    def _reject(self, how: int) -> None:
        error = b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"]}]}'
        if how == 1:
            self._send_json(422, error)
            return
        head = _head(400, b"application/json", None, True)
        half = b"%x\r\n%b\r\n" % (len(error), error)
        _Pieces(self, head + half + b"0\r\n\r\n", len(head) + 20, False).next()

    def _control(self, method: bytes, path: bytes) -> None:
        provider = self._provider
        if path == b"/stub/log":
            body = orjson.dumps(provider.log)
            if method == b"DELETE":
                provider.log.clear()
        else:
            body = orjson.dumps({"last": provider.last.decode("latin-1")})
        self._send_json(200, body)

    def finished(self) -> None:
        """The answer is written: on to the next request."""
        self._busy = False
        if self._line is not None:
            self._line.over = True
            if not self._full:
                self._write_down()
        if self._buffer:
            self._read()


class _Stream:
    """A paced stream of events, with faults."""

    def __init__(
        self,
        connection: _Connection,
        behaviour: Behaviour,
        events: tuple[bytes, ...],
        kind: bytes,
    ) -> None:
        self._connection = connection
        self._behaviour = behaviour
        self._events = events
        self._at = 0
        self._chunked = behaviour.framing in ("auto", "chunked")
        self._pack = gzip.compress if behaviour.gzip else None
        fault, _, at = behaviour.fault.partition(":")
        self._fault = fault
        self._until = int(at) if at else len(events)
        length = None
        if behaviour.framing == "length":
            length = sum(len(event) for event in events)
        self._send(
            _head(200, kind, length, self._chunked, bool(self._pack)),
            framed=False,
        )

    def next(self) -> None:
        """Send what is due now and come back for the rest."""
        connection, behaviour = self._connection, self._behaviour
        if connection.transport.is_closing():
            return
        if behaviour.pace:
            if self._at < self._until:
                self._send(self._events[self._at])
                self._at += 1
            if self._at < self._until:
                loop = asyncio.get_running_loop()
                connection._timer = loop.call_later(behaviour.pace, self.next)
                return
        else:
            events = self._events[self._at : self._until]
            self._at = self._until
            if self._pack is not None:
                self._send(self._pack(b"".join(events)), packed=True, events=len(events))
            elif behaviour.split:
                data = b"".join(
                    b"%x\r\n%b\r\n" % (len(event), event) if self._chunked else event
                    for event in events
                ) + (b"0\r\n\r\n" if self._chunked and not self._fault else b"")
                self._count(len(events))
                if not self._fault:
                    connection._ended("done")
                    _Pieces(connection, data, behaviour.split, not self._chunked).next()
                    return
                connection.transport.write(data)
            elif self._chunked:
                connection.transport.write(
                    b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
                )
                self._count(len(events))
            else:
                connection.transport.write(b"".join(events))
                self._count(len(events))
        self._end()

    def _end(self) -> None:
        connection, fault = self._connection, self._fault
        if not fault:
            connection._ended("done")
            if self._chunked:
                connection.transport.write(b"0\r\n\r\n")
            if self._behaviour.framing == "close":
                connection.transport.close()
            connection.finished()
            return
        connection._ended(fault)
        if fault == "cut":
            connection.transport.close()
        elif fault == "reset":
            connection._reset()
        elif fault == "error_event":
            self._send(b'data: {"error":{"message":"the stub was asked to fail","code":500}}\n\n')
            connection.transport.write(b"0\r\n\r\n")
            connection.finished()

    def _count(self, events: int) -> None:
        """So many events were handed to the socket."""
        connection = self._connection
        if connection._entry is not None:
            connection._entry["events"] += events
        line = connection._line
        if line is not None:
            line.events += events
            if not connection._full:
                line.flushed = line.events

    def _send(
        self, data: bytes, framed: bool = True, packed: bool = False, events: int = 1
    ) -> None:
        if framed:
            if self._pack is not None and not packed:
                data = self._pack(data)
            if self._chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
        self._connection.transport.write(data)
        if framed:
            self._count(events)


class _Pieces:
    """Bytes in pieces, each in a turn of the loop of its own."""

    def __init__(self, connection: _Connection, data: bytes, size: int, closes: bool) -> None:
        self._connection = connection
        self._data = data
        self._size = size or len(data)
        self._closes = closes

    def next(self) -> None:
        """Send the next piece."""
        transport = self._connection.transport
        if transport.is_closing():
            return
        transport.write(self._data[: self._size])
        self._data = self._data[self._size :]
        if self._data:
            asyncio.get_running_loop().call_later(0.0005, self.next)
            return
        if self._closes:
            transport.close()
        self._connection.finished()


def _body(lowered: bytes, data: bytes) -> tuple[bytes, bytes | None]:
    """The request body and what follows it; None while it is not complete."""
    if b"\r\ntransfer-encoding: chunked" in lowered:
        body = b""
        while True:
            line, found, rest = data.partition(b"\r\n")
            if not found:
                return b"", None
            size = int(line, 16)
            if len(rest) < size + 2:
                return b"", None
            body += rest[:size]
            data = rest[size + 2 :]
            if not size:
                return body, data
    at = lowered.find(b"\r\ncontent-length:")
    if at < 0:
        return b"", data
    length = int(lowered[at + 17 : lowered.index(b"\r\n", at + 2)])
    return (data[:length], data[length:]) if len(data) >= length else (b"", None)


def _header(head: bytes, lowered: bytes, name: bytes) -> str:
    at = lowered.find(b"\r\n" + name + b":")
    if at < 0:
        return ""
    start = at + len(name) + 3
    return head[start : head.index(b"\r\n", start)].strip().decode("latin-1")


@lru_cache(maxsize=1024)
def _choose(default: Behaviour, header: str, model: str) -> Behaviour:
    chosen = default.changed(header)
    return chosen.changed(model) if model.startswith("stub;") else chosen


@lru_cache(maxsize=64)
def _head(
    status: int, kind: bytes, length: int | None = None, chunked: bool = False, packed: bool = False
) -> bytes:
    framing = b""
    if length is not None:
        framing = b"content-length: %d\r\n" % length
    elif chunked:
        framing = b"transfer-encoding: chunked\r\n"
    if packed:
        framing += b"content-encoding: gzip\r\n"
    return (
        b"HTTP/1.1 %d %b\r\ndate: Tue, 24 Nov 2026 12:00:00 GMT\r\ncontent-type: %b\r\n"
        b"x-request-id: req_stub\r\nopenai-processing-ms: 5\r\n"
        b"x-ratelimit-limit-requests: 10000\r\n%b\r\n"
        % (status, _REASONS.get(status, b"Error"), kind, framing)
    )


@lru_cache(maxsize=256)
def _whole_json(operation: str, model: str, behaviour: Behaviour) -> bytes:
    body = answers.body(operation, model, behaviour)
    if behaviour.gzip:
        body = gzip.compress(body)
    kind = b"application/json"
    packed = bool(behaviour.gzip)
    if behaviour.framing == "chunked":
        half = len(body) // 2
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(each), each) for each in (body[:half], body[half:])
        )
        return _head(200, kind, None, True, packed) + chunks + b"0\r\n\r\n"
    length = None if behaviour.framing == "close" else len(body)
    return _head(200, kind, length, False, packed) + body


async def _serve(options: argparse.Namespace) -> None:
    host, _, port = options.listen.rpartition(":")
    tls = None
    if options.tls_cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.tls_cert)
    books = StubLog(options.log) if options.log else None
    if books is not None:
        warm()
    provider = StubProvider(options.behaviour, not options.no_log, books)
    await provider.start(host, int(port), options.workers > 1, tls)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    print(f"listening on {host}:{provider.port}", flush=True)
    await stopping.wait()
    await provider.close()


def run(options: argparse.Namespace) -> int:
    """Answer until SIGTERM or SIGINT; returns the exit code."""
    children: list[int] = []
    for _ in range(options.workers - 1):
        child = os.fork()
        if not child:
            children.clear()
            break
        children.append(child)
    uvloop.run(_serve(options))
    for child in children:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
    return 0


def main() -> int:
    """`python -m fastgw.demo.provider`."""
    parser = argparse.ArgumentParser(description="A stub LLM provider.")
    add_options(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
