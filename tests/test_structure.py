"""The house: floors, circles, sizes, names. A failure here names the rule and the way out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fastgw"
MAX_LINES = 600

FLOORS: dict[str, int] = {
    "__init__": 0,
    "model": 0,
    "errors": 0,
    "money": 0,
    "clock": 0,
    "compiled": 0,
    "tasks": 0,
    "config": 1,
    "exposition": 1,
    "metrics": 1,
    "access_log": 1,
    "http1": 2,
    "skeleton": 2,
    "sse": 2,
    "usage": 2,
    "policy": 3,
    "downstream": 4,
    "upstream": 4,
    "store": 4,
    "callbacks": 4,
    "flow_control": 4,
    "turn": 4,
    "journal": 4,
    "engine": 5,
    "bookkeeping": 5,
    "asking": 5,
    "drains": 5,
    "cutoff": 5,
    "exchange": 5,
    "inspection": 5,
    "reservation": 5,
    "plan": 5,
    "relay": 5,
    "keyring": 5,
    "settlement": 5,
    "recorder": 5,
    "reports": 5,
    "usage_report": 5,
    "audit": 5,
    "admin": 6,
    "demo": 6,
    "control": 4,
    "systemd": 0,
    "child": 7,
    "member": 7,
    "service": 7,
    "supervisor": 7,
    "worker": 7,
    "cli": 7,
    "__main__": 7,
}
NO_IO = {
    "asyncio", "socket", "ssl", "redis", "sqlite3", "time", "logging", "threading", "subprocess",
}  # fmt: skip
MODULES = sorted(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.parts[1].removesuffix(".py")


def imports(path: Path, *, typing_too: bool) -> set[str]:
    """Modules that a file imports, by dotted name."""
    tree = ast.parse((ROOT / path).read_text())
    skipped: set[ast.AST] = set()
    if not typing_too:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                skipped.update(child for child in ast.walk(node))
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import; name the module in full"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def inner(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("fastgw.")}


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in MODULES} <= set(FLOORS), "give the new room a floor here"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    for other in inner(imports(path, typing_too=False)) - {"__version__"}:
        if other == own:
            continue
        assert FLOORS[other] <= FLOORS[own], f"{path} imports {other}, which is on a higher floor"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_lower_floors_do_no_io(path: Path) -> None:
    if 2 <= FLOORS[room(path)] <= 3:
        used = {name.split(".")[0] for name in imports(path, typing_too=True)}
        assert not used & NO_IO, f"{path}: bytes and decisions only; I/O belongs to floor 4"


def test_the_connection_does_not_know_the_engine() -> None:
    for path in MODULES:
        if room(path) in ("downstream", "upstream"):
            known = inner(imports(path, typing_too=True))
            assert not known & {"exchange", "engine", "keyring", "policy", "store"}, path
        if room(path) == "admin":
            assert "exchange" not in inner(imports(path, typing_too=True)), path


def test_no_circles() -> None:
    graph = {}
    for path in MODULES:
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        graph[name] = imports(path, typing_too=False)
    names = set(graph)
    edges = {
        name: {
            target
            for imported in found
            for target in (imported, imported.rpartition(".")[0])
            if target in names and target != name
        }
        for name, found in graph.items()
    }
    edges = {name: found - {"fastgw"} for name, found in edges.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"circle: {' -> '.join((*above, name))}"
        if name not in done:
            for target in edges[name]:
                visit(target, (*above, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_no_file_is_too_long() -> None:
    for folder in ("fastgw", "tests", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            lines = len(path.read_text().splitlines())
            assert lines <= MAX_LINES, f"{path.relative_to(ROOT)}: {lines} lines; split it"


def test_tests_mirror_modules() -> None:
    """A test file is named after the module it tests, in the same place."""
    free = {
        "test_structure.py",
        "test_docs.py",
        "test_recorded.py",
        "test_contract.py",
        "test_differential.py",
    }
    for path in (ROOT / "tests").rglob("test_*.py"):
        place = path.relative_to(ROOT / "tests")
        if place.name in free or place.parts[0] in ("e2e", "adversity", "bench"):
            continue
        module = PACKAGE / place.parent / place.name.removeprefix("test_")
        package = module.with_suffix("")
        assert module.exists() or package.is_dir(), f"tests/{place} tests no module of that name"


BANNED = {
    r"\basyncio\.create_task\(": "tasks may be collected: use fastgw.tasks.spawn",
    r"\basyncio\.start_server\(": "the data path uses Protocols: a stream doubles its cost",
    r"set_dangerous_leniencies": "each leniency of llhttp is a smuggling risk",
    r"tiktoken\.get_encoding": "downloads at run time",
}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_banned_calls(path: Path) -> None:
    text = (ROOT / path).read_text()
    for pattern, reason in BANNED.items():
        if "start_server" in pattern and room(path) == "admin":
            continue  # h11 over streams: strictness over speed
        assert not re.search(pattern, text), f"{path}: {reason}"


def test_the_package_explains_itself_in_25_lines() -> None:
    import fastgw

    assert fastgw.__doc__ is not None
    assert len(fastgw.__doc__.strip().splitlines()) <= 25
