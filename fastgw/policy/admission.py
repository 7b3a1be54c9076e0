"""Which budgets apply to a key, and which accounts a request of it draws on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from fastgw.config.expression import Expression, parse_expression
from fastgw.policy.account import Limit
from fastgw.policy.window import NoWindow, make_window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from fastgw.config.tables import Budget


class Facts(NamedTuple):
    """What expressions may refer to. `header` gives a field's value by lower-case name, or None."""

    metadata: Mapping[str, str]
    header: Callable[[str], str | None]
    path: str
    model: str

    def of(self, model: str) -> Facts:
        """The same for a request that names this model; `_replace` is ten times the cost."""
        return Facts(self.metadata, self.header, self.path, model)


LONGEST = 256
"""Characters of a value that an account is named by; a longer one is cut and told by its digest:
clients choose some of them."""


def shortened(value: str) -> str:
    """The value, as an account is named by it."""
    if len(value) <= LONGEST:
        return value
    digest = hashlib.sha256(value.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{value[: LONGEST // 2]}…{digest[:32]}"


def evaluate(expression: Expression, facts: Facts) -> str | None:
    """The value of an expression, its default, or None."""
    if expression.kind == "key":
        value = facts.metadata.get(expression.name)
    elif expression.kind == "header":
        value = facts.header(expression.name)
    elif expression.kind == "path":
        value = facts.path
    else:
        value = facts.model or None
    return expression.default if value is None else value


def pattern_matches(pattern: str, value: str) -> bool:
    """Exact, or with one leading or trailing `*`."""
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    if pattern.startswith("*"):
        return value.endswith(pattern[1:])
    return value == pattern


def any_matches(patterns: Iterable[str], value: str) -> bool:
    """Whether one of the patterns matches."""
    return any(pattern_matches(pattern, value) for pattern in patterns)


class Rule:
    """A budget, ready to be applied."""

    __slots__ = ("denies_missing", "limit", "match", "per")

    def __init__(self, budget: Budget) -> None:
        self.limit = Limit(
            budget.name,
            budget.unit,
            budget.limit,
            NoWindow() if budget.unit == "parallel" else make_window(budget.window),
            shadow=budget.shadow,
            warn_at=budget.warn_at,
            reserves=budget.admission == "reserve",
            wait=budget.wait,
            clamps=budget.clamp_max_tokens,
            cuts=budget.cutoff == "mid_stream",
        )
        self.match = dict(budget.match or {})
        self.per = tuple(parse_expression(text) for text in budget.per)
        self.denies_missing = budget.on_missing == "deny"

    def applies_to(self, metadata: Mapping[str, str]) -> bool:
        """Whether every entry of `match` matches the key's metadata."""
        return all(
            name in metadata and pattern_matches(pattern, metadata[name])
            for name, pattern in self.match.items()
        )

    def values(self, facts: Facts) -> tuple[str, ...] | None:
        """The value of each `per`; None if one is missing."""
        values = []
        for expression in self.per:
            value = evaluate(expression, facts)
            if value is None:
                return None
            values.append(shortened(value))
        return tuple(values)


def make_rules(budgets: Sequence[Budget]) -> tuple[Rule, ...]:
    """The rules of a configuration, in its order."""
    return tuple(Rule(budget) for budget in budgets)
