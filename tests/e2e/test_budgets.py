"""Every shape of budget, to the token: tiers, hours, tenants, several windows, units, shadow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import ALICE, BOB, PER_USER, chat, request, settled

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway, Provider

# One exchange with the stub costs 10 input and 9 output tokens unless asked otherwise.


def codes(gateway: Gateway, key: str, times: int, **more: Any) -> list[int]:
    return [chat(gateway, key, **more)[0] for _ in range(times)]


def test_tiers_by_metadata(start: StartGateway) -> None:
    gateway = start(
        budgets="""
[[budgets]]
name = "free-daily"
match = { tier = "free" }
per = ["user_id"]
limit = 20
[[budgets]]
name = "premium-daily"
match = { tier = "prem*" }
per = ["user_id"]
limit = 60
"""
    )
    assert codes(gateway, ALICE, 4) == [200, 200, 429, 429]
    assert codes(gateway, BOB, 6) == [200] * 4 + [429] * 2
    assert gateway.used("alice", "free-daily") == 38
    assert gateway.used("bob", "premium-daily") == 76
    assert gateway.used("alice", "premium-daily") == 0


def test_several_windows_and_the_tightest_is_shown(start: StartGateway) -> None:
    gateway = start(
        budgets="""
[[budgets]]
name = "per-hour"
per = ["user_id"]
limit = 40
window = "hour"
[[budgets]]
name = "per-day"
per = ["user_id"]
limit = 1000
[[budgets]]
name = "per-month"
per = ["user_id"]
limit = 5000
window = { calendar = "month", timezone = "Europe/Berlin" }
"""
    )
    status, headers, _ = chat(gateway, ALICE)
    assert (status, headers["x-ratelimit-limit"]) == (200, "40")
    assert int(headers["x-ratelimit-reset"]) <= 3600
    assert codes(gateway, ALICE, 3) == [200, 200, 429]
    _, headers, body = chat(gateway, ALICE)
    assert b"per-hour" in body
    assert int(headers["retry-after"]) <= 3601
    for budget in ("per-hour", "per-day", "per-month"):
        assert gateway.used("alice", budget) == 57


def test_tenant_and_user(start: StartGateway) -> None:
    keys = ""
    for tenant, user in (("acme", "ann"), ("acme", "bea"), ("blue", "ann")):
        keys += f"""
[[keys]]
name = "{tenant}-{user}"
key = "sk-{tenant}-{user}-key"
metadata = {{ tenant = "{tenant}", user = "{user}" }}
"""
    gateway = start(
        budgets="""
[[budgets]]
name = "tenant"
per = ["tenant"]
limit = 90
on_missing = "skip"
[[budgets]]
name = "tenant-user"
per = ["tenant", "user"]
limit = 38
on_missing = "skip"
""",
        more=keys,
    )
    assert codes(gateway, "sk-acme-ann-key", 3) == [200, 200, 429]
    assert codes(gateway, "sk-blue-ann-key", 1) == [200]
    assert codes(gateway, "sk-acme-bea-key", 3) == [200, 200, 429]
    settled(gateway)
    rows = {
        (row["budget"], *row["account"].values()): row["used"]
        for row in gateway.api("/api/budgets")
    }
    assert rows == {
        ("tenant", "acme"): 76,
        ("tenant", "blue"): 19,
        ("tenant-user", "acme", "ann"): 38,
        ("tenant-user", "acme", "bea"): 38,
        ("tenant-user", "blue", "ann"): 19,
    }


@pytest.mark.parametrize(
    ("unit", "limit", "served", "used"),
    [
        ("tokens", 38, 2, 38),
        ("tokens", 39, 3, 57),
        ("input_tokens", 20, 2, 20),
        ("output_tokens", 19, 3, 27),
        ("requests", 3, 3, 3),
        ("requests", 0, 0, 0),
        ("tokens", 0, 0, 0),
    ],
)
def test_units(start: StartGateway, unit: str, limit: int, served: int, used: int) -> None:
    gateway = start(budgets=PER_USER.format(limit=limit) + f'unit = "{unit}"\n')
    assert codes(gateway, ALICE, 5) == [200] * served + [429] * (5 - served)
    assert gateway.used("alice") == used


def test_shadow_counts_and_never_refuses(start: StartGateway) -> None:
    gateway = start(budgets=PER_USER.format(limit=10) + "shadow = true\n")
    status, headers, _ = chat(gateway, ALICE)
    assert status == 200
    assert "x-ratelimit-limit" not in headers
    assert codes(gateway, ALICE, 3) == [200] * 3
    assert gateway.used("alice") == 76
    assert 'budget_refusals_total{budget="per-user-daily"} 3.0' in gateway.metrics()


def test_missing_metadata(start: StartGateway) -> None:
    more = '[[keys]]\nname = "robot"\nkey = "sk-robot-key"\n'
    deny = start(more=more)
    status, _, body = chat(deny, "sk-robot-key")
    assert status == 403
    assert b"metadata_missing" in body
    assert b"user_id" in body
    skip = start(budgets=PER_USER.format(limit=10) + 'on_missing = "skip"\n', more=more)
    assert codes(skip, "sk-robot-key", 3) == [200] * 3
    assert codes(skip, ALICE, 2) == [200, 429]
    default = start(
        budgets="""
[[budgets]]
name = "with-default"
per = ['default(user_id, "nobody")']
limit = 19
""",
        more=more + '[[keys]]\nname = "other"\nkey = "sk-other-key"\n',
    )
    assert codes(default, "sk-robot-key", 1) == [200]
    assert codes(default, "sk-other-key", 1) == [429]
    assert codes(default, ALICE, 1) == [200]


def test_accounts_by_header_path_and_model(start: StartGateway) -> None:
    gateway = start(
        budgets="""
[[budgets]]
name = "team"
per = ['request.headers["x-team"]']
limit = 1000
on_missing = "skip"
[[budgets]]
name = "model"
per = ["llm.model"]
limit = 19
"""
    )
    assert codes(gateway, ALICE, 2, model="gpt-4o") == [200, 429]
    assert codes(gateway, BOB, 1, model="gpt-4o") == [429]
    assert codes(gateway, BOB, 1, model="gpt-4o-mini") == [200]
    body = b'{"model":"o3","messages":[{"role":"user","content":"Hello!"}]}'
    for team in ("red", "blue", "red"):
        headers = {"x-api-key": BOB, "x-team": team}
        request(
            gateway.port, "POST", "/openai", body.replace(b"o3", b"o3-" + team.encode()), headers
        )
    assert gateway.used("red", "team") == 19
    assert gateway.used("blue", "team") == 19


def test_auth_comes_before_budgets_and_budgets_before_the_provider(
    start: StartGateway, provider: Provider
) -> None:
    gateway = start(budgets=PER_USER.format(limit=3) + 'unit = "requests"\n')
    assert codes(gateway, "sk-wrong", 5) == [401] * 5
    assert codes(gateway, ALICE, 5) == [200] * 3 + [429] * 2
    assert len(provider.entries()) == 3
    assert gateway.used("alice") == 3


def test_a_provider_error_costs_no_tokens(start: StartGateway) -> None:
    gateway = start(budgets=PER_USER.format(limit=1000))
    for stub in ("fault=status:500", "fault=status:429", "fault=status:400"):
        chat(gateway, ALICE, stub=stub)
    assert gateway.used("alice") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_reported_is_counted(
    start: StartGateway, provider: Provider, stream: bool
) -> None:
    gateway = start(budgets=PER_USER.format(limit=100_000))
    status, _, body = chat(gateway, ALICE, stub="usage=never;events=40", stream=stream)
    assert status == 200
    assert b'"usage"' not in body
    used = gateway.used("alice")
    assert 40 <= used <= 40 * 3  # forty words and a short prompt
    assert 'usage_source_total{source="counted"} 1.0' in gateway.metrics()
    assert gateway.access_log()[-1]["usage_source"] == "counted"


def test_a_cut_stream_is_charged_for_what_arrived(start: StartGateway) -> None:
    gateway = start(budgets=PER_USER.format(limit=100_000))
    with pytest.raises(Exception, match="IncompleteRead"):
        chat(gateway, ALICE, stub="fault=cut:30;events=60;pace=0.001", stream=True)
    used = gateway.used("alice")
    assert 30 <= used <= 100
    assert gateway.access_log()[-1]["reason"] == "upstream_cut"


def test_prices_of_parallel_requests_add_up(start: StartGateway) -> None:
    from concurrent.futures import ThreadPoolExecutor

    gateway = start(budgets=PER_USER.format(limit=10_000_000))
    with ThreadPoolExecutor(32) as pool:
        answers = list(
            pool.map(
                lambda number: chat(
                    gateway, ALICE, stub=f"prompt={number};events=3", stream=bool(number % 2)
                )[0],
                range(400),
            )
        )
    assert answers == [200] * 400
    assert gateway.used("alice") == sum(range(400)) + 3 * 400
