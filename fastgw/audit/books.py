"""Adds up what each account must hold, and what it may."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fastgw.audit.findings import Row
from fastgw.policy.admission import Facts, Rule, make_rules
from fastgw.policy.window import GRACE, AccountName, read_account_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from fastgw.audit.findings import Audit
    from fastgw.audit.logs import Asked, Charged
    from fastgw.config.tables import Config

SLACK = 0.1
"""Seconds by which the time of a line may differ from that of the debit."""

ANY = "*"
"""Value of a `per` that no log tells: such a budget is compared as a whole."""


class Cost(NamedTuple):
    """What an exchange costs: tokens in, tokens out, requests let in."""

    given: int
    made: int
    requests: int = 0


UNITS: dict[str, Callable[[Cost], int]] = {
    "tokens": lambda cost: cost.given + cost.made,
    "input_tokens": lambda cost: cost.given,
    "output_tokens": lambda cost: cost.made,
    "requests": lambda cost: cost.requests,
}
NOTHING = Cost(0, 0)


class Books:
    """Adds up what each account must hold."""

    def __init__(self, config: Config, audit: Audit, now: float, units: Collection[str]) -> None:
        """`units`: those that the logs tell."""
        self._audit = audit
        self._now = now
        rules = make_rules(config.budgets)
        audit.skipped = [rule.limit.name for rule in rules if rule.limit.unit not in units]
        self.rules = [rule for rule in rules if rule.limit.unit in units]
        self._metadata = {key.name: dict(key.metadata or {}) for key in config.keys}
        self._metadata[""] = {}  # nobody, where [auth] mode lets them pass
        self._free = {route.path_prefix for route in config.routes if not route.budgets}
        self._loose: dict[str, int] = {}
        self._seen: dict[tuple[str, str, str], list[tuple[Rule, tuple[str, ...]]]] = {}

    def metered(self, charged: Charged) -> bool:
        """Whether budgets apply to the route and method of a line."""
        return charged.route not in self._free and charged.method in ("POST", "PUT", "PATCH")

    def whole(self, rule: Rule) -> bool:
        """Whether a budget counts by something that no log tells."""
        return any(expression.kind == "header" for expression in rule.per)

    def add(
        self, charged: Charged, began: float, provider: Cost, cost: Cost, more: Cost = NOTHING
    ) -> None:
        """An exchange of the access log. `more`: what it may have cost besides."""
        drawn = self._drawn(charged.key, charged.path, charged.model)
        if drawn is None:
            self._anywhere(self.rules, cost)
            return
        for rule, values in drawn:
            amount = UNITS[rule.limit.unit]
            rows, sure = self._rows(rule, values, began, charged.time)
            for row in rows:
                if sure:
                    row.provider += amount(provider)
                    row.charged += amount(cost)
                    row.open += amount(more)
                else:
                    row.open += max(amount(cost), amount(provider)) + amount(more)

    def add_unlogged(self, asked: Asked, certain: Cost, possible: Cost) -> None:
        """An exchange that only the provider knows."""
        known = asked.key if asked.key in self._metadata and asked.key else None
        for rule in self.rules:
            if known is None or any(each.kind in ("path", "model") for each in rule.per):
                self._anywhere([rule], possible)
                continue
            if not rule.applies_to(self._metadata[known]):
                continue
            values = self._values(rule, known, "", "")
            if values is None:
                continue
            amount = UNITS[rule.limit.unit]
            rows, sure = self._rows(rule, values, asked.began, asked.time)
            for row in rows:
                if sure:
                    row.provider += amount(certain)
                    row.charged += amount(certain)
                    row.open += max(0, amount(possible) - amount(certain))
                else:
                    row.open += amount(possible)

    def _anywhere(self, rules: Iterable[Rule], cost: Cost) -> None:
        for rule in rules:
            name = rule.limit.name
            self._loose[name] = self._loose.get(name, 0) + UNITS[rule.limit.unit](cost)

    def _drawn(self, key: str, path: str, model: str) -> list[tuple[Rule, tuple[str, ...]]] | None:
        """The accounts of a request; None for a key that is configured no more."""
        if key not in self._metadata:
            return None
        facts = (key, path, model)
        found = self._seen.get(facts)
        if found is None:
            found = [
                (rule, values)
                for rule in self.rules
                if rule.applies_to(self._metadata[key])
                and (values := self._values(rule, key, path, model)) is not None
            ]
            if len(self._seen) < 100_000:
                self._seen[facts] = found
        return found

    def _values(self, rule: Rule, key: str, path: str, model: str) -> tuple[str, ...] | None:
        if self.whole(rule):
            return (ANY,) * len(rule.per)
        facts = Facts(self._metadata[key], lambda name: None, path, model)
        return rule.values(facts)

    def _rows(
        self, rule: Rule, values: tuple[str, ...], began: float, ended: float
    ) -> tuple[list[Row], bool]:
        """The rows that the exchange may have been charged to, and whether there was one only: two
        where a window ended meanwhile. Windows that the store may have forgotten are left out."""
        limit = rule.limit
        windows = {limit.window.bounds(began - SLACK), limit.window.bounds(ended + SLACK)}
        rows = [
            self._audit.rows.setdefault(
                AccountName(limit.name, limit.unit, limit.window.name, start, values), Row()
            )
            for start, end in windows
            if end + GRACE > self._now
        ]
        return rows, len(windows) == 1

    def close(self, used: dict[str, int]) -> None:
        """Enter what the store holds."""
        by_name = {rule.limit.name: rule for rule in self.rules}
        rows = self._audit.rows
        for key, amount in used.items():
            name = read_account_key(key)
            rule = by_name.get(name.budget) if name is not None else None
            if name is None or rule is None:
                continue
            limit = rule.limit
            if (name.unit, name.window, len(name.values)) != (
                limit.unit,
                limit.window.name,
                len(rule.per),
            ):
                continue
            if self.whole(rule):
                name = name._replace(values=(ANY,) * len(name.values))
            rows.setdefault(name, Row()).used += amount
        for name, row in rows.items():
            row.open += self._loose.get(name.budget, 0)
