"""A load generator and a stub provider in C, so that neither is what a benchmark measures.

`provider` answers chat completions with prepared bytes, `load` is a closed loop of connections that
prints one JSON object. Each is one thread; both take `--help`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
FOLDER = SOURCES.parents[1] / "build" / "bench"
FLAGS = (
    *("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Wconversion"),
    *("-Wno-sign-conversion", "-Werror"),
)


class NoCompiler(RuntimeError):
    """There is no C compiler on this machine."""


def compiler() -> str:
    """Path of the C compiler. Raises NoCompiler."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NoCompiler("make bench needs a C compiler: apt-get install gcc")


def build() -> Path:
    """Compile what is older than its source; the folder that has `load` and `provider` in it.

    Raises NoCompiler, and RuntimeError with what the compiler says of a source.
    """
    shared = max(path.stat().st_mtime for path in (Path(__file__), *SOURCES.glob("*.h")))
    for source in sorted(SOURCES.glob("*.c")):
        program = FOLDER / source.stem
        newest = max(shared, source.stat().st_mtime)
        if not program.exists() or program.stat().st_mtime < newest:
            compile_source(source, program)
    return FOLDER


def compile_source(source: Path, program: Path, *more: str) -> None:
    """Make one program. Others may do the same at the same time: it appears whole.

    Raises NoCompiler, and RuntimeError with what the compiler says.
    """
    cc = compiler()
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as name:
        made = Path(name) / program.name
        run = subprocess.run(
            [cc, *FLAGS, *more, "-o", str(made), str(source)],
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise RuntimeError(f"{source.name} does not compile:\n{run.stderr}")
        made.replace(program)
