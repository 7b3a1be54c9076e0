"""A whole exchange without a socket: both connections are driven through a fake transport.

What it leaves out is the loop and the kernel; what is left is the gateway's own code, all of it:
key, budget, metering, metrics, access log, settlement into the memory store.

    python -m bench.micro.exchange              # microseconds
    python -m bench.micro.exchange --profile    # where they go, by function
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bench.micro.meter import ANSWER, EVENT, LAST
from bench.micro.timing import Row, show
from fastgw.access_log import AccessLog
from fastgw.config import load
from fastgw.downstream.connection import DownstreamConnection
from fastgw.downstream.connections import Connections
from fastgw.engine import Engine
from fastgw.flow_control import Sweeper
from fastgw.metrics import Metrics
from fastgw.plan import Planner
from fastgw.policy.ledger import Ledger
from fastgw.policy.tallies import Tallies
from fastgw.recorder import Recorder
from fastgw.settlement import Settlement
from fastgw.store.memory import MemoryStore
from fastgw.upstream.connection import UpstreamConnection
from fastgw.upstream.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CONFIG = """
[store]
url = "memory:"
[[keys]]
name = "alice"
key = "sk-alice-abc123def456"
metadata = { user_id = "alice" }
[[budgets]]
name = "per-user-daily"
per = ["user_id"]
limit = 1_000_000_000_000
[[upstreams]]
name = "stub"
base_url = "http://127.0.0.1:9/v1"
api_key = "sk-upstream"
[[routes]]
path_prefix = "/openai"
upstream = "stub"
[metrics]
labels = { user_id = "apiKey.user_id" }
[access_log]
path = "/dev/null"
"""
_BODY = (
    b'{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are helpful."},{"role":'
    b'"user","content":"%b"}],"temperature":0.7%b}'
)
_HEAD = (
    b"POST /openai/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n"
    b"User-Agent: OpenAI/Python 2.54.0\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer sk-alice-abc123def456\r\nContent-Length: %d\r\n\r\n%b"
)


def request(stream: bool = False) -> bytes:
    """A chat completion of about 300 bytes."""
    body = _BODY % (b"Hello! " * 12, b',"stream":true' if stream else b"")
    return _HEAD % (len(body), body)


def answer() -> bytes:
    """A buffered answer of about 600 bytes."""
    body = ANSWER % (b"Hello! How can I help you today? " * 3)
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


def stream_pieces(events: int) -> list[bytes]:
    """A streamed answer as the reads it arrives in: head, one chunk an event, the end."""
    event = EVENT % b',"usage":null'
    piece = b"%x\r\n%b\r\n" % (len(event), event)
    return [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        *[piece] * events,
        b"%x\r\n%b\r\n" % (len(LAST), LAST),
        b"0\r\n\r\n",
    ]


class FakeTransport:
    """Takes what is written and keeps the last piece; `written` is set once there is one."""

    def __init__(self) -> None:
        self.last = b""
        self.written = asyncio.Event()
        self._set = self.written.set

    def write(self, data: bytes) -> None:
        self.last = data
        self._set()

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

    def abort(self) -> None:
        pass

    def close(self) -> None:
        pass


class Bench:
    """A gateway around two fake transports. Make it in a running loop."""

    def __init__(self, text: str = CONFIG) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.toml"
            path.write_text(text)
            config = load([str(path)])
        sweeper = Sweeper()
        self.turn = sweeper.turn
        self.ledger = Ledger("bench", float("inf"))
        self.access_log = AccessLog(config.access_log.path)
        self.access_log.start()
        metrics = self.metrics = Metrics(config.metrics)
        pool = Pool(config.upstreams[0], sweeper, config.server.buffer_size)
        planner = Planner(config, self.ledger, {"stub": pool}, 1)
        self.settlement = Settlement(self.ledger, MemoryStore(), series=metrics.store)
        self.settlement.start()
        usage = config.usage
        tallies = Tallies(self.ledger, usage.retention, usage.max_series)
        self.recorder = Recorder(metrics, self.access_log, planner, tallies, sweeper.turn)
        engine = self.engine = Engine(config, planner, self.ledger, self.settlement, self.recorder)
        self.to_client = FakeTransport()
        self.to_provider = FakeTransport()
        self.client = DownstreamConnection(engine, config.server, sweeper, Connections())
        self.client.connection_made(cast("asyncio.Transport", self.to_client))
        self.provider = UpstreamConnection(pool, sweeper)
        self.provider.connection_made(cast("asyncio.Transport", self.to_provider))
        pool.adopt(self.provider)

    async def exchange(self, request: bytes, pieces: list[bytes]) -> None:
        """One exchange, with the turns of the loop that a first decision needs."""
        self.client.data_received(request)
        await self.to_provider.written.wait()
        for piece in pieces:
            self.provider.data_received(piece)

    def run(self, request: bytes, pieces: list[bytes], number: int) -> None:
        """So many exchanges in one turn of the loop."""
        ask = self.client.data_received
        tell = self.provider.data_received
        for _ in range(number):
            ask(request)
            for piece in pieces:
                tell(piece)
        self.turn.flush()
        self.recorder.flush()

    async def close(self) -> None:
        """Settle and end."""
        await self.settlement.close(5.0)
        await self.access_log.close()


async def _time(bench: Bench, call: Callable[[int], None], number: int) -> float:
    """Best CPU seconds of five times `number`, a turn of the loop every 100."""
    best = float("inf")
    for _ in range(5):
        spent = 0.0
        for _ in range(0, number, 100):
            began = time.process_time()
            call(min(100, number))
            await asyncio.sleep(0)
            spent += time.process_time() - began
            await asyncio.sleep(0)
        best = min(best, spent)
    return best


async def measure(number: int, events: int = 100) -> list[Row]:
    """The rows of the report."""
    bench = Bench()
    sent, got = request(), [answer()]
    await bench.exchange(sent, got)
    best = await _time(bench, lambda count: bench.run(sent, got, count), number)
    rows = [Row("a JSON exchange", best / number * 1e6)]
    assert bench.to_client.last.startswith(b"HTTP/1.1 200 OK\r\n")
    sent, got = request(stream=True), stream_pieces(events)
    best = await _time(bench, lambda count: bench.run(sent, got, count), number // 10)
    rows.append(Row(f"an event of a stream of {events}", best / (number // 10) / events * 1e6))
    assert bench.to_client.last.endswith(b"0\r\n\r\n")
    await bench.close()
    return rows


async def profile(number: int) -> None:
    """Print where the time of JSON exchanges goes."""
    bench = Bench()
    sent, got = request(), [answer()]
    await bench.exchange(sent, got)
    profiler = cProfile.Profile()
    profiler.enable()
    bench.run(sent, got, number)
    profiler.disable()
    await bench.close()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(30)


def run(number: int = 5_000) -> list[Row]:
    """The rows of the report."""
    return asyncio.run(measure(number))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A whole exchange through fake transports.")
    parser.add_argument("--profile", action="store_true")
    if parser.parse_args().profile:
        asyncio.run(profile(20_000))
    else:
        show("Exchange, without loop and kernel", run())
