"""The clients of the chaos: most read to the end, one in five leaves at a random byte."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson

from fastgw import tasks

LEAVING = 0.2
"""Share of the requests whose client goes before the end."""
GUARD = 30.0
"""Seconds after which an answer counts as hung."""
THINK = 0.25
"""Seconds between two requests of a client at most."""
STUBS = (
    *("", "events=3", "events=40;pad=200", "events=200", "usage=never;events=5"),
    *("usage=always;events=7", "usage=finish", "events=12;pace=0.002", "events=30;pace=0.01"),
    *("first=0.02", "framing=chunked", "cached=4;reasoning=3", "prompt=0;events=1", "split=300"),
)


@dataclass
class Seen:
    """What the clients saw. Times are epoch seconds; each list has one entry a request: when it
    ended, its key, its id, and what was the matter."""

    outcomes: Counter[str] = field(default_factory=Counter)
    served: set[str] = field(default_factory=set)
    """Ids of answers that were read to their end."""
    refusals: list[tuple[float, str, str, str]] = field(default_factory=list)
    """429."""
    failures: list[tuple[float, str, str, str]] = field(default_factory=list)
    """5xx; the last part is status and code."""
    broken: list[tuple[float, str, str, str]] = field(default_factory=list)
    """An answer that ended before its end, or a connection before its answer."""
    unanswered: list[tuple[str, str]] = field(default_factory=list)
    """Key and id of each request that was sent in full, and whose client left or whose answer broke
    off."""
    unreachable: list[float] = field(default_factory=list)
    """The port did not take a connection."""
    wrong: list[str] = field(default_factory=list)
    """What must never be."""


class Crowd:
    """So many clients until `stop`."""

    def __init__(self, port: int, keys: dict[str, str], seed: int) -> None:
        """`keys`: secrets by name."""
        self.seen = Seen()
        self._port = port
        self._keys = keys
        self._names = list(keys)
        self._dice = random.Random(seed)
        self._ids = 0
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End after the requests that are under way."""
        self._stopping.set()

    async def run(self, clients: int) -> None:
        """Returns when all clients have ended."""
        running = [tasks.spawn(self._client(), "chaos client") for _ in range(clients)]
        await asyncio.gather(*running)

    async def _client(self) -> None:
        dice = self._dice
        await self._think()
        while not self._stopping.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except OSError:
                self.seen.unreachable.append(time.time())
                await self._think()
                continue
            try:
                for _ in range(dice.randint(1, 12)):
                    if self._stopping.is_set() or not await self._exchange(reader, writer):
                        break
                    await self._think()
            finally:
                writer.close()

    async def _think(self) -> None:
        await asyncio.sleep(self._dice.random() * THINK)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; returns whether the connection may be used again."""
        self._ids += 1
        number, name = f"chaos-{self._ids:08d}", self._dice.choice(self._names)
        leaves = self._dice.random() < LEAVING
        stream = self._dice.random() < 0.6
        data = self._spoken(number, name, stream)
        try:
            async with asyncio.timeout(GUARD):
                if leaves:
                    self.seen.outcomes["left"] += 1
                    await self._leave(reader, writer, data, (name, number))
                    return False
                writer.write(data)
                status, body, keeps = await read_answer(reader)
        except TimeoutError:
            self.seen.wrong.append(f"{number} hangs")
            return False
        except (OSError, EOFError, ValueError) as error:
            if not leaves:
                self.seen.outcomes["broken"] += 1
                self.seen.unanswered.append((name, number))
                self.seen.broken.append((time.time(), name, number, repr(error)[:100]))
            return False
        self.seen.outcomes[str(status)] += 1
        self._judge(number, name, stream, status, body)
        return keeps

    def _judge(self, number: str, name: str, stream: bool, status: int, body: bytes) -> None:
        seen = self.seen
        if status == 200:
            sound = body.endswith(b"data: [DONE]\n\n") if stream else b'"choices"' in body
            if not sound:
                seen.wrong.append(f"{number} is 200 and not sound: {body[-200:]!r}")
            seen.served.add(number)
            return
        code = str((orjson.loads(body).get("error") or {}).get("code"))
        entry = (time.time(), name, number, f"{status} {code}")
        if status == 429:
            seen.refusals.append(entry)
        elif status >= 500:
            seen.failures.append(entry)
        else:
            seen.wrong.append(f"{number} is {status} {code}")

    def _spoken(self, number: str, name: str, stream: bool) -> bytes:
        message: dict[str, Any] = {
            "model": self._dice.choice(("gpt-4o", "gpt-4o-mini", "o3")),
            "messages": [{"role": "user", "content": "Hello! " * self._dice.randint(1, 30)}],
        }
        if stream:
            message["stream"] = True
            if self._dice.random() < 0.5:
                message["stream_options"] = {"include_usage": True}
        body = orjson.dumps(message)
        return (
            f"POST /openai/chat/completions HTTP/1.1\r\nHost: gateway\r\n"
            f"Authorization: Bearer {self._keys[name]}\r\nContent-Type: application/json\r\n"
            f"x-request-id: {number}\r\nx-stub-account: {name}\r\n"
            f"x-stub: {self._dice.choice(STUBS)}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def _leave(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        data: bytes,
        asked: tuple[str, str],
    ) -> None:
        """Go, by FIN or RST, in the middle of the request or of the answer."""
        dice = self._dice
        if dice.random() < 0.3:
            writer.write(data[: dice.randrange(len(data))])
            await writer.drain()
        else:
            self.seen.unanswered.append(asked)
            writer.write(data)
            left = dice.randrange(3000)
            with contextlib.suppress(TimeoutError):  # the answer may be shorter
                async with asyncio.timeout(1.0):
                    while left > 0 and (part := await reader.read(min(left, 500))):
                        left -= len(part)
        if dice.random() < 0.5:
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status, body, whether the connection goes on. Raises EOFError where the answer is not whole.
    As lenient as it is short: other tests look at the framing."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    keeps = b"\r\nconnection: close" not in head
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        length = int(head[at + 17 : head.index(b"\r\n", at + 2)])
        return status, await reader.readexactly(length), keeps
    if b"\r\ntransfer-encoding: chunked" not in head:
        raise ValueError("an answer without a length")
    body = bytearray()
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return status, bytes(body), keeps
