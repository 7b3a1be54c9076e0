"""Turns what the store holds into rows that people and programs read."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import orjson

from fastgw import clock
from fastgw.model import Standing
from fastgw.money import in_dollars
from fastgw.policy.admission import Facts, make_rules
from fastgw.policy.window import read_account_key, reset_seconds
from fastgw.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastgw.config.tables import Budget, Config
    from fastgw.policy.window import AccountName

_COLUMNS = (
    "budget", "account", "unit", "used", "held", "limit", "remaining", "window_start",
    "reset_seconds",
)  # fmt: skip


def budget_rows(
    standings: Mapping[AccountName, Standing], budgets: Sequence[Budget], now: float
) -> list[dict[str, Any]]:
    """One row for each account in its current window, sorted by budget and account.

    A row: `budget`, `account` (dict of `per` expression to value), `unit`, `used`, `held`, `limit`,
    `remaining` (amounts in the unit), `window_start` (RFC 3339), `reset_seconds`. One in usd counts
    nano-USD and has the same as decimal numbers in `usd`. Accounts of budgets that are no longer
    configured, and of windows that are over, are left out.
    """
    by_name = {rule.limit.name: rule for rule in make_rules(budgets)}
    per = {budget.name: budget.per for budget in budgets}
    rows: list[dict[str, Any]] = []
    for name, (used, held) in standings.items():
        rule = by_name.get(name.budget)
        if rule is None:
            continue
        limit = rule.limit
        start, end = limit.window.bounds(now)
        if (name.unit, name.window, name.start) != (limit.unit, limit.window.name, start):
            continue
        if len(name.values) != len(rule.per):
            continue
        row = {
            "budget": name.budget,
            "account": dict(zip(per[name.budget], name.values, strict=True)),
            "unit": name.unit,
            "used": used,
            "held": held,
            "limit": limit.amount,
            "remaining": max(0, limit.amount - used - held),
            "window_start": clock.timestamp(start),
            "reset_seconds": reset_seconds(end, now),
        }
        rows.append(in_dollars(row))
    rows.sort(key=lambda row: (row["budget"], tuple(row["account"].values())))
    return rows


def standing_rows(
    found: Mapping[str, Standing],
    owed: Mapping[str, int],
    budgets: Sequence[Budget],
    now: float,
) -> list[dict[str, Any]]:
    """The rows of `budget_rows` for what a store `found` and what workers owe it, both by the key
    of the account."""
    merged = dict(found)
    for key, amount in owed.items():
        used, held = merged.get(key, (0, 0))
        merged[key] = Standing(used + amount, held)
    named = {name: each for key, each in merged.items() if (name := read_account_key(key))}
    return budget_rows(named, budgets, now)


async def read_budgets(config: Config) -> list[dict[str, Any]]:
    """The rows of `budget_rows`, read from the configured store. Raises StoreUnavailable."""
    store = open_store(config.store)
    try:
        await store.open()
        found = await store.accounts()
    finally:
        await store.close()
    return standing_rows(found, {}, config.budgets, clock.wall())


def rows_of_key(rows: Iterable[dict[str, Any]], config: Config, key: str) -> list[dict[str, Any]]:
    """The rows on which requests of the key named `key` draw, as far as the key alone decides."""
    metadata = next((each.metadata or {} for each in config.keys if each.name == key), {})
    facts = Facts(metadata, lambda name: None, "", "")
    wanted = {
        (rule.limit.name, rule.values(facts))
        for rule in make_rules(config.budgets)
        if rule.applies_to(metadata)
    }
    return [row for row in rows if (row["budget"], tuple(row["account"].values())) in wanted]


def render_rows(rows: Sequence[Mapping[str, Any]], style: str) -> str:
    """Rows as `table`, `csv` or `json`; ends in a newline."""
    if style == "json":
        return orjson.dumps(list(rows), option=orjson.OPT_INDENT_2).decode() + "\n"
    flat = [[_cell({**row, **row.get("usd", {})}[column]) for column in _COLUMNS] for row in rows]
    if style == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([_COLUMNS, *flat])
        return out.getvalue()
    if not flat:
        return "no account has been used in its current window\n"
    lines = [[column.upper().replace("_", " ") for column in _COLUMNS], *flat]
    widths = [max(len(line[at]) for line in lines) for at in range(len(_COLUMNS))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={part}" for name, part in value.items()) or "-"
    return str(value)
