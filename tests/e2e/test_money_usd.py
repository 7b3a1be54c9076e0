"""Budgets in dollars, to the nano-USD: real gateways, every way a cost comes about."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.e2e.test_money import json_answer, raw_provider
from tests.processes import ALICE, BOB, ROOT, Provider, chat, request, settled, used_while

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway

# The stub makes 10 input and 9 output tokens. At gpt-3.5-turbo's 0.50 and 1.50 dollars for a
# million of them that is 5,000 + 13,500 nano-USD.
ONE = 18_500
DAILY = """
[[budgets]]
name = "dollars"
per = ["user_id"]
unit = "usd"
limit = {limit}
"""


def spent(gateway: Gateway, account: str = "alice") -> int:
    return gateway.used(account, "dollars")


def code(body: bytes) -> str:
    found: str = orjson.loads(body)["error"]["code"]
    return found


def test_the_request_that_crosses_completes_and_the_next_is_told_in_dollars(
    start: StartGateway,
) -> None:
    gateway = start(budgets=DAILY.format(limit="0.00005"))
    status, headers, _ = chat(gateway, ALICE)
    assert status == 200
    assert headers["x-ratelimit-unit"] == "micro-usd"
    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("50", "50")
    _, headers, _ = chat(gateway, ALICE)
    assert headers["x-ratelimit-remaining"] == "32"  # 31.5 micro-USD, rounded up
    assert chat(gateway, ALICE)[0] == 200
    status, headers, body = chat(gateway, ALICE)
    assert status == 429
    assert headers["x-ratelimit-remaining"] == "0"
    message = orjson.loads(body)["error"]["message"]
    assert "'dollars' (alice) has used $0.0000555 of $0.00005, held $0.00" in message
    assert spent(gateway) == 3 * ONE
    assert chat(gateway, BOB)[0] == 200
    assert spent(gateway, "bob") == ONE


def test_every_view_shows_exact_numbers_and_readable_dollars(start: StartGateway) -> None:
    gateway = start(budgets=DAILY.format(limit="12.5"))
    assert chat(gateway, ALICE)[0] == 200
    assert spent(gateway) == ONE
    (row,) = gateway.api("/api/budgets")
    assert (row["unit"], row["used"], row["limit"]) == ("usd", ONE, 12_500_000_000)
    assert row["usd"] == {
        "used": "0.0000185",
        "held": "0",
        "limit": "12.5",
        "remaining": "12.4999815",
    }
    _, _, body = request(gateway.port, "GET", "/key/info", None, {"x-api-key": ALICE})
    (shown,) = orjson.loads(body)["budgets"]
    assert (shown["used"], shown["usd"]["used"]) == (ONE, "0.0000185")
    command = [sys.executable, "-m", "fastgw", "budgets", "--config", str(gateway.config)]
    table = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "0.0000185" in table
    assert "12.4999815" in table
    text = gateway.metrics()
    assert 'fastgw_budget_limit{account="alice",budget="dollars"} 12.5' in text
    assert 'fastgw_budget_used{account="alice",budget="dollars"} 1.85e-05' in text


@pytest.mark.parametrize("stream", [False, True])
def test_each_kind_of_token_has_its_price(start: StartGateway, stream: bool) -> None:
    gateway = start(
        budgets=DAILY.format(limit=1),
        more="""
[[prices]]
model = "gpt-3.5-turbo"
input = "2.50"
output = 10
cache_read = "1.25"
reasoning = "20"
tiers = [{ above = 1000, input = 5, output = "22.50" }]
""",
    )
    stub = "prompt=1000;cached=600;completion=50;reasoning=20"
    assert chat(gateway, ALICE, stub=stub, stream=stream)[0] == 200
    # 400 x 2500 + 600 x 1250 + 30 x 10000 + 20 x 20000 nano-USD
    assert spent(gateway) == 1_000_000 + 750_000 + 300_000 + 400_000
    assert chat(gateway, BOB, stub="prompt=1001;completion=2", stream=stream)[0] == 200
    assert spent(gateway, "bob") == 1001 * 5000 + 2 * 22_500


def test_a_fraction_of_a_nano_dollar_is_rounded_once(start: StartGateway) -> None:
    gateway = start(
        budgets=DAILY.format(limit=1),
        more='[[prices]]\nmodel = "*"\ninput = "0.0375"\noutput = "0.0005"\n',
    )
    assert chat(gateway, ALICE, stub="prompt=1;completion=1")[0] == 200
    assert spent(gateway) == 38  # 37.5 + 0.5
    assert chat(gateway, BOB, stub="prompt=1;completion=0")[0] == 200
    assert spent(gateway, "bob") == 38  # 37.5, half up


def test_a_model_without_price_is_refused_or_told_of_never_free_in_silence(
    start: StartGateway,
) -> None:
    strict = start(budgets=DAILY.format(limit=1))
    status, _, body = chat(strict, ALICE, model="house-blend")
    assert (status, code(body)) == (403, "unpriced_model")
    assert b"house-blend" in body
    assert b"[[prices]]" in body
    assert spent(strict) == 0
    nameless = b'{"messages": []}'
    status, _, body = request(
        strict.port, "POST", "/openai", nameless, {"Authorization": f"Bearer {ALICE}"}
    )
    assert (status, code(body)) == (403, "unpriced_model")
    lenient = start(budgets=DAILY.format(limit=1), more='[pricing]\non_unpriced = "warn"\n')
    for _ in range(3):
        assert chat(lenient, ALICE, model="house-blend")[0] == 200
    assert spent(lenient) == 0
    assert lenient.log.read_text().count("has no price") == 1
    (line,) = [
        line
        for line in lenient.metrics().splitlines()
        if line.startswith("fastgw_gen_ai_unpriced_total{")
    ]
    assert line.endswith(" 3.0")


def test_other_budgets_need_no_price(start: StartGateway) -> None:
    gateway = start(budgets=DAILY.format(limit=100).replace("usd", "tokens"))
    assert chat(gateway, ALICE, model="house-blend")[0] == 200
    assert spent(gateway) == 19


def test_shadow_counts_what_has_a_price_and_refuses_nothing(start: StartGateway) -> None:
    gateway = start(budgets=DAILY.format(limit=0) + "shadow = true\n")
    assert chat(gateway, ALICE, model="house-blend")[0] == 200
    assert chat(gateway, ALICE)[0] == 200
    assert spent(gateway) == ONE


def test_the_model_that_answers_is_paid_for(start: StartGateway) -> None:
    """An alias is priced by the model that is sent, which the stub gives back as the answer's."""
    gateway = start(
        budgets=DAILY.format(limit=1),
        upstream='model_aliases = { fast = "gpt-4o-mini-2024-07-18" }',
    )
    assert chat(gateway, ALICE, model="fast")[0] == 200
    assert spent(gateway) == 10 * 150 + 9 * 600


def test_a_price_may_hold_for_one_upstream(start: StartGateway) -> None:
    gateway = start(
        budgets=DAILY.format(limit=1),
        more="""
[[prices]]
model = "gpt-3.5-turbo"
upstream = "stub"
input = 1
output = 1
[[prices]]
model = "gpt-3.5-*"
input = 7
output = 7
""",
    )
    assert chat(gateway, ALICE)[0] == 200
    assert spent(gateway) == 19_000
    assert chat(gateway, BOB, model="gpt-3.5-turbo-0125")[0] == 200
    assert spent(gateway, "bob") == 19 * 7000


def test_catalogs_of_others_are_read(start: StartGateway) -> None:
    gateway = start(
        budgets=DAILY.format(limit=1),
        files={
            "agentgateway.json": '{"providers": {"openai": {"models": {"house": {"rates": '
            '{"input": "1", "output": "2"}}, "blend": {"rates": {"input": "1"}}}}}}',
            "litellm.json": '{"house": {"litellm_provider": "openai", "input_cost_per_token": '
            '3e-06, "output_cost_per_token": 4e-06}}',
        },
        more='[pricing]\nbuiltin = false\ncatalogs = ["agentgateway.json", "litellm.json"]\n',
    )
    assert chat(gateway, ALICE, model="house")[0] == 200
    assert spent(gateway) == 10 * 3000 + 9 * 4000
    assert chat(gateway, BOB, model="blend")[0] == 200
    assert spent(gateway, "bob") == 10 * 1000
    status, _, body = chat(gateway, ALICE)
    assert (status, code(body)) == (403, "unpriced_model")


def test_a_hard_cap_in_dollars_holds_what_a_request_may_cost(start: StartGateway) -> None:
    # counted prompt and 100 output tokens: 150,000 nano-USD and a little
    gateway = start(
        budgets=DAILY.format(limit="0.0003") + 'admission = "reserve"\nwait = 0\n',
    )
    results: list[int] = []

    def ask() -> None:
        results.append(chat(gateway, ALICE, stub="first=1", max_tokens=100)[0])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    held = 0
    while time.monotonic() < deadline and not held:
        held = sum(row["held"] for row in gateway.api("/api/budgets"))
    for thread in threads:
        thread.join()
    assert held >= 150_000
    assert sorted(results) == [200, 429, 429, 429]
    assert spent(gateway) == ONE
    assert sum(row["held"] for row in gateway.api("/api/budgets")) == 0
    status, headers, body = chat(gateway, ALICE, max_tokens=200)
    assert status == 429
    assert headers["x-ratelimit-remaining"] == "282"  # micro-USD: less than 200 tokens at 1.50
    assert headers["retry-after"] == headers["x-ratelimit-reset"]
    message = orjson.loads(body)["error"]["message"]
    assert "has used $0.0000185 of $0.0003, held $0.00; this request may cost $0.0003" in message
    assert "what is left is $0.0002815; send a smaller max_tokens, or wait: it resets" in message


def test_a_hard_cap_in_dollars_can_clamp_the_answer(
    start: StartGateway, provider: Provider
) -> None:
    gateway = start(
        budgets=DAILY.format(limit="0.00003")
        + 'admission = "reserve"\nclamp_max_tokens = true\nwait = 0\n',
    )
    assert chat(gateway, ALICE, max_tokens=1000)[0] == 200
    sent = orjson.loads(provider.last().partition(b"\r\n\r\n")[2])
    assert 0 < sent["max_tokens"] <= 20  # 30,000 nano-USD less the prompt, at 1,500 a token
    settled(gateway)
    # 11,500 nano-USD are left: the prompt and four tokens; then 5,000: not one token beside it.
    assert chat(gateway, ALICE, max_tokens=1000, stub="completion=1")[0] == 200
    status, _, body = chat(gateway, ALICE, max_tokens=1000)
    assert (status, code(body)) == (429, "budget_exceeded")


def test_a_stream_is_charged_in_dollars_while_it_passes(start: StartGateway) -> None:
    gateway = start(budgets=DAILY.format(limit="0.00006"))
    done: list[int] = []

    def ask() -> None:
        done.append(chat(gateway, ALICE, stub="events=40;pace=0.1", stream=True)[0])

    seen = used_while(gateway, ask)
    assert done == [200]
    whole = 10 * 500 + 40 * 1500
    assert any(0 < used < whole for used in seen)
    assert spent(gateway) == whole
    assert chat(gateway, ALICE)[0] == 429


@pytest.mark.parametrize(
    ("dialect", "path", "model", "cost"),
    [
        ("anthropic", "/openai/v1/messages", "claude-sonnet-4-5", 6 * 3000 + 4 * 300 + 9 * 15_000),
        (
            "gemini",
            "/openai/v1beta/models/gemini-2.5-flash:generateContent",
            "",
            6 * 300 + 4 * 30 + 9 * 2500,
        ),
    ],
)
def test_other_dialects_are_priced_by_their_own_names(
    start: StartGateway, dialect: str, path: str, model: str, cost: int
) -> None:
    gateway = start(budgets=DAILY.format(limit=1), upstream=f'dialect = "{dialect}"')
    more = {"model": model, "max_tokens": 9} if model else {"contents": []}
    body = orjson.dumps({"messages": [{"role": "user", "content": "Hello!"}], **more})
    shown = {
        "Authorization": f"Bearer {ALICE}",
        "Content-Type": "application/json",
        "x-stub": "cached=4",
    }
    status, _, answer = request(gateway.port, "POST", path, body, shown)
    assert status == 200, answer
    assert spent(gateway) == cost


def test_a_form_is_priced_by_the_model_that_it_names(start: StartGateway) -> None:
    form = (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n%b\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
        b"--x--\r\n"
    )
    said = orjson.dumps(
        {"text": "Hi", "usage": {"input_tokens": 14, "output_tokens": 45, "total_tokens": 59}}
    )
    shown = {
        "Authorization": f"Bearer {ALICE}",
        "Content-Type": "multipart/form-data; boundary=x",
    }
    with raw_provider(lambda request, _: json_answer(said)) as port:
        gateway = start(provider_port=port, budgets=DAILY.format(limit=1))

        def send(model: bytes) -> tuple[int, bytes]:
            path = "/openai/v1/audio/transcriptions"
            return request(gateway.port, "POST", path, form % model, shown)[::2]

        assert send(b"gpt-4o-transcribe") == (200, said)
        assert spent(gateway) == 14 * 2500 + 45 * 10_000
        status, body = send(b"house-ears")
        assert (status, code(body)) == (403, "unpriced_model")


def test_the_access_log_and_the_metrics_tell_the_cost(start: StartGateway) -> None:
    gateway = start(budgets="")
    assert chat(gateway, ALICE)[0] == 200
    assert chat(gateway, ALICE, model="gpt-4o", stream=True)[0] == 200
    assert chat(gateway, ALICE, model="house-blend")[0] == 200
    assert chat(gateway, "sk-nobody-at-all")[0] == 401
    costs: list[Any] = [line["cost_usd"] for line in gateway.access_log()]
    assert costs == [0.0000185, 0.000115, None, None]
    text = gateway.metrics()
    found = {
        line.partition('gen_ai_request_model="')[2].partition('"')[0]: float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("fastgw_gen_ai_client_cost_usd_total{") and 'user_id="alice"' in line
    }
    assert found == {"gpt-3.5-turbo": 0.0000185, "gpt-4o": 0.000115}
    assert 'gen_ai_unpriced_total{gen_ai_operation_name="chat"' in text


def test_two_workers_and_a_restart_agree_on_the_sum(start: StartGateway, tmp_path: Path) -> None:
    gateway = start(budgets=DAILY.format(limit=1), server="workers = 2")
    for _ in range(20):
        assert chat(gateway, ALICE)[0] == 200
    assert spent(gateway) == 20 * ONE
    assert "budget dollars" not in gateway.log.read_text()
