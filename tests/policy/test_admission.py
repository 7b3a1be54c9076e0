"""Which budgets apply to a key, and on which accounts a request draws."""

from __future__ import annotations

from typing import Any

import pytest

from fastgw.config.expression import parse_expression
from fastgw.config.tables import Budget
from fastgw.policy.admission import Facts, Rule, any_matches, evaluate, make_rules, pattern_matches

HEADERS = {"x-team": "blue", "x-empty": ""}
FACTS = Facts({"user_id": "alice", "empty": ""}, HEADERS.get, "/openai/v1", "gpt-4o")


def rule(**more: Any) -> Rule:
    return Rule(Budget(name="b", limit=1, **more))


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o", "GPT-4o", False),
        ("gpt-*", "gpt-4o", True),
        ("gpt-*", "gpt-", True),
        ("gpt-*", "xgpt-4o", False),
        ("*-mini", "gpt-4o-mini", True),
        ("*-mini", "gpt-4o-mini-x", False),
        ("*", "", True),
        ("a.c", "abc", False),
        ("[a]", "a", False),
    ],
)
def test_patterns(pattern: str, value: str, matches: bool) -> None:
    assert pattern_matches(pattern, value) is matches
    assert any_matches(("none", pattern), value) is matches
    assert not any_matches((), value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("user_id", "alice"),
        ("apiKey.user_id", "alice"),
        ("team", None),
        ("empty", ""),
        ('request.headers["X-Team"]', "blue"),
        ('request.headers["x-none"]', None),
        ("request.path", "/openai/v1"),
        ("llm.model", "gpt-4o"),
        ('default(team, "none")', "none"),
        ('default(user_id, "none")', "alice"),
        ('default(empty, "none")', ""),  # there, though empty
    ],
)
def test_expressions(text: str, value: str | None) -> None:
    assert evaluate(parse_expression(text), FACTS) == value


def test_a_request_without_a_model_has_no_model() -> None:
    facts = FACTS._replace(model="")
    assert evaluate(parse_expression("llm.model"), facts) is None
    assert evaluate(parse_expression('default(llm.model, "any")'), facts) == "any"


@pytest.mark.parametrize(
    ("match", "metadata", "applies"),
    [
        ({}, {}, True),
        ({"tier": "free"}, {"tier": "free", "user_id": "a"}, True),
        ({"tier": "free"}, {"tier": "paid"}, False),
        ({"tier": "free"}, {}, False),
        ({"tier": "*"}, {}, False),  # a star asks for a value
        ({"tier": "f*", "team": "*e"}, {"tier": "free", "team": "blue"}, True),
        ({"tier": "f*", "team": "*e"}, {"tier": "free", "team": "red"}, False),  # all, not any
    ],
)
def test_match(match: dict[str, str], metadata: dict[str, str], applies: bool) -> None:
    assert rule(match=match).applies_to(metadata) is applies


def test_values_stand_in_the_order_of_per_and_one_that_is_missing_leaves_none() -> None:
    assert rule().values(FACTS) == ()
    assert rule(per=("llm.model", "user_id")).values(FACTS) == ("gpt-4o", "alice")
    assert rule(per=("user_id", "team")).values(FACTS) is None
    assert rule(per=("user_id", "empty")).values(FACTS) == ("alice", "")


def test_missing_metadata_is_refused_unless_the_budget_says_otherwise() -> None:
    assert rule(per=("team",)).denies_missing
    assert not rule(per=("team",), on_missing="skip").denies_missing


def test_rules_keep_the_order_and_the_terms_of_the_configuration() -> None:
    first = Budget(name="a", limit=5, unit="requests", window="hour", shadow=True, warn_at=0.8)
    one, two = make_rules([first, Budget(name="b", limit=7)])
    assert (one.limit.name, one.limit.unit, one.limit.amount) == ("a", "requests", 5)
    assert (one.limit.window.name, one.limit.shadow, one.limit.warn_at) == ("hour", True, 0.8)
    assert (two.limit.name, two.limit.unit, two.limit.shadow) == ("b", "tokens", False)
