"""A mutation fuzzer: the gateway between two fake transports, h11 as the judge of every byte.

Each round takes sound bytes, changes them here and there and feeds them in random pieces, to the
gateway's client side (`request`) or as a provider's answer (`response`). Then it must hold:

1. No exception leaves a connection.
2. What was written to the provider is, by h11, exactly the requests that were sent there.
3. Those are requests that h11 reads in the client's bytes, in their order: method, target, body.
4. Once the gateway closed or refused with a close, nothing more of that connection goes out.
5. What the client got is, by h11, whole answers; an answer of the provider is whole only if h11
   takes the provider's bytes for a whole one, and then with the same status and body.

    python -m tests.adversity.fuzz --seconds 600 [--seed N]

Rounds are numbered; round N with the same code is the same bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from bench.micro.exchange import CONFIG
from fastgw.access_log import AccessLog
from fastgw.config import load
from fastgw.downstream.connection import DownstreamConnection
from fastgw.downstream.connections import Connections
from fastgw.engine import Engine
from fastgw.flow_control import Sweeper
from fastgw.metrics import Metrics
from fastgw.plan import Planner
from fastgw.policy.ledger import Ledger
from fastgw.recorder import Recorder
from fastgw.settlement import Settlement
from fastgw.store.memory import MemoryStore
from fastgw.upstream.connection import UpstreamConnection
from fastgw.upstream.pool import Pool
from tests.adversity.fuzz_judge import Message, read_answer, read_requests
from tests.adversity.fuzz_seeds import ANSWERS, REQUESTS, mutate, pieces

if TYPE_CHECKING:
    from collections.abc import Iterable

    import h11

    from fastgw.upstream.pool import Acquirer, Ticket

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
BARE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"


class Crash(AssertionError):
    """An invariant does not hold."""


class Case(NamedTuple):
    """One input, as `reproduce` takes it: what to do is worked out from these alone."""

    kind: str  # request, response
    parts: tuple[bytes, ...]
    request: bytes = b""  # kind response: the sound request that is answered
    ending: str = "fin"  # kind response: fin, rst


class Transport:
    """Keeps what is written; tells how the connection was ended by the gateway."""

    def __init__(self) -> None:
        self.out = b""
        self.ended = ""  # "", eof, close, abort

    def write(self, data: bytes) -> None:
        check(not self.ended, f"written after {self.ended}: {data!r}")
        self.out += data

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 50_000) if name == "peername" else None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = "eof"

    def close(self) -> None:
        self.ended = "close"

    def abort(self) -> None:
        self.ended = "abort"


class Provider(UpstreamConnection):
    """A connection that remembers what it was asked to send."""

    def __init__(self, pool: Pool, sweeper: Sweeper) -> None:
        super().__init__(pool, sweeper)
        self.wire = Transport()
        self.methods: list[bytes] = []
        self.connection_made(cast("asyncio.Transport", self.wire))

    def send(self, exchange: Any, method: bytes, data: bytes, whole: bool) -> None:
        self.methods.append(method)
        super().send(exchange, method, data, whole)

    def send_apart(self, exchange: Any, method: bytes, head: bytes, body: bytes) -> None:
        self.methods.append(method)
        super().send_apart(exchange, method, head, body)

    @property
    def waits(self) -> bool:
        """Whether a whole request waits for its answer."""
        return self._state == "asking" and self._whole


class FakePool(Pool):
    """Makes its connections itself, at once."""

    made: list[Provider]

    def acquire(self, acquirer: Acquirer, fresh: bool = False) -> UpstreamConnection | Ticket:
        if not self._idle or fresh:
            made = Provider(self, self._sweeper)
            self.made.append(made)
            self.adopt(made)
        return super().acquire(acquirer, False)


class World:
    """The gateway without sockets. Make it in a running loop; nothing in it needs a turn of it."""

    def __init__(self) -> None:
        before, _, after = CONFIG.partition("[[budgets]]")  # none, so that nothing waits for one
        after = after[after.index("[[upstreams]]") : after.index("[metrics]")]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.toml"
            path.write_text(before + after)
            config = self._config = load([str(path)])
        self._sweeper = Sweeper()
        self.turn = self._sweeper.turn
        self.turn.busy = True  # as under load: writes wait until the turn is flushed
        ledger = Ledger("fuzz", float("inf"))
        metrics = Metrics(config.metrics)
        self.pool = FakePool(config.upstreams[0], self._sweeper, config.server.buffer_size)
        self.pool.made = []
        planner = Planner(config, ledger, {"stub": self.pool}, 1)
        settlement = Settlement(ledger, MemoryStore(), series=metrics.store)
        recorder = Recorder(metrics, AccessLog(""), planner)
        self._engine = Engine(config, planner, ledger, settlement, recorder)

    def client(self) -> tuple[DownstreamConnection, Transport]:
        """A new connection; the provider's are new as well."""
        for old in list(self.pool._all):
            old.close()
        self.pool.made.clear()
        connections = Connections()
        client = DownstreamConnection(self._engine, self._config.server, self._sweeper, connections)
        wire = Transport()
        client.connection_made(cast("asyncio.Transport", wire))
        return client, wire

    def answer_all(self) -> None:
        """Answer every request that is there in full, and those that follow from it."""
        again = True
        while again:
            again = False
            for each in list(self.pool.made):
                if each.waits:
                    again = True
                    each.data_received(BARE if each.methods[-1] == b"HEAD" else OK)


def check(held: bool, what: str) -> None:
    """Raise Crash unless it holds."""
    if not held:
        raise Crash(what)


def check_upstream(world: World) -> list[Message]:
    """Invariant 2; the requests that reached the provider, in order."""
    sent: list[Message] = []
    for each in world.pool.made:
        found, error, rest = read_requests(each.wire.out)
        check(not error, f"the provider got no HTTP: {error}: {each.wire.out!r}")
        methods = [cast("h11.Request", message.head).method for message in found]
        check(methods == each.methods, f"sent {each.methods}, but it reads as {methods}")
        check(all(message.complete for message in found[:-1]), "a request inside another")
        check(not rest or not found[-1].complete, f"bytes after a request: {rest!r}")
        sent += found
    return sent


def _normal(escape: re.Match[bytes]) -> bytes:
    """RFC 3986, 6.2.2: capital digits, and no escape of what needs none."""
    byte = bytes.fromhex(escape[0][1:].decode())
    return byte if re.match(rb"[A-Za-z0-9_~-]", byte) else escape[0].upper()


def target_of(request: h11.Request) -> bytes:
    """The target that the provider must see."""
    target = request.target
    if target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
        target = b"/" + b"".join(target.split(b"/", 3)[3:])
    path, mark, query = target.partition(b"?")
    path = re.sub(rb"%[0-9A-Fa-f]{2}", _normal, path).removeprefix(b"/openai")
    if path == b"/v1" or path.startswith(b"/v1/"):
        path = path[3:]  # the base URL has it already
    if path in (b"", b"/") and request.method == b"POST":
        path = b"/chat/completions"  # a POST to the route itself (policy/routing.py)
    return b"/v1" + path + mark + query


def known(data: bytes) -> bool:
    """Known differences (test_differential.py): blanks before ";" and meanings of trailers."""
    return (
        re.search(rb"[0-9A-Fa-f][ \t]+;", data) is not None
        or re.search(rb"\r\n0+(;[^\r\n]*)?\r\n[^\r\n]", data) is not None
    )


def _same(sent: Message, asked: Message) -> bool:
    ours, theirs = cast("h11.Request", sent.head), cast("h11.Request", asked.head)
    if theirs.method != ours.method or target_of(theirs) != ours.target:
        return False
    if not sent.complete:
        return asked.body.startswith(sent.body)
    return asked.complete and (sent.body == asked.body or b'"stream_options"' in sent.body)


def check_requests(data: bytes, sent: list[Message]) -> list[bytes]:
    """Invariant 3. Returns the methods of the requests that the client made, by the judge."""
    asked, _, _ = read_requests(data)
    left = iter(asked)  # some of them may have been refused
    for message in sent if not known(data) else ():
        if not any(_same(message, each) for each in left):
            raise Crash(f"sent what the client did not ask: {message}")
    return [cast("h11.Request", each.head).method for each in asked]


def check_answers(out: bytes, methods: list[bytes]) -> None:
    """Invariant 5 for sound answers: whole ones, but for the last if it closes."""
    waiting = iter(methods)
    while out:
        answer, error, rest = read_answer(out, next(waiting, b"GET"), fin=False)
        check(not error, f"the client got no HTTP: {error}: {out!r}")
        if answer is None:
            check(out == b"HTTP/1.1 100 Continue\r\n\r\n", f"the client got a part: {out!r}")
            return
        if (b"connection", b"close") in list(answer.head.headers):
            return  # a refused head: whether it was HEAD is in doubt, and so is its body
        check(answer.complete, f"the client got a part of an answer: {out!r}")
        out = rest


def run_request(world: World, case: Case) -> None:
    """A client that sends anything, a sound provider."""
    client, wire = world.client()
    given = b""
    ended_at = -1
    for part in case.parts:
        if wire.ended in ("close", "abort"):
            break  # a real transport reads no more
        given += part
        client.data_received(part)
        world.answer_all()
        world.turn.flush()
        if wire.ended and ended_at < 0:
            ended_at = sum(len(each.wire.out) for each in world.pool.made)
    client.connection_lost(None)
    world.turn.flush()
    if ended_at >= 0:
        more = sum(len(each.wire.out) for each in world.pool.made) - ended_at
        check(not more, f"{more} bytes went to the provider after the end")
    check_answers(wire.out, check_requests(given, check_upstream(world)))


def run_response(world: World, case: Case) -> None:
    """A sound client, a provider that answers anything."""
    client, wire = world.client()
    client.data_received(case.request)
    provider = world.pool.made[0]
    given = b""
    for part in case.parts:
        if provider.wire.ended:
            break
        given += part
        provider.data_received(part)
    fin = case.ending == "fin" and not provider.wire.ended
    if not provider.wire.ended:
        if fin:
            provider.eof_received()
        provider.connection_lost(None if fin else ConnectionResetError())
    world.answer_all()  # a repeated GET
    repeated = len(world.pool.made) > 1
    if not wire.ended:
        client.connection_lost(None)
    world.turn.flush()
    check_upstream(world)
    method = provider.methods[0]
    theirs, error, _ = read_answer(given, method, fin)
    ours, trouble, rest = read_answer(wire.out, method, fin=wire.ended in ("close", "eof"))
    if ours is None:
        raise Crash(f"the client got no answer: {trouble}: {wire.out!r}")
    status = cast("h11.Response", ours.head).status_code
    if repeated or not ours.complete:
        return
    check(not rest, f"the client got more than an answer: {rest!r}")
    if status == 502 and b'"code":"upstream_' in (ours.body or b'"code":"upstream_'):
        return
    if known(given):
        return
    if theirs is None or not theirs.complete:
        raise Crash(f"a cut answer came out whole: {error}: {wire.out!r}")
    check(status == cast("h11.Response", theirs.head).status_code, f"another status: {status}")
    check(ours.body == theirs.body or b'"stream":true' in case.request, f"body: {ours.body!r}")


def reproduce(world: World, case: Case) -> None:
    """Run one case. Raises Crash, or what escaped."""
    (run_request if case.kind == "request" else run_response)(world, case)


def generate(number: int) -> Case:
    """The case of round `number`."""
    source = random.Random(number)
    if source.random() < 0.6:
        picked = source.choices(REQUESTS, k=source.randint(1, 3))
        data = mutate(source, b"".join(picked), REQUESTS)
        return Case("request", pieces(source, data))
    data = mutate(source, source.choice(ANSWERS), ANSWERS)
    sound = [each for each in REQUESTS if b"Expect" not in each]
    ending = source.choice(("fin", "rst"))
    return Case("response", pieces(source, data), source.choice(sound), ending)


def main() -> int:
    """The command; exit status 1 if a case crashed."""
    parser = argparse.ArgumentParser(description="Fuzz the gateway without sockets.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="the first round")
    parser.add_argument("--crashes", type=int, default=1, help="stop after so many")
    arguments = parser.parse_args()
    number = random.randrange(1 << 40) if arguments.seed is None else arguments.seed
    return asyncio.run(fuzz(number, arguments.seconds, arguments.crashes))


async def fuzz(number: int, seconds: float, stop: int) -> int:
    """Rounds from `number` on for so many seconds."""
    world = World()
    first, crashes = number, 0
    until = time.monotonic() + seconds
    while time.monotonic() < until and crashes < stop:
        case = generate(number)
        try:
            reproduce(world, case)
        except Exception as error:
            crashes += 1
            sys.stdout.write(f"seed {number}: {error!r:.600}\n    {case!r}\n")
        number += 1
    sys.stdout.write(f"{number - first} rounds from seed {first}, {crashes} crashes\n")
    return 1 if crashes else 0


if __name__ == "__main__":
    raise SystemExit(main())
