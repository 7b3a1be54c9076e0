"""The walk-through of the reference page with curl, as a reader would type it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import ALICE, BOB, ROOT, Gateway, chat, request, settled

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway
    from tests.processes import Provider

BODY = '{"model": "gpt-3.5-turbo", "messages": [{"role": "user", "content": "Hello!"}]}'


def curl(gateway: Gateway, key: str, *more: str) -> str:
    program = shutil.which("curl")
    if program is None:  # a machine without curl: the same bytes by http.client
        return str(chat(gateway, key)[0])
    return subprocess.run(
        [program, "-sS", f"{gateway.url}/openai", "-H", f"Authorization: Bearer {key}", "-H",
         "Content-Type: application/json", "-d", BODY, *more],
        capture_output=True, text=True, check=True, timeout=30,
    ).stdout  # fmt: skip


def test_alice_is_refused_after_her_budget_and_bob_is_served(gateway: Gateway) -> None:
    only_status = ("-o", "/dev/null", "-w", "%{http_code}")
    codes = [curl(gateway, ALICE, *only_status) for _ in range(10)]
    assert codes == ["200"] * 6 + ["429"] * 4  # 19 tokens each: the sixth crosses 100
    assert curl(gateway, BOB, *only_status) == "200"
    assert gateway.used("alice") == 6 * 19
    assert gateway.used("bob") == 19


def test_the_refusal_says_what_and_until_when(gateway: Gateway) -> None:
    for _ in range(6):
        status, headers, _ = chat(gateway, ALICE)
        assert status == 200
        assert headers["x-ratelimit-limit"] == "100"
    status, headers, body = chat(gateway, ALICE)
    assert status == 429
    assert headers["x-ratelimit-limit"] == "100"
    assert headers["x-ratelimit-remaining"] == "0"
    assert int(headers["x-ratelimit-reset"]) > 0
    assert int(headers["retry-after"]) > 0
    if int(headers["retry-after"]) > 60:
        assert headers["x-should-retry"] == "false"
    text = body.decode()
    for part in ("rate limit exceeded", "per-user-daily", "114 of 100", "budget_exceeded",
                 "insufficient_quota", "resets in"):  # fmt: skip
        assert part in text


def test_refused_requests_touch_no_counter(gateway: Gateway, provider: Provider) -> None:
    for key, code in (("", "missing_api_key"), ("sk-wrong", "invalid_api_key")):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        status, answer, body = request(gateway.port, "POST", "/openai", BODY.encode(), headers)
        assert status == 401
        assert answer["www-authenticate"] == "Bearer"
        assert code in body.decode()
        assert "sk-wrong" not in body.decode()
    assert provider.entries() == []
    assert gateway.api("/api/budgets") == []
    assert "gen_ai_client_token_usage_sum{" not in gateway.metrics()
    assert 'reason="missing_api_key"' in gateway.metrics()


def test_budgets_survive_a_restart(gateway: Gateway, start: StartGateway) -> None:
    for _ in range(6):
        chat(gateway, ALICE)
    settled(gateway)
    assert gateway.stop() == 0
    again = start(store=f"sqlite:{gateway.folder}/budgets-{gateway.port}.db")
    assert chat(again, ALICE)[0] == 429
    assert chat(again, BOB)[0] == 200


def test_the_end_of_the_window_refills(start: StartGateway) -> None:
    budget = """
[[budgets]]
name = "burst"
per = ["user_id"]
limit = 1
window = "second"
"""
    gateway = start(budgets=budget)
    codes = set()
    for _ in range(400):
        codes.add(chat(gateway, ALICE)[0])
        if codes == {200, 429}:
            break
    assert codes == {200, 429}
    for _ in range(400):
        if chat(gateway, ALICE)[0] == 200:
            return
        time.sleep(0.01)
    pytest.fail("a second passed and the budget of a second did not refill")


def test_fastgw_budgets_and_the_queries_of_the_reference_page(start: StartGateway) -> None:
    gateway = start(metrics='namespace = "agentgateway"\nlabels = { user_id = "apiKey.user_id" }')
    chat(gateway, ALICE)
    chat(gateway, BOB)
    chat(gateway, BOB)
    settled(gateway)
    shown = subprocess.run(
        [sys.executable, "-m", "fastgw", "budgets", "--config", str(gateway.config)],
        capture_output=True, text=True, check=True, timeout=30, cwd=ROOT,
    ).stdout  # fmt: skip
    assert re.search(r"per-user-daily +user_id=alice +tokens +19 +0 +100 +81", shown)
    assert re.search(r"per-user-daily +user_id=bob +tokens +38 +0 +100 +62", shown)
    # sum by (user_id) (agentgateway_gen_ai_client_token_usage_sum{...type=~"input|output"})
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(gateway.metrics()):
        for sample in family.samples:
            if sample.name == "agentgateway_gen_ai_client_token_usage_sum" and re.fullmatch(
                "input|output", sample.labels["gen_ai_token_type"]
            ):
                user = sample.labels["user_id"]
                sums[user] = sums.get(user, 0) + sample.value
    assert sums == {"alice": 19, "bob": 38}
