"""The checker: three books that agree, and every way in which they may not."""

from __future__ import annotations

import asyncio
import http.client
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastgw import clock
from fastgw.audit import audit, render
from fastgw.audit.findings import DIFFERS, NEVER_CHARGED, NO_PROVIDER, UNLOGGED, Audit
from fastgw.config import load
from fastgw.policy.window import AccountName, account_key, make_window
from tests.processes import ALICE, BOB, PER_USER, ROOT, TOKEN, Gateway, Provider, chat, settled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = clock.wall()
CONFIG = """
[store]
url = "sqlite:{folder}/b.db"
[[keys]]
name = "alice"
key = "sk-alice-abc123def456"
metadata = {{ user_id = "alice" }}
[[keys]]
name = "bob"
key = "sk-bob-xyz789uvw012"
metadata = {{ user_id = "bob" }}
[[budgets]]
name = "daily"
per = ["user_id"]
limit = 100
window = "{window}"
{more}
[[upstreams]]
name = "stub"
base_url = "http://127.0.0.1:1/v1"
[[routes]]
path_prefix = "/openai"
upstream = "stub"
[[routes]]
path_prefix = "/free"
upstream = "stub"
budgets = false
"""


def asked(number: str = "a", **more: Any) -> dict[str, Any]:
    """A line of the provider's log: a report of 10 + 9 tokens."""
    return {
        "time": clock.timestamp(NOW),
        "began": clock.timestamp(NOW - 0.01),
        "request_id": number,
        "account": "alice",
        "status": 200,
        "reported": True,
        "input_tokens": 10,
        "output_tokens": 9,
        "whole": True,
        "text_bytes": 42,
        "prompt_counted": 8,
        "end": "done",
    } | more


def line(number: str = "a", **more: Any) -> dict[str, Any]:
    """A line of the access log: a charge of what `asked` reports."""
    return {
        "time": clock.timestamp(NOW),
        "request_id": number,
        "status": 200,
        "reason": "ok",
        "key": "alice",
        "method": "POST",
        "path": "/openai",
        "route": "/openai",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "usage_source": "reported",
        "input_tokens": 10,
        "output_tokens": 9,
        "duration_ms": 10.0,
        "processing_ms": 0.1,
    } | more


COUNTED = {"usage_source": "counted", "input_tokens": 8, "output_tokens": 11}
NOTHING = {"usage_source": "none", "input_tokens": 0, "output_tokens": 0}
LEFT = {"reason": "client_disconnected"}
UNREPORTED = {"reported": False, "input_tokens": 0, "output_tokens": 0}
CUT = UNREPORTED | {"whole": False, "end": "client_closed", "text_bytes": 20}


class Books:
    """The three books, made by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def compare(
        self,
        asked: list[dict[str, Any]],
        lines: list[dict[str, Any]] | None,
        used: dict[str, int],
        window: str = "year",
        more: str = "",
        held: dict[AccountName, int] | None = None,
    ) -> Audit:
        config = self.folder / "config.toml"
        config.write_text(CONFIG.format(folder=self.folder, window=window, more=more))
        logs = []
        for name, several in (("stub", asked), ("access", lines)):
            path = self.folder / name
            path.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in several or ()))
            logs.append([str(path)] if several is not None else [])
        start, end = make_window(window).bounds(NOW)
        accounts = {
            account_key(AccountName("daily", "tokens", window, start, (user,))): amount
            for user, amount in used.items()
        } | {account_key(name): amount for name, amount in (held or {}).items()}
        asyncio.run(audit(load([config]), [], []))  # of nothing: it makes the tables
        with closing(sqlite3.connect(self.folder / "b.db")) as store:
            store.executemany(
                "INSERT INTO accounts (account, used, expires_at) VALUES (?, ?, ?)",
                [(key, amount, end + 3600) for key, amount in accounts.items()],
            )
            store.commit()
        return asyncio.run(audit(load([config]), *logs))


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


AGREE = [
    ({}, {}, 19),
    (UNREPORTED, COUNTED, 19),
    # the client left: a count of what was written at most, though the report was on its way
    ({}, COUNTED | LEFT | {"output_tokens": 3}, 11),
    (CUT, COUNTED | LEFT | {"output_tokens": 5}, 13),
    (CUT, COUNTED | LEFT | {"output_tokens": 0}, 8),
    # interim usage, and text after it
    (CUT | {"input_tokens": 10}, COUNTED | LEFT | {"input_tokens": 10, "output_tokens": 2}, 12),
    (UNREPORTED | {"status": 500, "text_bytes": 0}, NOTHING | {"status": 500}, 0),
    (CUT | {"status": 0}, NOTHING | {"reason": "upstream_timeout", "status": 504}, 0),
    # a route without budgets
    ({}, NOTHING | {"route": "/free"}, 0),
]


@pytest.mark.parametrize(("provider", "gateway", "used"), AGREE)
def test_what_may_be_charged_is_equal(
    books: Books, provider: dict[str, Any], gateway: dict[str, Any], used: int
) -> None:
    found = books.compare([asked(**provider)], [line(**gateway)], {"alice": used, "bob": 0})
    assert found.equal, render(found, "table")
    assert (found.compared, found.counts) == (1, {})


DISAGREE = [
    (DIFFERS, {}, {"output_tokens": 8}),
    (DIFFERS, {}, {"input_tokens": 11}),
    (DIFFERS, {}, COUNTED),  # it was reported, and the answer went through
    (DIFFERS, UNREPORTED, COUNTED | {"output_tokens": 10}),
    (DIFFERS, CUT, COUNTED | LEFT | {"output_tokens": 6}),
    (DIFFERS, CUT, COUNTED | LEFT | {"input_tokens": 7, "output_tokens": 1}),
    (NEVER_CHARGED, {}, NOTHING),
    (NEVER_CHARGED, {}, NOTHING | {"status": 502, "reason": "upstream_unavailable"}),
    (NEVER_CHARGED, UNREPORTED, NOTHING),
]


@pytest.mark.parametrize(("kind", "provider", "gateway"), DISAGREE)
def test_what_may_not_is_named(
    books: Books, kind: str, provider: dict[str, Any], gateway: dict[str, Any]
) -> None:
    charge = line(**gateway)
    used = charge["input_tokens"] + charge["output_tokens"]
    found = books.compare([asked(**provider)], [charge], {"alice": used, "bob": 1})
    assert not found.equal
    assert found.counts == {kind: 1}
    (named,) = found.exchanges[kind]
    assert (named["request_id"], named["key"]) == ("a", "alice")
    assert kind in render(found, "table")


def test_a_charge_that_no_provider_knows(books: Books) -> None:
    found = books.compare([], [line("x")], {"alice": 19, "bob": 0})
    assert (found.equal, found.counts) == (False, {NO_PROVIDER: 1})


@pytest.mark.parametrize(("used", "difference"), [(38, 0), (37, -1), (39, 1), (19, -19)])
def test_the_store_must_hold_the_sum(books: Books, used: int, difference: int) -> None:
    found = books.compare(
        [asked("a"), asked("b")], [line("b"), line("a")], {"alice": used, "bob": 0}
    )
    assert found.equal == (not difference)
    assert {row.difference for row in found.rows.values()} == {0, difference}


@pytest.mark.parametrize(("used", "difference"), [(18, -1), (19, 0), (30, 0), (40, 0), (41, 1)])
def test_without_a_line_a_charge_is_possible(books: Books, used: int, difference: int) -> None:
    """A worker was killed: the store holds all of its last exchange, a part, or nothing."""
    found = books.compare([asked("a"), asked("b")], [line("a")], {"alice": used, "bob": 0})
    assert found.equal == (not difference)
    assert found.counts == {UNLOGGED: 1}
    assert [row.difference for row in found.rows.values()] == [difference, 0]
    # 10 tokens reported or 8 counted, 9 or 42 bytes: 10 + 11 at most
    assert [row.open for row in found.rows.values()] == [21, 0]


def test_an_exchange_of_nobody_may_be_anybodys(books: Books) -> None:
    nobody = asked("b", account="")
    assert books.compare([asked("a"), nobody], [line("a")], {"alice": 40, "bob": 21}).equal


def test_without_an_access_log_the_tag_tells(books: Books) -> None:
    several = [asked("a"), asked("b", account="bob"), asked("c", **UNREPORTED)]
    assert books.compare(several, None, {"alice": 38, "bob": 19}).equal
    assert not books.compare([*several, asked("d")], None, {"carol": 1}).equal


def test_an_id_that_comes_back_is_paired_by_what_agrees(books: Books) -> None:
    other = {"input_tokens": 1, "output_tokens": 1}
    found = books.compare(
        [asked("a"), asked("a", **other), asked("a", **CUT, prompt_counted=7)],
        [line("a", **COUNTED | LEFT | {"input_tokens": 7, "output_tokens": 5}),
         line("a", **other), line("a")],
        {"alice": 19 + 2 + 12, "bob": 0},
    )  # fmt: skip
    assert found.equal, render(found, "table")
    assert found.compared == 3


def test_an_exchange_over_a_window_s_end_belongs_to_either(books: Books) -> None:
    start, _ = make_window("minute").bounds(NOW)
    times = {"time": clock.timestamp(start + 0.5)}
    slow = line(**times, duration_ms=1000.0)
    provider = asked(**times, began=clock.timestamp(start - 0.4))
    names = [AccountName("daily", "tokens", "minute", at, ("alice",)) for at in (start - 60, start)]
    held = {names[0]: 4, names[1]: 15}
    assert books.compare([provider], [slow], {"bob": 0}, "minute", held=held).equal


def test_windows_that_the_store_has_forgotten_are_left_out(books: Books) -> None:
    old = {"time": clock.timestamp(NOW - 90_000), "began": clock.timestamp(NOW - 90_000)}
    found = books.compare([asked(**old)], [line(time=old["time"])], {"bob": 0}, "hour")
    assert found.equal
    assert [name.values for name in found.rows] == [("bob",)]


MORE = """
[[budgets]]
name = "team"
per = ['request.headers["x-team"]']
limit = 100
window = "year"
[[budgets]]
name = "calls"
unit = "requests"
limit = 100
window = "year"
[[budgets]]
name = "model"
per = ["llm.model"]
unit = "output_tokens"
limit = 100
window = "year"
"""


def test_budgets_by_what_no_log_tells_are_compared_as_a_whole(books: Books) -> None:
    start, _ = make_window("year").bounds(NOW)
    held = {
        AccountName("team", "tokens", "year", start, ("red",)): 19,
        AccountName("team", "tokens", "year", start, ("blue",)): 19,
        AccountName("calls", "requests", "year", start, ()): 3,
        AccountName("model", "output_tokens", "year", start, ("m",)): 9,
        AccountName("model", "output_tokens", "year", start, ("n",)): 9,
    }
    refused = line("c", status=429, reason="budget_exceeded", **NOTHING) | {"processing_ms": None}
    away = line("d", status=502, reason="upstream_unavailable", **NOTHING)
    found = books.compare(
        [asked("a"), asked("b")],
        [line("a"), line("b", **{"gen_ai.request.model": "n"}), refused, away],
        {"alice": 38},
        more=MORE,
        held=held,
    )
    assert found.equal, render(found, "table")
    assert {name.values for name in found.rows if name.budget == "team"} == {("*",)}


def test_torn_lines_are_counted_and_left_out(books: Books) -> None:
    books.compare([asked()], [line()], {"alice": 19})
    for name in ("stub", "access"):
        with (books.folder / name).open("ab") as file:
            file.write(b'{"time":"2026-11-\n\xff\n[]\n{"message":"no request"}\n{}')
    config = load([books.folder / "config.toml"])
    logs = [str(books.folder / "stub")], [str(books.folder / "access")]
    found = asyncio.run(audit(config, *logs))
    assert found.equal
    assert found.unreadable == 9  # the access log has lines of bytes that were no request


def fastgw(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastgw", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[tuple[Gateway, str]]:
    """A gateway, and the provider's log."""
    log = tmp_path / "stub.jsonl"
    provider = Provider(tmp_path, "", 0, "--log", str(log))
    gateway = Gateway(tmp_path, provider.port, budgets=PER_USER.format(limit=10**9))
    yield gateway, str(log)
    gateway.stop()
    provider.stop()


STUBS = (
    "",
    "usage=never",
    "events=40",
    "fault=status:500",
    "fault=cut:5",
    "usage=finish",
    "gzip=1",
)


def test_the_command_on_real_books(processes: tuple[Gateway, str]) -> None:
    gateway, log = processes
    for number in range(4 * len(STUBS)):
        stub = STUBS[number // 4]
        try:
            chat(gateway, (ALICE, BOB)[number % 2], stub=stub, stream=number % 4 > 1)
        except http.client.HTTPException:
            assert "cut" in stub
    settled(gateway)
    gateway.stop()
    access = gateway.folder / f"access-{gateway.port}.log"
    command = ["audit", "--config", str(gateway.config), "--stub-log", log]
    run = fastgw(*command, "--access-log", str(access))
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    assert f"equal: {4 * len(STUBS)} exchanges, 2 accounts" in run.stdout
    assert fastgw(*command).returncode == 0  # nobody is named, so all is possible
    # a line that lies is found, and so is one that is missing beside a store that has it
    lines = access.read_bytes().splitlines(keepends=True)
    lies = access.with_name("lies")
    lies.write_bytes(b"".join(lines).replace(b'"output_tokens":40', b'"output_tokens":39'))
    run = fastgw(*command, "--access-log", str(lies), "--format", "json")
    assert run.returncode == 1
    facts = orjson.loads(run.stdout)
    assert facts["counts"] == {DIFFERS: 4}
    for secret in (ALICE, BOB, TOKEN, "sk-"):
        assert secret not in run.stdout
    run = fastgw(*command, "--access-log", str(lies.with_name("none")))
    assert (run.returncode, "No such file" in run.stderr) == (1, True)


BY_MODEL = """
[[budgets]]
name = "model"
per = ["llm.model", "request.path"]
limit = 1000000
window = "year"
"""


def test_long_names_of_models_and_paths_are_those_of_accounts(tmp_path: Path) -> None:
    log = tmp_path / "stub.jsonl"
    provider = Provider(tmp_path, "", 0, "--log", str(log))
    gateway = Gateway(tmp_path, provider.port, budgets=BY_MODEL)
    try:
        long = "/openai/deployments/" + "d" * 300 + "/chat/completions"
        for path in ("/openai/chat/completions", long):
            for length in (150, 200, 201, 256, 257, 300):
                assert chat(gateway, ALICE, path, model="m" * length)[0] == 200
        settled(gateway)
    finally:
        gateway.stop()
        provider.stop()
    access = gateway.folder / f"access-{gateway.port}.log"
    command = ["audit", "--config", str(gateway.config), "--stub-log", str(log)]
    run = fastgw(*command, "--access-log", str(access))
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    assert "equal: 12 exchanges, 7 accounts" in run.stdout  # a deployment is the model


def test_a_store_in_memory_cannot_be_audited(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    text = CONFIG.format(folder=tmp_path, window="day", more="")
    config.write_text(text.replace(f"sqlite:{tmp_path}/b.db", "memory:"))
    run = fastgw("audit", "--config", str(config), "--stub-log", "x")
    assert (run.returncode, "memory" in run.stderr) == (2, True)
