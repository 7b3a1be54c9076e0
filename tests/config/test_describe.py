"""What `fastgw check` says, and the page of settings."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from fastgw.config.describe import describe, settings_markdown
from fastgw.config.tables import (
    LISTED_TABLES,
    SINGLE_TABLES,
    Admin,
    Auth,
    Budget,
    CalendarWindow,
    Config,
    Key,
    Route,
    Upstream,
    spellings,
)

ROOT = Path(__file__).resolve().parents[2]

ALICE = Key(name="alice", metadata={"user_id": "alice", "tier": "premium"})
BOB = Key(name="bob", metadata={"user_id": "bob", "tier": "free"}, disabled=True)
CAROL = Key(name="carol", expires_at=86_400.0)
DAILY = Budget(name="daily", match={"tier": "prem*"}, per=("user_id",), limit=100)
UPSTREAM = Upstream(name="u", base_url="https://h")
CONFIG = Config(
    admin=Admin(token="x"),
    keys=(ALICE, BOB, CAROL),
    budgets=(DAILY,),
    upstreams=(UPSTREAM,),
    routes=(Route(path_prefix="/u", upstream="u"),),
)


def test_keys_budgets_and_warnings() -> None:
    assert describe(CONFIG, now=200_000.0) == [
        "key alice: budgets daily (100 tokens a day, account user_id=alice)",
        "key bob (disabled): no budget applies",
        "key carol (expired 1970-01-02): no budget applies",
        "budget daily: 100 tokens a day, one account for each user_id; applies to 1 key",
        "route /u: to u, https://h",
        "warning: no budget applies to keys bob, carol: nothing limits them",
    ]


def test_accounts() -> None:
    budgets = (
        Budget(
            name="a",
            per=("default(apiKey.team, 'none')", 'request.headers["x-app"]'),
            limit=1,
            unit="requests",
            window="hour",
        ),
        Budget(
            name="b",
            limit=1_000_000,
            shadow=True,
            unit="output_tokens",
            window=CalendarWindow("month", "Europe/Berlin"),
        ),
    )
    lines = describe(replace(CONFIG, keys=(ALICE,), budgets=budgets), now=0.0)
    assert lines == [
        'key alice: budgets a (1 request an hour, account team=none, request.headers["x-app"] of '
        "the request); b (1,000,000 output tokens a calendar month (Europe/Berlin), "
        "one account for all, shadow: counted only)",
        "budget a: 1 request an hour, one account for each default(apiKey.team, 'none'), "
        'request.headers["x-app"]; applies to 1 key',
        "budget b: 1,000,000 output tokens a calendar month (Europe/Berlin), one account for all; "
        "applies to 1 key; shadow: counts, never refuses",
        "route /u: to u, https://h",
    ]


def test_a_budget_of_parallel_requests_has_no_window() -> None:
    one = Budget(name="one", match={"tier": "free"}, limit=1, unit="parallel")
    budgets = (one, replace(one, name="many", limit=2000, window="hour", admission="reserve"))
    lines = describe(replace(CONFIG, keys=(ALICE,), budgets=budgets), now=0.0)
    assert lines[1:3] == [
        "budget one: 1 request at one time, one account for all; applies to 0 keys",
        "budget many: 2,000 requests at one time, one account for all; applies to 0 keys",
    ]


def test_warnings() -> None:
    config = replace(
        CONFIG,
        admin=Admin(),
        keys=(replace(CAROL, expires_at=0.0),),
        budgets=(DAILY, replace(DAILY, name="all", match={})),
        upstreams=(Upstream(name="v", base_url="http://h", api_key="sk-secret"), UPSTREAM),
        routes=(Route(path_prefix="/u", upstream="u", budgets=False),),
    )
    lines = describe(config, now=0.0)
    assert [line.removeprefix("warning: ") for line in lines if line.startswith("warning")] == [
        "budget daily applies to no key",
        "budget all refuses all requests of key carol: metadata of its `per` is missing",
        "upstream v: no route leads there",
        "upstream v: the credential is sent unencrypted (http://)",
        "route /u: budgets = false: neither metered nor limited",
        "[admin] token is empty: all of /api is off",
    ]
    assert "sk-secret" not in "\n".join(lines)
    assert lines[0] == "key carol: budgets all (refused with 403: the key has no user_id)"


def test_an_empty_key_table() -> None:
    config = replace(CONFIG, keys=(), budgets=())
    assert describe(config) == [
        "route /u: to u, https://h",
        'warning: there are no [[keys]] and [auth] mode is "strict": all requests get 401',
    ]
    lines = describe(replace(config, auth=Auth(mode="permissive")))
    assert len(lines) == 3


def test_the_page_of_settings_is_current() -> None:
    """Renew it with: python -m fastgw.config.describe > docs/settings.md"""
    assert (ROOT / "docs/settings.md").read_text() == settings_markdown()


def test_the_page_has_every_setting() -> None:
    page = settings_markdown()
    for name, table in (SINGLE_TABLES | LISTED_TABLES).items():
        section = re.split(rf"## `\[+{name}\]+`", page)[1].partition("\n## ")[0]
        for setting in spellings(table):
            assert f"\n| `{setting}` |" in section, f"{name}.{setting}"
