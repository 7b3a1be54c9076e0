"""A gateway between two proxies, and the books that are kept of what went through.

    client -> down (proxy) -> gateway -> up (proxy) -> stub provider

Every exchange has an id of its own, which the access log and the provider's log repeat: what it
cost, what it should have cost and how often it was done can be told for each of them.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h11
import orjson
import pytest

from tests.adversity.proxy import Plan, Proxy
from tests.processes import ALICE, Gateway, Provider

if TYPE_CHECKING:
    from collections.abc import Iterator

GUARD = 20.0
"""Seconds after which a test that hangs fails."""
BUDGET = """
[[budgets]]
name = "per-user-daily"
per = ["user_id"]
limit = 1000000000000
window = "year"
"""
WAYS = """
[[upstreams]]
name = "direct"
base_url = "http://127.0.0.1:{provider}/v1"
[[upstreams]]
name = "kept"
base_url = "http://127.0.0.1:{proxy}/v1"
[[routes]]
path_prefix = "/direct"
upstream = "direct"
[[routes]]
path_prefix = "/kept"
upstream = "kept"
"""
"""/openai goes through the proxy on a new connection each time, /kept on one that is kept."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got. `whole`: an HTTP client takes it for a complete message."""

    status: int
    body: bytes
    whole: bool
    reset: bool
    raw: bytes


def ask(port: int, data: bytes) -> Answer:
    """Send `data` as it is on a connection of its own; read one answer by the rules of h11."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="POST", target="/", headers=[("host", "a")]))
    reader.send(h11.EndOfMessage())
    status, whole, reset = 0, False, False
    body, raw = bytearray(), bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=GUARD) as sock:
        try:
            sock.sendall(data)
            while not whole:
                part = sock.recv(65536)
                raw += part
                reader.receive_data(part)
                while (event := reader.next_event()) is not h11.NEED_DATA:
                    if isinstance(event, h11.Response):
                        status = event.status_code
                    elif isinstance(event, h11.Data):
                        body += event.data
                    else:
                        whole = isinstance(event, h11.EndOfMessage)
                        break
                if not part:
                    break
        except (ConnectionResetError, BrokenPipeError):
            reset = True
        except h11.RemoteProtocolError:
            pass  # it ended before its end
    return Answer(status, bytes(body), whole, reset, bytes(raw))


def spoken(
    number: str,
    path: str = "/openai",
    stub: str = "events=3",
    *,
    stream: bool = False,
    asks: bool = False,
    version: str = "1.1",
    chunked: bool = False,
    key: str = ALICE,
    prompt: str = "Hello!",
) -> bytes:
    """A chat completion as bytes. `number` is its id, `asks` asks for the usage of a stream."""
    message: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    if stream:
        message["stream"] = True
    if asks:
        message["stream_options"] = {"include_usage": True}
    body = orjson.dumps(message)
    head = (
        f"POST {path}/chat/completions HTTP/{version}\r\nHost: gateway\r\n"
        f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        f"x-request-id: {number}\r\nx-stub: {stub}\r\n"
    )
    if chunked:
        pieces = b"".join(
            b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:30], body[30:])
        )
        return f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + pieces + b"0\r\n\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Bench:
    """The processes, and what they wrote since `begin`."""

    def __init__(self, folder: Path, budgets: str = BUDGET) -> None:
        self.provider = Provider(folder)
        self.up = Proxy(self.provider.port)
        try:
            self.gateway = Gateway(
                folder,
                self.up.port,
                budgets=budgets,
                upstream='keepalive_timeout = "1ms"',
                more=WAYS.format(provider=self.provider.port, proxy=self.up.port),
            )
        except AssertionError:
            self.up.close()
            self.provider.stop()
            raise
        self.down = Proxy(self.gateway.port)
        self._log = folder / f"access-{self.gateway.port}.log"
        self._read = 0
        self._used = 0
        self._ids = 0

    def begin(self) -> None:
        """Forget what was, which `books` has been asked for; no faults until a plan says so."""
        self.up.plan = self.down.plan = Plan()
        self.quiet()
        self._read = self._log.stat().st_size
        self.provider.forget()
        self._used = self.gateway.used("alice")

    def name(self, word: str) -> str:
        """An id for the next exchange; all have the same length."""
        self._ids += 1
        return f"{word[:8]:_<8}{self._ids:08d}"

    def quiet(self) -> None:
        """Nothing is under way any more, on either side and in the store."""
        deadline = time.monotonic() + GUARD
        while time.monotonic() < deadline:
            status = self.gateway.api("/api/status")
            busy = sum(
                number
                for pool in status["upstreams"].values()
                for state, number in pool.items()
                if state != "idle"
            )
            left = (status["exchanges"], status["connections"], busy)
            if left == (0, 0, 0) and not status["store"]["debits_pending"]:
                return
            time.sleep(0.01)
        raise AssertionError(f"not at rest: {status}")

    def _lines(self) -> list[dict[str, Any]]:
        """Whole lines of the access log since the last call."""
        with self._log.open("rb") as file:
            file.seek(self._read)
            text, end, _ = file.read().rpartition(b"\n")
        self._read += len(text) + len(end)
        return [orjson.loads(line) for line in text.split(b"\n") if line]

    def books(self, wanted: set[str]) -> dict[str, Entry]:
        """The entry of each exchange since `begin`, those of `wanted` at least.

        Asserts what must hold whatever happened: nothing is left under way; one line an exchange;
        the provider asked at most once; what was used is the sum of the lines.
        """
        self.quiet()
        used = self.gateway.used("alice") - self._used
        books = {number: Entry() for number in wanted}
        deadline = time.monotonic() + GUARD
        time.sleep(0.15)  # more than its write interval: a line too many would be here as well
        while True:
            for line in self._lines():
                if "gen_ai.operation.name" in line:  # else: bytes that were no request
                    books.setdefault(line["request_id"], Entry()).lines.append(line)
            cost = sum(entry.cost for entry in books.values())
            if (cost == used and all(books[number].lines for number in wanted)) or (
                time.monotonic() > deadline
            ):
                break
            time.sleep(0.05)
        for each in self.provider.entries():
            books.setdefault(each["request_id"], Entry()).asked.append(each)
        for number, entry in books.items():
            assert len(entry.lines) <= 1, (number, entry)
            assert len(entry.asked) <= 1, (number, entry)
        assert used == cost
        return books

    @property
    def resident(self) -> int:
        """Resident bytes of the gateway."""
        fields = Path(f"/proc/{self.gateway.child.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def files(self) -> int:
        """Open file descriptors of the gateway."""
        return len(os.listdir(f"/proc/{self.gateway.child.pid}/fd"))

    def close(self) -> None:
        """End everything; the gateway must end well."""
        self.down.close()
        ended = self.gateway.stop()
        self.up.close()
        self.provider.stop()
        text = self.gateway.log.read_text()
        assert ended == 0, text
        assert "Traceback" not in text, text


class Entry:
    """What the access log and the provider know of one exchange."""

    __slots__ = ("asked", "lines")

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.asked: list[dict[str, Any]] = []

    @property
    def line(self) -> dict[str, Any]:
        """Its one line of the access log."""
        assert len(self.lines) == 1, self
        return self.lines[0]

    @property
    def cost(self) -> int:
        """What the access log says that it cost."""
        return sum(line["input_tokens"] + line["output_tokens"] for line in self.lines)

    def __repr__(self) -> str:
        return f"<Entry logged {self.lines} asked {self.asked}>"


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("adversity"))
    yield bench
    bench.close()


@pytest.fixture
def bench(processes: Bench) -> Bench:
    """The processes of this module, at rest and with empty books."""
    processes.begin()
    return processes
