"""A closed-loop load generator: so many connections, each asks again as soon as it has its answer.

    python -m bench.load.generator --port 8080 --connections 64 --seconds 5
    python -m bench.load.generator --port 8080 --connections 1000 --stream --once

Prints one JSON object: requests, errors, events, seconds, requests_per_second, and the latency and
time to first byte in milliseconds (p50, p99). It is a client of fixed habits, not a benchmark of
HTTP: every connection sends the same request.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from typing import cast

import orjson
import uvloop

DEFAULT_KEY = "sk-alice-abc123def456"


def make_request(path: str, key: str, prompt: int, stream: bool, stub: str) -> bytes:
    """A chat completion whose prompt has so many characters, as an SDK sends it."""
    message = {
        "model": "gpt-3.5-turbo",
        "messages": [{"role": "user", "content": ("Hello! " * (prompt // 7 + 1))[:prompt]}],
    }
    body = orjson.dumps({**message, "stream": True} if stream else message)
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Accept: application/json",
        "User-Agent: OpenAI/Python 1.60.0",
        "Content-Type: application/json",
        f"Authorization: Bearer {key}",
        f"Content-Length: {len(body)}",
    ]
    if stub:
        lines.append(f"x-stub: {stub}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Tally:
    """What all connections saw. Latencies in seconds."""

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.events = 0
        self.latencies: list[float] = []
        self.first_bytes: list[float] = []


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, tally: Tally, once: bool) -> None:
        self._request = request
        self._tally = tally
        self._once = once
        self._head: bytes = b""
        self._left = -1  # bytes of the body to come; -2: chunked
        self._tail = b""
        self._began = 0.0
        self.stopping = False
        self.gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        self._head = self._tail = b""
        self._left = -1
        self._began = time.perf_counter()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._left == -1:
            if not self._head:
                self._tally.first_bytes.append(time.perf_counter() - self._began)
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[:end].lower(), self._head[end + 4 :]
            if not head.startswith(b"http/1.1 200"):
                self._tally.errors += 1
            at = head.find(b"content-length: ")
            self._left = -2 if at < 0 else int(head[at + 16 :].split(b"\r", 1)[0])
        if self._left >= 0:
            self._left -= len(data)
            if self._left <= 0:
                self._done()
        elif self._left == -2:
            self._tally.events += data.count(b"\n\n")
            tail = self._tail = (self._tail + data)[-7:] if len(data) < 7 else data[-7:]
            if tail == b"\r\n0\r\n\r\n":
                self._done()

    def _done(self) -> None:
        self._tally.requests += 1
        self._tally.latencies.append(time.perf_counter() - self._began)
        if self.stopping or self._once:
            self.transport.close()
        else:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._left != -1 or not self.stopping:
            self._tally.errors += bool(exc)
        if not self.gone.done():
            self.gone.set_result(None)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie, in milliseconds, rounded to 0.001."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 3)


async def load(
    port: int, request: bytes, connections: int, seconds: float, once: bool
) -> dict[str, float]:
    """Run the load; the object that the module's docstring describes."""
    loop = asyncio.get_running_loop()
    tally = Tally()
    began = time.perf_counter()
    clients: list[Client] = []
    for at in range(0, connections, 100):  # a listen queue has an end
        group = await asyncio.gather(
            *(
                loop.create_connection(lambda: Client(request, tally, once), "127.0.0.1", port)
                for _ in range(at, min(at + 100, connections))
            )
        )
        clients += [client for _, client in group]
    if not once:
        await asyncio.sleep(seconds)
        for client in clients:
            client.stopping = True
    await asyncio.wait([client.gone for client in clients], timeout=seconds + 60)
    took = time.perf_counter() - began
    return {
        "requests": tally.requests,
        "errors": tally.errors,
        "events": tally.events,
        "seconds": round(took, 3),
        "requests_per_second": round(tally.requests / took, 1),
        "latency_p50": percentile(tally.latencies, 0.5),
        "latency_p99": percentile(tally.latencies, 0.99),
        "first_byte_p50": percentile(tally.first_bytes, 0.5),
        "first_byte_p99": percentile(tally.first_bytes, 0.99),
    }


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="A closed-loop load generator.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/openai/chat/completions")
    parser.add_argument("--key", default=DEFAULT_KEY)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--prompt", type=int, default=200, help="characters of the prompt")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--stub", default="", help="behaviour asked of the stub provider")
    parser.add_argument("--once", action="store_true", help="one request for each connection")
    options = parser.parse_args()
    request = make_request(options.path, options.key, options.prompt, options.stream, options.stub)
    result = uvloop.run(
        load(options.port, request, options.connections, options.seconds, options.once)
    )
    print(orjson.dumps(result).decode())
    return 0 if result["requests"] and not result["errors"] else 1


if __name__ == "__main__":
    sys.exit(main())
