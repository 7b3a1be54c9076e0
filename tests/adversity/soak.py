"""Good, slow, leaving and bad clients at once, against one worker whose provider breaks now and
then; the books must be right to the token.

    python -m tests.adversity.soak --seconds 600

It works in rounds. After each nothing may be under way, and every exchange of the round is looked
at: what the client got, what the access log says, what the provider reported, what was debited. A
summary in JSON ends it; the exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import orjson

from tests.adversity.conftest import GUARD, Bench, Entry, ask, spoken
from tests.adversity.proxy import Action, Fault, Plan

CLIENTS = 32
"""Connections at once."""
FAULTY = 0.1
"""Share of the connections to the provider that have a fault in store."""
GROWTH = 0.1
"""Share by which resident memory may grow after the warm-up of a long run."""
LONG = 60.0
"""Seconds from which on a run is long."""
WAYS = ("/direct", "/kept", "/openai")
STUBS = (
    *("events=3", "events=12;pace=0.001", "events=40;pad=300", "framing=chunked"),
    *("split=97", "usage=never;events=5", "first=0.005"),
)
BREAKS: tuple[Action, Action] = ("cut", "reset")


@dataclass
class Seen:
    """What a client saw of one exchange. `must`: nothing was in its way."""

    kind: str
    must: bool
    right: bool
    status: int = 0
    whole: bool = False
    left: bool = False


@dataclass
class Tally:
    """The whole run, for the summary."""

    rounds: int = 0
    clients: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    used: int = 0
    struck: int = 0
    resident: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Soak:
    """See the module."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.tally = Tally()
        self._bench = bench
        self._port = bench.gateway.port
        self._dice = random.Random(seed)
        self._proxy_dice = random.Random(seed + 1)
        self._seen: dict[str, Seen] = {}
        self._bodies: dict[tuple[str, bool, bool], bytes] = {}
        models: set[str] = set()
        for stub in STUBS:
            for stream, asks in ((False, False), (True, False), (True, True)):
                number = bench.name("model")
                data = spoken(number, "/direct", stub, stream=stream, asks=asks)
                answer = ask(self._port, data)
                models.add(number)
                assert answer.whole, answer
                self._bodies[stub, stream, asks] = answer.body
        bench.books(models)
        bench.begin()

    # one round

    def round(self, exchanges: int) -> None:
        """So many clients, then the books."""
        bench = self._bench
        self._seen.clear()
        struck = bench.up.struck
        bench.up.choose = self._misfortune
        asyncio.run(self._load(exchanges))
        bench.up.choose = None
        wanted = {number for number, seen in self._seen.items() if not seen.left}
        try:
            books = bench.books(wanted)
        except AssertionError as error:
            self.tally.wrong.append(str(error)[:2000])
            books = {}
        struck = bench.up.struck - struck
        hit = 0
        for number, seen in self._seen.items():
            hit += self._check(number, seen, books.get(number, Entry()))
        if hit > struck:
            self.tally.wrong.append(f"{hit} exchanges failed of {struck} faults")
        self.tally.rounds += 1
        self.tally.struck += struck
        self.tally.used += sum(entry.cost for entry in books.values())
        self.tally.resident.append(bench.resident)
        bench.begin()

    def _misfortune(self) -> Plan:
        """The plan of the next connection to the provider."""
        dice = self._proxy_dice
        if dice.random() > FAULTY:
            return Plan()
        if dice.random() < 0.1:
            return Plan(refuse=True)
        if dice.random() < 0.2:
            return Plan(Fault("dribble"), Fault("dribble"))
        if dice.random() < 0.2:
            return Plan(response=Fault("delay", dice.randrange(500), 0.01))
        fault = Fault(dice.choice(BREAKS), dice.randrange(4000))
        return Plan(request=fault) if dice.random() < 0.3 else Plan(response=fault)

    def _check(self, number: str, seen: Seen, entry: Entry) -> bool:
        """Look at one exchange; returns whether the provider failed it."""
        tally = self.tally
        try:
            if entry.lines:
                tally.outcomes[entry.line["reason"]] += 1
                tally.sources[entry.line["usage_source"]] += 1
                if entry.line["usage_source"] == "reported":
                    (asked,) = entry.asked
                    assert entry.cost == asked["prompt"] + asked["completion"]
                elif entry.line["usage_source"] == "counted":
                    assert entry.line["input_tokens"] > 0
                    assert entry.asked
                else:
                    assert entry.cost == 0
            elif seen.left:
                assert not entry.asked
            if seen.left:
                if entry.asked and entry.line["reason"] != "upstream_unavailable":
                    assert entry.cost > 0
                return bool(entry.lines) and entry.line["reason"].startswith("upstream_")
            if seen.whole and seen.status == 200:
                assert seen.right
                assert entry.line["reason"] == "ok"
                assert entry.cost > 0
                return False
            assert not seen.must
            expected = "upstream_unavailable" if seen.status == 502 else "upstream_cut"
            assert entry.line["reason"] == expected
            assert seen.whole == (seen.status == 502)
        except AssertionError as error:
            tally.wrong.append(f"{number} {seen} {entry} {error}"[:2000])
        return True

    # clients

    async def _load(self, exchanges: int) -> None:
        left = exchanges

        async def client() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                kind = self._dice.choices(("good", "slow", "leaving", "bad"), (60, 5, 25, 10))[0]
                self.tally.clients[kind] += 1
                told: list[bytes] = []  # what this client sent last
                try:
                    async with asyncio.timeout(GUARD):
                        if kind == "bad":
                            await self._bad(told)
                        elif kind == "leaving":
                            await self._leaving(told)
                        else:
                            await self._good(told, kind == "slow")
                except (TimeoutError, OSError) as error:
                    self.tally.wrong.append(f"{kind} client: {error!r} after {told[-1:]!r:.1000}")

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    def _request(self, kind: str) -> tuple[str, bytes, bytes, Seen]:
        """An exchange to be: its id, its bytes, the right answer, what is seen of it."""
        dice = self._dice
        stub, way = dice.choice(STUBS), dice.choice(WAYS)
        stream = dice.random() < 0.6
        asks = stream and dice.random() < 0.5
        number = self._bench.name(kind)
        seen = self._seen[number] = Seen(kind, way == "/direct", False)
        data = spoken(number, way, stub, stream=stream, asks=asks, chunked=dice.random() < 0.2)
        return number, data, self._bodies[stub, stream, asks], seen

    async def _good(self, told: list[bytes], slow: bool) -> None:
        """A few requests on one connection, each read to its end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            for _ in range(1 if slow else self._dice.randint(1, 4)):
                _, data, body, seen = self._request("slow" if slow else "good")
                told.append(data)
                if slow:
                    await self._dribble(writer, data)
                else:
                    writer.write(data)
                if not await _read(reader, seen, body, 50 if slow else 65536):
                    return
        finally:
            writer.close()

    async def _dribble(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        for at in range(0, len(data), 7):
            writer.write(data[at : at + 7])
            await asyncio.sleep(0.0005)

    async def _leaving(self, told: list[bytes]) -> None:
        """A client that goes, by FIN or RST, in the middle of its request or of the answer."""
        dice = self._dice
        _, data, body, seen = self._request("leaving")
        seen.left = True
        # The answer may be shorter than what it waits for: then the gateway ends it.
        data = data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        told.append(data)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            if dice.random() < 0.3:
                writer.write(data[: dice.randrange(len(data))])
                await writer.drain()
            else:
                writer.write(data)
                left = dice.randrange(len(body) + 300)
                while left > 0 and (part := await reader.read(min(left, 500))):
                    left -= len(part)
            if dice.random() < 0.5:
                sock: socket.socket = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def _bad(self, told: list[bytes]) -> None:
        """Bytes that are no request: refused with an answer or cut off, never served."""
        dice = self._dice
        number = self._bench.name("bad")
        good = spoken(number, chunked=True)
        data = dice.choice(
            (
                dice.randbytes(dice.randint(1, 300)) + b"\r\n\r\n",
                b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
                good.replace(b"\r\n9\r\n", b"\r\n-9\r\n"),
                good.replace(b"\r\n9\r\n", b"\r\n8\r\n"),
                good.replace(b"Host: gateway\r\n", b""),
                good.replace(b"chunked", b"gzip"),
            )
        )
        told.append(data)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(data)
            writer.write_eof()
            answer = await reader.read()
            if answer and not answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")):
                self.tally.wrong.append(f"bad bytes were served: {data[:200]!r} {answer[:200]!r}")
        except ConnectionError:
            pass
        finally:
            writer.close()

    # the end

    def summary(self, seconds: float) -> dict[str, Any]:
        """The run in numbers. Memory is compared with what it was after a fifth of the rounds."""
        tally = self.tally
        resident = tally.resident
        warm = resident[len(resident) // 5]
        return {
            "seconds": round(seconds, 1),
            "rounds": tally.rounds,
            "clients": dict(tally.clients),
            "outcomes": dict(tally.outcomes),
            "usage_sources": dict(tally.sources),
            "provider_faults": tally.struck,
            "used": tally.used,
            "resident_first_warm_last": [resident[0], warm, resident[-1]],
            "growth": round(resident[-1] / warm - 1, 4),
            "wrong": len(tally.wrong),
            "wrong_first": tally.wrong[:3],
        }


async def _read(reader: asyncio.StreamReader, seen: Seen, expected: bytes, size: int) -> bool:
    """Read one answer; returns whether the connection may be used again."""
    judge = h11.Connection(h11.CLIENT)
    judge.send(h11.Request(method="POST", target="/", headers=[("host", "a")]))
    judge.send(h11.EndOfMessage())
    body = bytearray()
    try:
        while True:
            event = judge.next_event()
            if event is h11.NEED_DATA:
                judge.receive_data(await reader.read(size))
            elif isinstance(event, h11.Response):
                seen.status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
    except (ConnectionError, h11.RemoteProtocolError):
        return False
    seen.whole = True
    seen.right = bytes(body) == expected
    return judge.their_state is h11.DONE


def run(folder: Path, *, seconds: float = 0.0, rounds: int = 0, exchanges: int, seed: int) -> Soak:
    """Rounds for so many seconds, or so many; every process is ended again."""
    bench = Bench(folder)
    try:
        soak = Soak(bench, seed)
        until = time.monotonic() + seconds
        while soak.tally.rounds < rounds or time.monotonic() < until:
            soak.round(exchanges)
        return soak
    finally:
        bench.close()


def main() -> int:
    """`python -m tests.adversity.soak`."""
    parser = argparse.ArgumentParser(description="Mixed clients against a breaking provider.")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--exchanges", type=int, default=3000, help="clients in a round")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fastgw-soak-") as folder:
        soak = run(
            Path(folder), seconds=options.seconds, exchanges=options.exchanges, seed=options.seed
        )
    found = soak.summary(time.monotonic() - began)
    sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode() + "\n")
    grown = options.seconds >= LONG and found["growth"] > GROWTH
    return 1 if found["wrong"] or grown else 0


if __name__ == "__main__":
    sys.exit(main())
