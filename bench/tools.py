"""The stub provider and the load generator that a measurement uses: in C, or in Python without a
compiler, which is then what limits most rates."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from bench.native import NoCompiler, build

if TYPE_CHECKING:
    from bench.workloads import Workload

ROOT = Path(__file__).resolve().parents[1]
ENVELOPE = 80
"""Bytes of a body around its prompt; both generators take the size of that."""
GRACE = 120.0
"""Seconds that a load may take beyond its own."""


class LoadFailed(RuntimeError):
    """The load generator ended without an answer that can be read."""


class Loaded(NamedTuple):
    """What the load generator said, and the CPU seconds that it took itself."""

    said: dict[str, Any]
    cpu: float


class Tools(NamedTuple):
    """The two programs."""

    kind: str
    """native or python"""
    provider_command: tuple[str, ...]
    load_command: tuple[str, ...]

    @classmethod
    def find(cls) -> Tools:
        """Those in C, built if they have to be."""
        try:
            folder = build()
        except NoCompiler as problem:
            print(f"{problem}; the Python ones are used", flush=True)
            return cls.python()
        return cls("native", (str(folder / "provider"),), (str(folder / "load"),))

    @classmethod
    def python(cls) -> Tools:
        """Those in Python."""
        return cls(
            "python",
            (sys.executable, "-m", "fastgw.demo.provider", "--no-log"),
            (sys.executable, "-m", "bench.load.generator"),
        )

    def provider(self, port: int, behaviour: str) -> list[str]:
        """The command that serves a port."""
        if self.kind == "native":
            return [*self.provider_command, "--port", str(port), "--behaviour", behaviour]
        place = ("--listen", f"127.0.0.1:{port}")
        return [*self.provider_command, *place, "--behaviour", behaviour]

    def load(
        self, port: int, path: str, workload: Workload, seconds: float, key: str, keys: Path
    ) -> list[str]:
        """The command that loads a port for so many seconds. `keys` is read if there are many."""
        command = [*self.load_command, "--port", str(port), "--path", path]
        command += ["--connections", str(workload.connections)]
        command += ["--once"] if workload.paced else ["--seconds", str(seconds)]
        command += ["--stream"] * workload.stream
        if workload.keys > 1:
            command += ["--keys", str(keys)]
        else:
            command += ["--key", key]
        option = "--body-bytes" if self.kind == "native" else "--prompt"
        return [*command, option, str(workload.body_bytes - ENVELOPE)]


def run_load(command: list[str], seconds: float) -> Loaded:
    """Run a load to its end. Raises LoadFailed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as child:
        try:
            said, complaint = child.communicate(timeout=seconds + GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            raise LoadFailed(f"no end after {seconds + GRACE:.0f} s") from None
    try:
        answer = orjson.loads(said)
    except orjson.JSONDecodeError:
        text = (said + complaint).decode(errors="replace")[-2000:]
        raise LoadFailed(f"status {child.returncode}: {text}") from None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Loaded(answer, spent)


def environment(**more: str) -> dict[str, str]:
    """The environment of a child that imports from the project."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}
