"""The expressions of budgets and metric labels."""

from __future__ import annotations

import pytest

from fastgw.config.expression import Expression, parse_expression


@pytest.mark.parametrize(
    ("text", "kind", "name", "default"),
    [
        ("user_id", "key", "user_id", None),
        (" apiKey.user_id ", "key", "user_id", None),
        ("apiKey.request", "key", "request", None),
        ('apiKey["team name"]', "key", "team name", None),
        (r'apiKey["a\"b"]', "key", 'a"b', None),
        ('request.headers["X-Team"]', "header", "x-team", None),
        ("request.headers['x-team']", "header", "x-team", None),
        ("request.path", "path", "", None),
        ("llm.model", "model", "", None),
        ('default(apiKey.team, "none, (sic)")', "key", "team", "none, (sic)"),
        ('default( request.headers["a"] , "" )', "header", "a", ""),
        ('default(llm.model, "x\\"y")', "model", "", 'x"y'),
        ("default_team", "key", "default_team", None),
    ],
)
def test_what_is_understood(text: str, kind: str, name: str, default: str | None) -> None:
    found = parse_expression(text)
    assert (found.kind, found.name, found.default) == (kind, name, default)
    assert found == Expression(text.strip(), found.kind, name, default)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "empty"),
        ("apikey.user_id", "did you mean apiKey.user_id"),
        ("api_key.user_id", "did you mean apiKey.user_id"),
        ("request.header['x']", 'request.headers["x-team"]'),
        ("request.headers.x-team", 'request.headers["x-team"]'),
        ('request.headers["x team"]', "header name"),
        ("llm.mode", "did you mean llm.model"),
        ("apiKey", "apiKey.user_id"),
        ("apiKey[user_id]", 'apiKey["user_id"]'),
        ("default(user_id, none)", 'default(EXPR, "VALUE")'),
        ('default(default(a, "b"), "c")', "only one default"),
        ('default(, "c")', "empty"),
        ("size(apiKey.user_id)", "write one of"),
        ("request", "did you mean request.path"),
    ],
)
def test_what_is_not_gets_advice(text: str, advice: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_expression(text)
    assert advice in str(caught.value)
