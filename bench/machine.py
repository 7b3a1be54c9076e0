"""What a result was measured on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from bench.tools import ROOT


def _first(pattern: str, path: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stdout.rstrip()


def describe() -> dict[str, Any]:
    """The machine, by what its kernel says."""
    kib = int(_first(r"^MemTotal:\s+(\d+)", "/proc/meminfo") or 0)
    return {
        "cpu": _first(r"^model name\s*:(.*)", "/proc/cpuinfo") or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in _first(r"^flags\s*:(.*)", "/proc/cpuinfo"),
        "memory_gib": round(kib / 2**20),
        "kernel": platform.release(),
        "system": _first(r'^PRETTY_NAME="?([^"\n]*)', "/etc/os-release"),
        "python": f"{platform.python_implementation()} {platform.python_version()} ({build()})",
    }


def build() -> str:
    """Whose interpreter this is, and how it was built. One that was compiled with a profile of
    itself, as those of distributions are, needs less for a request of a gateway in Python."""
    if sys.base_prefix == "/usr":
        return "the distribution's"
    if "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS")):
        return "built with --enable-optimizations"
    return "built without --enable-optimizations"


def slug(machine: dict[str, Any]) -> str:
    """A name for files: amd-epyc-2."""
    return re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} {machine['cpus']}".lower()).strip("-")


def commit() -> dict[str, Any]:
    """What was measured; `changed`: files of fastgw that differ from that commit."""
    changed = [line[3:] for line in _git("status", "--porcelain", "--", "fastgw").splitlines()]
    return {"id": _git("rev-parse", "--short=10", "HEAD"), "changed": changed}
