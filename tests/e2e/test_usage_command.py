"""Who used what: `fastgw usage` and /api/usage, exact over workers, restarts and crashes."""

from __future__ import annotations

import csv
import io
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import redis

from tests.processes import ALICE, BOB, ROOT, TOKEN, chat, request, settled

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway
    from tests.redis_server import RedisServer

# The stub makes 10 input and 9 output tokens: 18,500 nano-USD of gpt-3.5-turbo.
ONE = {"requests": 1, "input_tokens": 10, "output_tokens": 9, "cached_input_tokens": 0}


def asked(gateway: Gateway, query: str = "by=key") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.api(f"/api/usage?{query}")
    return found


def run(gateway: Gateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastgw", "usage", "--config", str(gateway.config)]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=ROOT)


def eventually(gateway: Gateway, requests: int, *arguments: str) -> list[dict[str, Any]]:
    """The rows of the command once they count so many requests: a second or so later."""
    deadline = time.monotonic() + 20
    while True:
        done = run(gateway, "--format", "json", *arguments)
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = orjson.loads(done.stdout)
        if sum(row["requests"] for row in rows) >= requests or time.monotonic() > deadline:
            return rows
        time.sleep(0.1)


def today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


@pytest.mark.parametrize("store", ["sqlite", "memory:", "redis"])
def test_sums_by_every_field(redis_server: RedisServer, start: StartGateway, store: str) -> None:
    where = {"redis": redis_server.url, "sqlite": ""}.get(store, store)
    gateway = start(store=where, budgets="")
    assert chat(gateway, ALICE)[0] == 200
    assert chat(gateway, ALICE, stream=True, stub="cached=4")[0] == 200
    assert chat(gateway, ALICE, model="gpt-4o")[0] == 200
    assert chat(gateway, BOB, model="house-blend")[0] == 200
    assert chat(gateway, BOB, stub="fault=status:500")[0] == 500
    assert chat(gateway, "sk-nobody-at-all")[0] == 401
    eventually(gateway, 4)
    assert asked(gateway) == [
        {"key": "alice", "requests": 3, "input_tokens": 30, "output_tokens": 27,
         "cached_input_tokens": 4, "cost": 152_000, "cost_usd": "0.000152"},
        {"key": "bob", **ONE, "cost": 0, "cost_usd": "0"},
    ]  # fmt: skip
    assert [(row["user_id"], row["model"], row["cost"]) for row in asked(
        gateway, "by=user_id,model&since=1d"
    )] == [
        ("alice", "gpt-3.5-turbo", 37_000), ("alice", "gpt-4o", 115_000), ("bob", "house-blend", 0),
    ]  # fmt: skip
    assert [(row["tier"], row["requests"]) for row in asked(gateway, "by=tier")] == [
        ("free", 3),
        ("premium", 1),
    ]
    (row,) = eventually(gateway, 4, "--by", "day", "--by", "upstream")
    assert (row["day"], row["upstream"], row["requests"]) == (today(), "stub", 4)
    assert asked(gateway, "since=2100-01-01") == []


def test_the_three_formats(start: StartGateway) -> None:
    gateway = start(budgets="")
    assert run(gateway).stdout.startswith("nothing was used")
    assert chat(gateway, ALICE)[0] == 200
    eventually(gateway, 1)
    header, line = run(gateway, "--by", "user_id,model").stdout.splitlines()
    assert header.split() == (
        "USER ID MODEL REQUESTS INPUT TOKENS OUTPUT TOKENS CACHED INPUT TOKENS COST USD".split()
    )
    assert line.split() == ["alice", "gpt-3.5-turbo", "1", "10", "9", "0", "0.0000185"]
    text = run(gateway, "--by", "key", "--format", "csv", "--since", "24h").stdout
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["key"], row["cost_usd"]) == ("alice", "0.0000185")


def test_a_question_that_makes_no_sense_is_told_so(start: StartGateway) -> None:
    gateway = start()
    for arguments, part in (
        (("--by", "user"), "no usage is known by 'user'; there is day, key"),
        (("--since", "yesterday"), "'yesterday' is no time; write 7d"),
    ):
        done = run(gateway, *arguments)
        assert done.returncode == 2
        assert part in done.stderr
    shown = {"Authorization": f"Bearer {TOKEN}"}
    status, _, body = request(gateway.admin_port, "GET", "/api/usage?by=user", None, shown)
    assert status == 400
    assert orjson.loads(body)["error"]["code"] == "invalid_query"
    assert request(gateway.admin_port, "GET", "/api/usage")[0] == 401


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_a_killed_gateway_forgets_nothing(
    redis_server: RedisServer, start: StartGateway, store: str
) -> None:
    where = redis_server.url if store == "redis" else ""
    gateway = start(store=where, budgets="")
    for _ in range(7):
        assert chat(gateway, ALICE)[0] == 200
    settled(gateway)  # the last answer is counted a moment after the client has it
    gateway.child.send_signal(signal.SIGKILL)
    gateway.child.wait()
    again = start(store=where or f"sqlite:{gateway.folder}/budgets-{gateway.port}.db", budgets="")
    assert chat(again, ALICE)[0] == 200
    (row,) = eventually(again, 8)
    assert (row["requests"], row["input_tokens"], row["cost"]) == (8, 80, 8 * 18_500)
    assert again.stop() == 0
    (row,) = eventually(again, 8)
    assert row["requests"] == 8


def test_workers_add_up_and_a_stop_leaves_nothing_behind(start: StartGateway) -> None:
    gateway = start(budgets="", server="workers = 2")
    for _ in range(40):
        assert chat(gateway, ALICE)[0] == 200
    assert gateway.stop() == 0
    (row,) = eventually(gateway, 40)
    assert (row["requests"], row["output_tokens"], row["cost"]) == (40, 360, 40 * 18_500)


def test_past_its_bound_models_count_under_other(start: StartGateway) -> None:
    gateway = start(budgets="", more="[usage]\nmax_series = 3\n")
    for number in range(6):
        assert chat(gateway, ALICE, model=f"model-{number}")[0] == 200
    rows = eventually(gateway, 6, "--by", "model")
    assert {row["model"]: row["requests"] for row in rows} == {
        "model-0": 1, "model-1": 1, "model-2": 1, "other": 3,
    }  # fmt: skip
    (row,) = eventually(gateway, 6, "--by", "user_id")
    assert (row["user_id"], row["requests"]) == ("alice", 6)


def test_it_can_be_turned_off(redis_server: RedisServer, start: StartGateway) -> None:
    gateway = start(store=redis_server.url, more="[usage]\nenabled = false\n")
    assert chat(gateway, ALICE)[0] == 200
    assert gateway.used("alice") == 19
    assert gateway.stop() == 0
    with redis.Redis.from_url(redis_server.url) as client:
        assert client.keys("fastgw:u:*") == []


def test_the_store_keeps_a_day_for_so_long(redis_server: RedisServer, start: StartGateway) -> None:
    gateway = start(store=redis_server.url, budgets="", more='[usage]\nretention = "10d"\n')
    assert chat(gateway, ALICE)[0] == 200
    eventually(gateway, 1)
    with redis.Redis.from_url(redis_server.url) as client:
        keys = client.keys("fastgw:u:*")
        assert len(keys) == 4  # nothing was cached
        for key in keys:
            assert 10 * 86_400 <= client.ttl(key) <= 11 * 86_400
    assert gateway.api("/api/budgets") == []
