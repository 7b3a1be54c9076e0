"""Turns what the store holds into rows that people and programs read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgw import clock
from fastgw.policy.window import make_window

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastgw.config.tables import Budget
    from fastgw.policy.window import AccountName


def budget_rows(
    used: Mapping[AccountName, int], budgets: Iterable[Budget], now: float
) -> list[dict[str, Any]]:
    """One row for each account in its current window, sorted by budget and account.

    A row: `budget`, `account` (dict of `per` expression to value), `unit`, `used`, `held`, `limit`,
    `remaining` (amounts in the unit), `window_start` (RFC 3339), `reset_seconds`. Accounts of
    budgets that are no longer configured, and of windows that are over, are left out.
    """
    by_name = {budget.name: (budget, make_window(budget.window)) for budget in budgets}
    rows = []
    for name, amount in used.items():
        entry = by_name.get(name.budget)
        if entry is None:
            continue
        budget, window = entry
        start, end = window.bounds(now)
        if (name.unit, name.window, name.start) != (budget.unit, window.name, start):
            continue
        if len(name.values) != len(budget.per):
            continue
        rows.append(
            {
                "budget": name.budget,
                "account": dict(zip(budget.per, name.values, strict=True)),
                "unit": name.unit,
                "used": amount,
                "held": 0,
                "limit": budget.limit,
                "remaining": max(0, budget.limit - amount),
                "window_start": clock.timestamp(start),
                "reset_seconds": max(0, int(end - now) + 1),
            }
        )
    rows.sort(key=lambda row: (row["budget"], tuple(row["account"].values())))
    return rows
