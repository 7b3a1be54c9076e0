"""The compiled build: `FASTGW_COMPILE=1 pip install .` (docs/compiled.md).

Without the variable this file adds nothing: the wheel is pure Python. With it mypyc compiles the
modules below, from the source that runs without it, too. All metadata stand in pyproject.toml.
"""

import os
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

MODULES = (
    # the way of an exchange
    "asking", "callbacks", "cutoff", "drains", "engine", "exchange", "flow_control", "inspection",
    "metrics", "plan", "recorder", "relay", "reservation", "skeleton", "sse", "turn",
    "downstream/connection", "downstream/connections",
    "upstream/connection", "upstream/pool",
    "policy/account", "policy/cors", "policy/ledger", "policy/limit_headers", "policy/tallies",
    "policy/window",
    *(f"{room}/{path.stem}" for room in ("http1", "usage") for path in sorted(
        (Path(__file__).parent / "fastgw" / room).glob("[!_]*.py")) if path.stem != "brief"),
)  # fmt: skip
"""Not here: `model`, whose named tuples are the same when compiled; `errors`, whose classes are
exceptions with computed members; `usage/brief`, whose classes are made by msgspec; `clock`, which
is two names of the standard library; `journal`, whose exception mypyc cannot make; `settlement` and
`access_log`, which wait more than they work; and whatever runs seldom."""


def extensions() -> list[object]:
    """The modules, compiled."""
    if find_spec("mypyc") is None:
        if "egg_info" in sys.argv:  # pip asks what the build needs
            return []
        raise SystemExit("FASTGW_COMPILE=1 needs mypy; pip installs it unless told otherwise")
    from mypyc.build import mypycify

    paths = [f"fastgw/{name}.py" for name in MODULES]
    level = os.environ.get("FASTGW_OPTIMISE", "3")
    found: list[object] = mypycify(paths, opt_level=level, debug_level="0", group_name="fastgw")
    return found


def needs() -> list[str]:
    """What the compiler has to have: itself, and what the modules import, for its types."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    found: list[str] = project["dependencies"] + project["optional-dependencies"]["compile"]
    return found


if __name__ == "__main__":
    from setuptools import setup

    if os.environ.get("FASTGW_COMPILE", "0") in ("", "0"):
        setup()
    else:
        setup(ext_modules=extensions(), setup_requires=needs())
