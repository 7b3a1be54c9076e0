"""The optional compiled build. `make test-compiled` runs all tests against it; here is what shows
early that a change would break it."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastgw
import fastgw.exchange
from fastgw.compiled import COMPILED, interpreted

ROOT = Path(__file__).resolve().parents[1]
MODULES: tuple[str, ...] = runpy.run_path(str(ROOT / "setup.py"))["MODULES"]

WITHOUT_EFFECT = {"len", "min", "max", "start", "end", "find", "isascii", "string_end"}


def test_it_is_known_whether_it_is_compiled() -> None:
    assert COMPILED == (not str(fastgw.exchange.__file__).endswith(".py"))


def test_the_version_tells() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "fastgw", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    how = "compiled" if COMPILED else "pure Python"
    assert told.stdout == f"fastgw {fastgw.__version__} ({how})\n"


def test_the_mark_changes_nothing() -> None:
    class Marked:
        pass

    assert interpreted(Marked) is Marked


@pytest.mark.parametrize("name", MODULES)
def test_no_type_of_a_named_tuple_is_missing(name: str) -> None:
    """mypyc looks the types of its members up as it makes the class."""
    source = (ROOT / f"fastgw/{name}.py").read_text()
    typing_only = re.findall(r"^    from \S+ import (.+)$", source, re.MULTILINE)
    absent = {each.strip() for line in typing_only for each in line.split(",")}
    for body in re.findall(r"^class \w+\(NamedTuple\):\n((?:    .*\n|\n)+)", source, re.MULTILINE):
        for outermost in re.findall(r"^    \w+: (\w+)(?:\[[^|]*\])?(?: =.*|  #.*)?$", body, re.M):
            assert outermost not in absent, f"import {outermost} where it is there at run time"


@pytest.mark.parametrize("name", MODULES)
def test_bounds_of_slices_may_be_worked_out_twice(name: str) -> None:
    """As mypyc does (2.4) for what is neither bytes, text, list nor tuple."""
    for node in ast.walk(ast.parse((ROOT / f"fastgw/{name}.py").read_text())):
        if isinstance(node, ast.Slice):
            calls = {
                call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
                for call in ast.walk(node)
                if isinstance(call, ast.Call)
            }
            assert calls <= WITHOUT_EFFECT, f"take it out of the bounds: {ast.unparse(node)}"


def test_who_may_be_weakly_referenced() -> None:
    """mypyc (2.4) leaves weak references to an object that is gone where its class derives from one
    that is not compiled, as both connections do."""
    users = {
        str(path.relative_to(ROOT / "fastgw"))
        for path in (ROOT / "fastgw").rglob("*.py")
        if re.search(r"^(?:from|import) weakref", path.read_text(), re.MULTILINE)
    }
    assert users == {"policy/kept.py", "policy/ledger.py"}, "of accounts and counts alone"


@pytest.mark.slow
@pytest.mark.skipif(COMPILED, reason="they are compiled")
@pytest.mark.skipif(find_spec("setuptools") is None, reason="mypyc needs setuptools")
def test_the_compiler_takes_the_modules(tmp_path: Path) -> None:
    """All but the C compiler: 15 seconds."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from mypyc.build import mypycify;"
            "mypycify(sys.argv[2:], target_dir=sys.argv[1], opt_level='0')",
            str(tmp_path),
            *(f"fastgw/{name}.py" for name in MODULES),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
