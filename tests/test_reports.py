"""Rows of a report: what counts now, of budgets that exist."""

from __future__ import annotations

import csv
import io

import orjson

from fastgw.config.tables import Budget, Config, Key
from fastgw.model import Standing
from fastgw.policy.window import AccountName, make_window
from fastgw.reports import budget_rows, render_rows, rows_of_key

NOW = 1_790_000_000.0
START, END = make_window("day").bounds(NOW)
DAILY = Budget(name="daily", per=("user_id",), limit=100)
ALL = Budget(name="all", limit=1000)
ONE = Standing(1, 0)


def name(budget: str = "daily", unit: str = "tokens", window: str = "day", start: int = START,
         values: tuple[str, ...] = ("alice",)) -> AccountName:  # fmt: skip
    return AccountName(budget, unit, window, start, values)


def test_a_row() -> None:
    (row,) = budget_rows({name(): Standing(130, 7)}, [DAILY], NOW)
    assert row["account"] == {"user_id": "alice"}
    assert (row["used"], row["held"]) == (130, 7)
    assert (row["limit"], row["remaining"]) == (100, 0)  # never negative
    assert row["reset_seconds"] >= END - NOW  # never too early
    assert row["window_start"].endswith("T00:00:00.000Z")


def test_a_limit_on_what_runs_at_one_time_is_never_reset() -> None:
    running = Budget(name="running", unit="parallel", limit=3)
    (row,) = budget_rows(
        {name("running", "parallel", "now", 0, ()): Standing(0, 2)}, [running], NOW
    )
    assert (row["used"], row["held"], row["remaining"], row["reset_seconds"]) == (0, 2, 1, 0)


def test_what_counts_no_longer_is_left_out() -> None:
    over = {
        name(start=START - 86_400): ONE,
        name(unit="requests"): ONE,
        name(window="hour"): ONE,
        name(values=("alice", "x")): ONE,
        name(budget="gone"): ONE,
    }
    assert budget_rows(over, [DAILY], NOW) == []


def test_rows_are_sorted_and_a_key_sees_its_own() -> None:
    used = {
        name(values=("bob",)): Standing(1, 0),
        name(): Standing(2, 0),
        name("all", values=()): Standing(3, 0),
    }
    rows = budget_rows(used, [DAILY, ALL], NOW)
    assert [row["used"] for row in rows] == [3, 2, 1]
    config = Config(
        budgets=(DAILY, ALL), keys=(Key(name="a", metadata={"user_id": "alice"}), Key(name="b"))
    )
    assert [row["used"] for row in rows_of_key(rows, config, "a")] == [3, 2]
    assert [row["used"] for row in rows_of_key(rows, config, "b")] == [3]


def test_every_style_carries_every_row() -> None:
    rows = budget_rows(
        {name(values=('a,"b',)): Standing(7, 0), name("all", values=()): ONE}, [DAILY, ALL], NOW
    )
    assert orjson.loads(render_rows(rows, "json")) == rows
    head, *lines = csv.reader(io.StringIO(render_rows(rows, "csv")))
    assert [dict(zip(head, line, strict=True))["account"] for line in lines] == [
        "-", 'user_id=a,"b',
    ]  # fmt: skip
    table = render_rows(rows, "table")
    assert len(table.splitlines()) == 3
    assert "no account" in render_rows([], "table")
    assert orjson.loads(render_rows([], "json")) == []
