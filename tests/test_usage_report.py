"""The usage report: what is summed, by what, since when."""

from __future__ import annotations

import pytest

from fastgw.config.tables import Key
from fastgw.policy.window import USAGE, AccountName, account_key
from fastgw.usage_report import NONE, read_since, render_usage, usage_rows

DAY = 86_400
TODAY = 20_000 * DAY
KEYS = (Key(name="ann", metadata={"team": "red", "user": "ann"}), Key(name="bea"))


def used(start: int, *values: str, **amounts: int) -> dict[str, int]:
    return {
        account_key(AccountName(USAGE, unit, "day", start, values)): amount
        for unit, amount in amounts.items()
    }


STORE = (
    used(TODAY, "ann", "one", "m", "user=ann", requests=2, input_tokens=20, usd=1500)
    | used(TODAY, "ann", "two", "n", "user=odd|=%", requests=1, output_tokens=5)
    | used(TODAY - DAY, "bea", "one", "m", requests=4, cached_input_tokens=3)
    | used(TODAY, "other", "other", "other", requests=8)
    | used(TODAY, "", "one", "m", requests=16)
    | {account_key(AccountName("b", "tokens", "day", TODAY, ("ann", "x", "y"))): 10**6}
)


def counts(*by: str, since: float = 0) -> dict[tuple[str, ...], int]:
    rows = usage_rows(STORE, KEYS, by, since)
    return {tuple(row[name] for name in by): row["requests"] for row in rows}


def test_by_each_field() -> None:
    assert counts("key") == {("ann",): 3, ("bea",): 4, (NONE,): 16, ("other",): 8}
    assert counts("upstream") == {("one",): 22, ("two",): 1, ("other",): 8}
    assert counts("day") == {("2024-10-03",): 4, ("2024-10-04",): 27}
    assert counts("user") == {("ann",): 2, ("odd|=%",): 1, (NONE,): 20, ("other",): 8}
    assert counts("team", "model") == {
        ("red", "m"): 2, ("red", "n"): 1, (NONE, "m"): 20, ("other", "other"): 8,
    }  # fmt: skip


def test_days_count_that_are_not_over_at_the_time_asked_for() -> None:
    assert counts("key", since=TODAY - 1)[("bea",)] == 4
    assert ("bea",) not in counts("key", since=TODAY)
    assert counts("key", since=TODAY + 2 * DAY) == {}


def test_money_is_exact_in_both_forms() -> None:
    (row,) = [row for row in usage_rows(STORE, KEYS, ("model", "key"), 0) if row["cost"]]
    assert (row["cost"], row["cost_usd"]) == (1500, "0.0000015")
    assert "0.0000015" in render_usage([row], ("model", "key"), "table")


def test_a_field_that_nobody_has_is_told() -> None:
    with pytest.raises(ValueError, match=r"known by 'tema'; there is day, key, model, team, up"):
        usage_rows(STORE, KEYS, ("tema",), 0)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("7d", TODAY - 7 * DAY),
        ("24h", TODAY - DAY),
        ("2w", TODAY - 14 * DAY),
        ("2024-10-04", TODAY),
        ("2024-10-04T01:00:00+01:00", TODAY),
    ],
)
def test_since(text: str, moment: float) -> None:
    assert read_since(text, TODAY) == moment


@pytest.mark.parametrize("text", ["", "d", "7", "7x", "-7d", "²d", "999999d", "2024-13-01"])
def test_since_that_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no time; write 7d, 24h or 2026-11-01"):
        read_since(text, TODAY)
