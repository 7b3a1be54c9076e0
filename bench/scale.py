"""What 100,000 keys, accounts, connections and streams cost: time to start, memory, stalls.

    python -m bench.scale                      # all of it, some minutes
    python -m bench.scale start reload         # parts: start, reload, memory, scrape, cost
    python -m bench.scale start --keys 1,1000  # other numbers of keys

Processes are real and so are sockets; provider and clients live in this process. Memory is what RSS
grows by, divided; it is good to some percent. A stall is the longest of the round trips that a
client makes one after the other while it happens, its usual round trip beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from bench.micro import many
from bench.micro.timing import show
from bench.processes import cpu_of, memory_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

PARTS = ("start", "reload", "memory", "scrape", "cost")

BASE = """\
[server]
listen = "127.0.0.1:0"
workers = {workers}
max_connections = 30_000
[admin]
listen = "127.0.0.1:0"
[store]
url = "sqlite:{folder}/store.db"
[[budgets]]
name = "per-user-daily"
per = ["user_id"]
limit = 1_000_000_000
[[upstreams]]
name = "bench"
base_url = "http://127.0.0.1:{provider}/v1"
api_key = "sk-upstream"
max_connections = 30_000
[[routes]]
path_prefix = "/openai"
upstream = "bench"
[access_log]
path = ""
"""
LABELS = '[metrics]\nlabels = { user_id = "apiKey.user_id" }\nmax_series = %d\n'

_BODY = (
    b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Hello! How are you today?"}]%b}'
)
_ANSWER = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"gpt-4o-mini","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"Well."},"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}'
)
_EVENT = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"gpt-4o-mini",'
    b'"choices":[{"index":0,"delta":{"content":"Well"}}],"usage":null}\n\n'
)


def secret(number: int) -> str:
    """The secret of a key of the bench."""
    return f"sk-bench-{number:08d}-abcdef"


def keys_of(number: int, hashed: bool) -> Iterator[str]:
    """[[keys]] as a program writes them."""
    for each in range(number):
        text = secret(each)
        way = (
            f'key_hash = "sha256:{hashlib.sha256(text.encode()).hexdigest()}"'
            if hashed
            else f'key = "{text}"'
        )
        tier = "premium" if each % 2 else "free"
        yield (
            f'\n[[keys]]\nname = "key-{each}"\n{way}\n'
            f'metadata = {{ user_id = "user-{each}", tier = "{tier}" }}\n'
        )


class Gateway:
    """A `fastgw serve`."""

    def __init__(self, config: Path) -> None:
        """Starts it, and returns when it answered."""
        self.folder = config.parent
        began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastgw", "serve", "--config", str(config)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        said = []
        for line in self.process.stderr:
            said.append(line)
            found = re.search(r"listening on \S+:(\d+), admin on \S+:(\d+)", line)
            if found:
                break
        else:
            raise RuntimeError("".join(said))
        self.port, self.admin = int(found[1]), int(found[2])
        self.seconds = time.monotonic() - began

    def wait_for(self, text: str) -> None:
        """Return when it logged this."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return

    @property
    def cpu(self) -> float:
        """Seconds of CPU so far."""
        return cpu_of(Path(f"/proc/{self.process.pid}/stat").read_text())

    @property
    def rss(self) -> float:
        """MiB that are resident."""
        return memory_of(Path(f"/proc/{self.process.pid}/status").read_text()).now

    def end(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Provider(asyncio.Protocol):
    """Answers at once; of a stream it sends one event and then waits."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if b'"stream":true' in data:
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
            )
        else:
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(_ANSWER), _ANSWER)
            )


class Client(asyncio.Protocol):
    """A connection that sends a request and waits until something of the answer is here."""

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._waiter is not None and not self._waiter.done():
            if not data.startswith(b"HTTP/1.1 200"):
                self._waiter.set_exception(RuntimeError(data.decode()))
            else:
                self._waiter.set_result(None)

    async def ask(self, request: bytes) -> None:
        """One round trip."""
        self._waiter = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self._waiter


def request(key: int, stream: bool = False) -> bytes:
    """A chat completion by a key of the bench."""
    body = _BODY % (b',"stream":true' if stream else b"")
    return (
        b"POST /openai/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"User-Agent: OpenAI/Python 2.54.0\r\nAccept: application/json\r\n"
        b"Content-Type: application/json\r\nAuthorization: Bearer %b\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (secret(key).encode(), len(body), body)
    )


async def connect(port: int) -> Client:
    """A client's connection."""
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


async def fetch(port: int, path: bytes) -> int:
    """Bytes of what the admin port answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET %b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % path)
    size = len(await reader.read(-1))
    writer.close()
    return size


@contextlib.asynccontextmanager
async def gateway(
    keys: int, *, hashed: bool = True, more: str = "", workers: int = 1
) -> AsyncIterator[Gateway]:
    """A gateway with so many keys before a provider, in a folder of its own."""
    server = await asyncio.get_running_loop().create_server(Provider, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.toml"
        provider = server.sockets[0].getsockname()[1]
        text = BASE.format(folder=folder, provider=provider, workers=workers) + more
        config.write_text(text + "".join(keys_of(keys, hashed)))
        running = await asyncio.to_thread(Gateway, config)
        try:
            client = await connect(running.port)
            await client.ask(request(0))
            client.transport.close()
            yield running
        finally:
            await asyncio.to_thread(running.end)
            server.close()


class Stall(NamedTuple):
    """Milliseconds of round trips while something happened: their median, and the longest."""

    median: float
    longest: float
    lasted: float


async def stall(running: Gateway, what: Callable[[], Awaitable[object]]) -> Stall:
    """Make round trips, one after the other, until `what` is over."""
    client = await connect(running.port)
    ask = request(0)
    for _ in range(20):
        await client.ask(ask)
    began = time.monotonic()
    task = asyncio.ensure_future(what())
    times = []
    while not task.done():
        before = time.monotonic()
        await client.ask(ask)
        times.append(time.monotonic() - before)
    await task
    client.transport.close()
    times.sort()
    return Stall(times[len(times) // 2] * 1000, times[-1] * 1000, (time.monotonic() - began) * 1000)


async def start(sizes: list[int]) -> None:
    """How long until it answers, what that takes, and `fastgw check`."""
    print("start: keys, written as | seconds until it listens | CPU s | RSS MiB | check s")
    for keys in sizes:
        for hashed in (True, False):
            async with gateway(keys, hashed=hashed) as running:
                with tempfile.TemporaryDirectory() as folder:
                    config = Path(folder) / "config.toml"
                    text = BASE.format(folder=folder, provider=9, workers=1)
                    config.write_text(text + "".join(keys_of(keys, hashed)))
                    began = time.monotonic()
                    await asyncio.to_thread(
                        subprocess.run,
                        [sys.executable, "-m", "fastgw", "check", "--config", str(config)],
                        check=True,
                        stdout=subprocess.DEVNULL,
                    )
                    check = time.monotonic() - began
                print(
                    f"  {keys:7} {'key_hash' if hashed else 'key':8}"
                    f" {running.seconds:6.2f} {running.cpu:6.2f} {running.rss:7.1f} {check:6.2f}"
                )


async def reload(sizes: list[int]) -> None:
    """How long SIGHUP keeps requests waiting, in one process and in two workers."""
    print("reload: keys, workers | median ms | longest ms | lasted ms | RSS MiB before, after")
    for keys in sizes:
        for workers in (1, 2):
            async with gateway(keys, workers=workers) as running:
                for _ in range(3):
                    before = running.rss

                    async def once(running: Gateway = running) -> None:
                        running.process.send_signal(signal.SIGHUP)
                        await asyncio.to_thread(running.wait_for, "is in use")
                        await asyncio.sleep(0.3)

                    found = await stall(running, once)
                    print(
                        f"  {keys:7} {workers} {found.median:7.2f} {found.longest:7.1f}"
                        f" {found.lasted:7.0f} {before:7.1f} {running.rss:7.1f}"
                    )


async def use(running: Gateway, keys: int, connections: int = 32) -> None:
    """A request by each key."""

    async def some(first: int) -> None:
        client = await connect(running.port)
        for key in range(first, keys, connections):
            await client.ask(request(key))
        client.transport.close()

    await asyncio.gather(*map(some, range(connections)))
    await asyncio.sleep(2.5)


async def memory(sizes: list[int]) -> None:
    """What a key, an account, a series, a connection and a stream add."""
    most = max(sizes)
    async with gateway(1) as running:
        base = running.rss
        print(f"memory: RSS of a worker at its start {base:.1f} MiB; more of it for each")

        def each(name: str, before: float, number: int) -> None:
            more = (running.rss - before) * 1024 / number
            print(f"  {more:8.2f} KiB  {name} ({number:,})")

        for number in (1000, 5000):
            before = running.rss
            clients = [await connect(running.port) for _ in range(number)]
            await asyncio.sleep(0.5)
            each("connection that asked nothing yet", before, number)
            for client in clients:
                await client.ask(request(0))
            await asyncio.sleep(1.5)
            each("idle connection that was used", before, number)
            for client in clients:
                client.transport.close()
            await asyncio.sleep(0.5)
    async with gateway(1) as running:
        before = running.rss
        clients = [await connect(running.port) for _ in range(1000)]
        for client in clients:
            await client.ask(request(0, stream=True))
        await asyncio.sleep(1.5)
        each("stream that waits, both connections included", before, 1000)
        for client in clients:
            client.transport.close()
    for name, more in (
        ("of accounts (budget, journal)", "[usage]\nenabled = false\n"),
        ("of accounts, and usage reports as they are by default", ""),
        ("the same with a metric label for each", LABELS % (4 * most)),
    ):
        async with gateway(most, more=more) as running:
            print(f"  {(running.rss - base) * 1024 / most:8.2f} KiB  key ({most:,})")
            before = running.rss
            await use(running, most)
            each(name, before, most)
            for what, pattern in (("journal", "*.debits/*"), ("SQLite", "store.db")):
                size = sum(path.stat().st_size for path in running.folder.glob(pattern))
                print(f"  {size / 1024 / most:8.2f} KiB  of it in the file of {what}")


async def scrape(sizes: list[int]) -> None:
    """How long GET /metrics keeps requests waiting, where every key has its series."""
    print("scrape: keys, max_series | median ms | longest ms | lasted ms | MB")
    for keys in sizes:
        for most in dict.fromkeys((10_000, 4 * keys)):
            async with gateway(keys, more=LABELS % most) as running:
                await use(running, keys)
                for _ in range(2):
                    size = 0

                    async def once(running: Gateway = running) -> None:
                        nonlocal size
                        size = await fetch(running.admin, b"/metrics")

                    found = await stall(running, once)
                print(
                    f"  {keys:7} {most:7} {found.median:7.2f} {found.longest:7.1f}"
                    f" {found.lasted:7.0f} {size / 1e6:7.2f}"
                )


async def cost(sizes: list[int]) -> None:
    """CPU of an exchange without sockets, by how many keys take turns."""
    show("Exchange by many keys, without sockets", await many.measure(sizes, 20_000))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=(*PARTS, []), metavar="PART")
    parser.add_argument("--keys", default="1,1000,100000", help="numbers of keys")
    options = parser.parse_args()
    sizes = [int(text) for text in options.keys.split(",")]
    for part in options.parts or PARTS:
        asyncio.run(globals()[part](sizes))


if __name__ == "__main__":
    main()
