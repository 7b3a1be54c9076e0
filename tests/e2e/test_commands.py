"""The commands as a newcomer types them: demo, check, budgets, help; exit codes and messages."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.processes import ALICE, BOB, ROOT, chat, request, settled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import StartGateway


def fastgw(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "fastgw", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )


MISTAKES = """\
[server]
listen = "127.0.0.1"
drain_timout = "10s"
max_request_body = "32 potatoes"

[store]
url = "sqllite:budgets.db"
on_failure = "ignore"

[auth]
mode = "strikt"

[[keys]]
name = "alice"
key = "sk-alice-abc123def456"
metadata = { user_id = "alice" }

[[keys]]
name = "bob"
key = "sk-alice-abc123def456"

[[keys]]
name = "carol"
key = "${CAROL_KEY}"
expires_at = "tomorrow"

[[budgets]]
name = "daily"
per = ["user_ID"]
limit = "100"

[[budgets]]
name = "daily"
limit = 5
window = "fortnight"

[[upstreams]]
name = "openai"
base_url = "api.openai.com/v1"

[[routes]]
path_prefix = "/openai"
upstream = "openia"

[[routes]]
path_prefix = "openai/"
upstream = "openai"
"""

EXPECTED = [
    (2, "[server] listen", "host:port"),
    (3, "drain_timout", "drain_timeout"),
    (4, "max_request_body", "MiB"),
    (7, "[store] url", "sqlite:"),
    (8, "on_failure", "local"),
    (11, "[auth] mode", "strict"),
    (20, "key", "alice"),
    (24, "CAROL_KEY", "set it"),
    (25, "expires_at", "2026-12-31T00:00:00Z"),
    (29, "user_ID", "user_id"),
    (30, "limit", "without quotes"),
    (33, "daily", "its own"),
    (35, "window", "day"),
    (39, "base_url", "https://"),
    (43, "openia", "openai"),
    (46, "path_prefix", '"/openai"'),
]


def test_typical_mistakes_are_all_reported_in_one_run(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(MISTAKES)
    run = fastgw("check", "--config", "bad.toml", cwd=tmp_path)
    assert run.returncode == 2
    lines = [line for line in run.stderr.splitlines() if line.startswith("bad.toml:")]
    for number, setting, way_out in EXPECTED:
        found = [line for line in lines if line.startswith(f"bad.toml:{number}:")]
        assert len(found) == 1, (number, setting, run.stderr)
        assert setting in found[0]
        assert re.search(way_out, found[0]), found[0]
    assert len(lines) == len(EXPECTED), run.stderr
    assert "sk-alice-abc123def456" not in run.stderr
    assert "Traceback" not in run.stderr


def test_serve_refuses_the_same_way_and_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(MISTAKES)
    run = fastgw("serve", "--config", "bad.toml", cwd=tmp_path)
    assert run.returncode == 2
    assert f"{len(EXPECTED)} problems; nothing was started" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.toml"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "config.toml"),
        ("[server\n", "config.toml:1"),
        ("", "upstream"),
        ('[[keys]]\nname = "a"\n', "key"),
        ("\x00", "config.toml"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "config.toml").write_text(text)
    run = fastgw("check", cwd=tmp_path)
    assert run.returncode == 2
    assert says in run.stderr
    assert "Traceback" not in run.stderr


def test_check_says_what_each_key_and_budget_comes_to() -> None:
    run = fastgw("check", "--config", "config.toml", cwd=ROOT, OPENAI_API_KEY="sk-real-secret")
    assert run.returncode == 0, run.stderr
    for part in ("alice", "bob", "per-user-daily", "/openai", "configuration ok"):
        assert part in run.stdout
    for secret in (ALICE, BOB, "sk-real-secret"):
        assert secret not in run.stdout


def test_the_example_needs_its_provider_key() -> None:
    env = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    run = subprocess.run(
        [sys.executable, "-m", "fastgw", "check"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env=env,
    )
    assert run.returncode == 2
    assert "OPENAI_API_KEY" in run.stderr


def test_help_shows_examples(tmp_path: Path) -> None:
    assert "fastgw demo" in fastgw("--help", cwd=tmp_path).stdout
    for command in ("serve", "check", "demo", "budgets"):
        run = fastgw(command, "--help", cwd=tmp_path)
        assert run.returncode == 0
        assert f"example: fastgw {command}" in run.stdout
    assert re.match(r"fastgw \d+\.\d+", fastgw("--version", cwd=tmp_path).stdout)
    for bad in ((), ("bake",), ("serve", "--nope"), ("budgets", "--format", "xml")):
        assert fastgw(*bad, cwd=tmp_path).returncode == 2


def test_budgets_of_a_running_gateway(start: StartGateway) -> None:
    gateway = start()
    for _ in range(3):
        chat(gateway, ALICE)
    chat(gateway, BOB)
    settled(gateway)
    config = str(gateway.config)
    folder = gateway.folder
    table = fastgw("budgets", "--config", config, cwd=folder)
    assert table.returncode == 0, table.stderr
    assert re.search(r"per-user-daily +user_id=alice +tokens +57 +0 +100 +43", table.stdout)
    rows = orjson.loads(
        fastgw("budgets", "--config", config, "--format", "json", cwd=folder).stdout
    )
    assert {row["account"]["user_id"]: row["used"] for row in rows} == {"alice": 57, "bob": 19}
    lines = fastgw("budgets", "--config", config, "--format", "csv", cwd=folder).stdout.splitlines()
    assert lines[0].startswith("budget,account,unit,used,held,limit,remaining")
    assert len(lines) == 3
    one = fastgw("budgets", "--config", config, "--key", "bob", cwd=folder)
    assert "bob" in one.stdout
    assert "alice" not in one.stdout
    nobody = fastgw("budgets", "--config", config, "--key", "zed", cwd=folder)
    assert (nobody.returncode, "zed" in nobody.stderr) == (2, True)


def test_budgets_in_memory_are_asked_of_the_process(start: StartGateway) -> None:
    gateway = start(store="memory:")
    chat(gateway, ALICE)
    settled(gateway)
    run = fastgw("budgets", "--config", str(gateway.config), cwd=gateway.folder)
    assert re.search(r"alice +tokens +19", run.stdout), run.stderr
    gateway.stop()
    run = fastgw("budgets", "--config", str(gateway.config), cwd=gateway.folder)
    assert run.returncode == 1
    assert "running" in run.stderr


def test_the_demo_runs_as_it_says_and_leaves_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "fastgw", "demo", "--port", "0", "--admin-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    try:
        assert child.stdout is not None
        text = ""
        deadline = time.monotonic() + 30
        while "Ctrl-C" not in text and time.monotonic() < deadline:
            text += child.stdout.readline()
        data = re.search(r"http://127\.0\.0\.1:(\d+)", text)
        admin = re.search(r"operator's port is http://127\.0\.0\.1:(\d+)", text)
        config = re.search(r"budgets --config (\S+)", text)
        assert data
        assert admin
        assert config
        body = b'{"model":"gpt-3.5-turbo","messages":[{"role":"user","content":"Hello!"}]}'

        def ask(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            return request(int(data[1]), "POST", "/openai", body, headers)[0]

        assert [ask(ALICE) for _ in range(8)] == [200] * 6 + [429] * 2
        assert ask(BOB) == 200
        metrics = request(int(admin[1]), "GET", "/metrics")[2].decode()
        assert 'user_id="alice"' in metrics
        run = fastgw("budgets", "--config", config[1], cwd=tmp_path)
        assert re.search(r"user_id=alice +tokens +114 +0 +100 +0", run.stdout), run.stderr
        run = fastgw("check", "--config", config[1], cwd=tmp_path)
        assert run.returncode == 0, run.stderr
    finally:
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 0, errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("budgets",), ("usage",), ("audit", "--stub-log", "x")])
def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Typed in another folder than the gateway's it would say that nothing was used."""
    (tmp_path / "config.toml").write_bytes((ROOT / "config.toml").read_bytes())
    run = fastgw(*command, cwd=tmp_path, OPENAI_API_KEY="sk-real-secret")
    assert run.returncode == 1
    assert run.stdout == ""
    assert f"there is no {tmp_path}/fastgw.db" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
