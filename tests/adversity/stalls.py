"""What a client waits for while hostile answers pass through the same worker.

    python -m tests.adversity.stalls

For each answer of bench/micro/hostile.py a client reads it again and again, and another asks for
`/key/info` on a connection of its own, which takes the gateway 0.1 ms. Printed is the CPU that the
gateway spends between question and answer, in milliseconds: what the client would wait on a machine
with nothing else to do. The first rows are without an answer, and with one that nobody meters.
"""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import orjson

from bench.micro.hostile import SIZE, Case, cases
from tests.adversity.conftest import BUDGET, GUARD
from tests.processes import ALICE, ROOT, Gateway, free_port

UNMETERED = Case("10 MB that nobody meters", b"\0" * SIZE, lambda: None)  # type: ignore[arg-type, return-value]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\nconnection: close\r\n\r\n"
INFO = f"GET /key/info HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {ALICE}\r\n\r\n".encode()


class Waits(NamedTuple):
    """Milliseconds of CPU that a client waited for, sorted; answers that passed meanwhile."""

    name: str
    waits: list[float]
    passed: int


def answers(size: int) -> list[Case]:
    """What OpenAI's format has of the hostile answers."""
    found = [
        case for case in cases(size) if case.body.startswith((b"data:", b'{"')) and case.complete
    ]
    return [UNMETERED._replace(body=UNMETERED.body[:size]), *found]


def provide(port: int, size: int) -> None:
    """Serve them: the model's name is the number of the answer."""
    bodies = [case.body for case in answers(size)]
    listener = socket.create_server(("127.0.0.1", port))

    def serve(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            data = b""
            while not data.endswith(b"}"):
                data += client.recv(65536)
            number = int(orjson.loads(data[data.index(b"\r\n\r\n") :])["model"])
            body = bodies[number]
            kind = b"text/event-stream" if body.startswith(b"data:") else b"application/json"
            client.sendall(HEAD % (kind if number else b"audio/mpeg") + body)

    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()


def read_on(port: int, number: int) -> None:
    """Read the answer of that number again and again; a line for each."""
    body = orjson.dumps({"model": str(number), "messages": [], "stream": True})
    head = (
        "POST /openai/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
        f"authorization: Bearer {ALICE}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    buffer = bytearray(1 << 20)
    while True:
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head.encode() + body)
            while client.recv_into(buffer):
                pass
        print(flush=True)


def asked(gateway: Gateway, seconds: float) -> list[float]:
    """Ask for a while; what each answer took of the gateway's CPU, and all that came before it."""
    waits = []
    clock = ~gateway.child.pid << 3 | 2  # of another process: clock_getcpuclockid(3)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=GUARD) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.clock_gettime(clock)
            client.sendall(INFO)
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
            waits.append((time.clock_gettime(clock) - began) * 1e3)
            time.sleep(0.001)
    return sorted(waits)


def run(folder: Path, seconds: float = 3.0, size: int = SIZE, step: int = 1) -> list[Waits]:
    """All of them, or every so many."""
    found = []
    port = free_port()
    command = [sys.executable, "-m", "tests.adversity.stalls"]
    with contextlib.ExitStack() as stack:
        provider = subprocess.Popen([*command, "provide", str(port), str(size)], cwd=ROOT)
        stack.callback(provider.wait)
        stack.callback(provider.terminate)
        gateway = Gateway(folder, port, budgets=BUDGET)
        stack.callback(gateway.stop)
        until = time.monotonic() + GUARD
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        found.append(Waits("nothing", asked(gateway, seconds), 0))
        for number, case in [*enumerate(answers(size))][::step]:
            reader = subprocess.Popen(
                [*command, "read", str(gateway.port), str(number)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
            )
            assert reader.stdout is not None
            with reader.stdout:
                reader.stdout.readline()
                waits = asked(gateway, seconds)
                reader.terminate()
                found.append(Waits(case.name, waits, reader.stdout.read().count(b"\n") + 1))
            reader.wait()
    return found


def main() -> None:
    """Print them."""
    with tempfile.TemporaryDirectory() as folder:
        print("ms of CPU that a client waits for: half, 99 of 100, all; answers that passed\n")
        for row in run(Path(folder)):
            waits = row.waits
            half, most = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
            print(f"  {half:6.2f} {most:6.2f} {waits[-1]:6.2f} {row.passed:5}  {row.name}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["provide"]:
        provide(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["read"]:
        read_on(int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
