"""Prices: exact sums, names that resolve, who wins, and an independent judge of the table."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.config.catalogs import read_catalog
from fastgw.config.tables import Budget, Config, Key, Listed, Pricing, Rates, Route, Upstream
from fastgw.config.tables import Price as Setting
from fastgw.model import Usage
from fastgw.usage.pricing import Price, PriceBook, builtin, names, provider_of, unpriced

DOLLAR = 10**9
TABLE = Path(__file__).resolve().parents[2] / "fastgw" / "usage" / "prices.json"

tokens = st.integers(0, 10**9)
prices = st.integers(0, 200 * DOLLAR)
maybe = st.none() | prices


def upstream(name: str = "stub", base_url: str = "http://127.0.0.1/v1", **more: Any) -> Upstream:
    return Upstream(name=name, base_url=base_url, **more)


def book(*own: Setting, catalog: tuple[Listed, ...] = (), builtin: bool = True, **more: Any) -> Any:
    upstreams = (upstream(), upstream("groq", "https://api.groq.com/openai/v1"), *more.values())
    return PriceBook(
        Config(upstreams=upstreams, prices=own, catalog=catalog, pricing=Pricing(builtin=builtin))
    )


def own(model: str, dollars: int, upstream: str = "") -> Setting:
    return Setting(model=model, upstream=upstream, input=dollars * DOLLAR, output=dollars * DOLLAR)


@given(tokens, tokens, tokens, tokens, tokens, prices, prices, maybe, maybe, maybe)
def test_a_cost_is_the_exact_sum_rounded_once(
    given_: int, made: int, cached: int, written: int, thought: int,
    plain: int, output: int, read: int | None, write: int | None, reasoning: int | None,
) -> None:  # fmt: skip
    cached = min(cached, given_)
    written = min(written, given_ - cached)
    thought = min(thought, made)
    price = Price([Rates(0, plain, output, read, write, reasoning)])
    found = price.cost(Usage(given_, made, cached, written, thought, "reported"))
    exact = Decimal(
        (given_ - cached - written) * plain
        + cached * (plain if read is None else read)
        + written * (plain if write is None else write)
        + (made - thought) * output
        + thought * (output if reasoning is None else reasoning)
    ) / Decimal(1_000_000)
    assert found == int(exact.quantize(Decimal(1), ROUND_HALF_UP))


@given(tokens, tokens, tokens, st.integers(1, 10**6))
def test_more_cached_or_thought_than_there_is_never_costs_less_than_nothing(
    given_: int, cached: int, written: int, thought: int
) -> None:
    price = Price([Rates(0, 3 * DOLLAR, 15 * DOLLAR, DOLLAR // 3, 4 * DOLLAR, 20 * DOLLAR)])
    cost = price.cost(Usage(given_, 5, cached, written, thought, "reported"))
    assert 0 <= cost <= (given_ * 4 * DOLLAR + 5 * 20 * DOLLAR) // 10**6 + 1


def test_a_tier_prices_the_whole_request() -> None:
    price = Price(
        [
            Rates(0, 2 * DOLLAR, 10 * DOLLAR, DOLLAR // 5),
            Rates(1000, 4 * DOLLAR, None, DOLLAR // 2),
            Rates(5000, 8 * DOLLAR, 20 * DOLLAR),
        ]
    )
    assert price.cost(Usage(1000, 10)) == 1000 * 2000 + 10 * 10_000
    assert price.cost(Usage(1001, 10)) == 1001 * 4000 + 10 * 10_000
    assert price.cost(Usage(1001, 10, 1)) == 1000 * 4000 + 500 + 10 * 10_000
    assert price.cost(Usage(5001, 10, 1)) == 5000 * 8000 + 500 + 10 * 20_000
    assert price.most(Usage(799, 10)) == price.cost(Usage(799, 10))
    assert price.most(Usage(900, 10)) == 900 * 4000 + 10 * 10_000  # may turn out longer
    assert price.room(100, 100 * 2000 + 10_000 * 7 + 9999) == 7
    assert price.room(100, 100 * 2000 - 1) == 0


@given(st.integers(0, 10**6), st.integers(0, 10**12), prices, prices.filter(bool))
def test_room_is_the_most_that_the_amount_pays_for(
    prompt: int, amount: int, plain: int, output: int
) -> None:
    price = Price([Rates(0, plain, output)])
    room = price.room(prompt, amount)
    if room:
        assert price.cost(Usage(prompt, room)) <= amount
    assert price.cost(Usage(prompt, room + 1)) >= amount


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("openai/gpt-4o", "gpt-4o"),
        ("OpenAI/GPT-4o", "gpt-4o"),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", "claude-sonnet-4"),
        ("anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-3-5-sonnet"),
        ("anthropic/claude-sonnet-4.6", "claude-sonnet-4-6"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("claude-3-7-sonnet-latest", "claude-3-7-sonnet"),
        ("models/gemini-2.5-pro", "gemini-2.5-pro"),
        ("publishers/google/models/gemini-2.5-flash-preview-09-2025", "gemini-2.5-flash"),
        ("gemini-2.0-flash-001", "gemini-2.0-flash"),
        ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
        ("command-r-08-2024", "command-r"),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc123", "ft:gpt-4o-mini"),
    ],
)
def test_dated_and_prefixed_names_resolve(model: str, base: str) -> None:
    found = list(names(model))
    assert found[0] == model.lower()
    assert base in found
    assert book().find("stub", model).rates == book().find("stub", base).rates


@pytest.mark.parametrize(
    "model",
    ["ft:gpt-5:acme::abc", "openai/gpt-4o:free", "gpt-4o-mini-x", "my-gpt-4o", "llama-3.3-70b", ""],
)
def test_what_is_another_model_has_no_price(model: str) -> None:
    assert book().find("stub", model) is None


def test_an_exact_name_wins_over_an_undated_one() -> None:
    assert book().find("stub", "gpt-4o-2024-05-13").rates.input == 5 * DOLLAR
    assert book(own("gpt-4o", 1)).find("stub", "gpt-4o-2024-05-13").rates.input == 5 * DOLLAR
    assert book(own("gpt-4o", 1)).find("stub", "gpt-4o-2024-08-06").rates.input == DOLLAR
    assert book(own("gpt-4o*", 1)).find("stub", "gpt-4o-2024-05-13").rates.input == DOLLAR


def test_own_prices_win_the_last_first_and_those_for_the_upstream_before_all() -> None:
    prices = book(own("a*", 1), own("ab", 2), own("*b", 3), own("ab", 4, "groq"), own("*", 5))
    assert prices.find("stub", "ab").rates.input == 5 * DOLLAR
    assert prices.find("groq", "ab").rates.input == 4 * DOLLAR
    assert book(own("a*", 1), own("ab", 2)).find("stub", "abc").rates.input == DOLLAR


def test_later_catalogs_win_over_earlier_ones_and_the_table() -> None:
    catalog = tuple(
        Listed("openai", "gpt-4o", (Rates(0, dollars * DOLLAR, 0),)) for dollars in (7, 8)
    )
    assert book(catalog=catalog).find("stub", "gpt-4o").rates.input == 8 * DOLLAR
    assert book(catalog=catalog).find("stub", "gpt-4o-mini").rates.input == 150_000_000
    assert book(catalog=catalog, builtin=False).find("stub", "gpt-4o-mini") is None


def test_a_model_costs_what_its_upstream_takes() -> None:
    prices = book(
        aws=upstream("aws", "https://bedrock-runtime.us-east-1.amazonaws.com"),
        azure=upstream("az", "https://acme.openai.azure.com/openai"),
        vertex=upstream("vx", "https://us-east5-aiplatform.googleapis.com/v1"),
    )
    oss = "openai/gpt-oss-120b"
    assert prices.find("groq", oss).rates.cache_read == 75_000_000
    assert prices.find("groq", "llama-3.3-70b-versatile").rates.input == 590_000_000
    assert prices.find("stub", "llama-3.3-70b-versatile") is None  # nobody's own model
    assert prices.find("stub", "groq/llama-3.3-70b-versatile").rates.input == 590_000_000
    assert prices.find("groq", "gpt-4o") is None  # not sold there
    assert prices.find("aws", "us.anthropic.claude-opus-5-v1:0").rates.input == 5_500_000_000
    assert prices.find("aws", "global.anthropic.claude-opus-5-v1:0").rates.input == 5 * DOLLAR
    assert prices.find("az", "gpt-4o").rates.input == 2_500_000_000
    assert prices.find("vx", "claude-opus-5").rates.input == 5 * DOLLAR
    assert prices.find("vx", "gemini-2.5-pro").over.rates.input == 2_500_000_000


@pytest.mark.parametrize(
    ("base_url", "name", "provider"),
    [
        ("https://api.openai.com/v1", "x", "openai"),
        ("https://api.openai.com.evil.example/v1", "x", ""),
        ("https://notapi.openai.com/v1", "x", ""),
        ("https://eu.api.openai.com/v1", "x", "openai"),
        ("http://10.0.0.7:8000/v1", "together_ai", "together"),
        ("http://10.0.0.7:8000/v1", "vllm", ""),
    ],
)
def test_a_provider_is_known_by_its_host_else_by_its_name(
    base_url: str, name: str, provider: str
) -> None:
    assert provider_of(upstream(name, base_url)) == provider


def test_the_table_is_dated_named_and_large() -> None:
    content = orjson.loads(TABLE.read_bytes())
    assert len(content["date"]) == 10
    assert all(each["source"].startswith("https://") for each in content["providers"].values())
    assert len(builtin()) >= 200
    for rates in builtin().values():
        assert rates[0].input is not None
        assert [each.above for each in rates] == sorted({each.above for each in rates})
        assert all(price is None or price >= 0 for each in rates for price in each)


def test_a_catalog_says_what_is_wrong_with_it() -> None:
    for data, part in (
        (b"[", "no JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a": 1}', "neither"),
        (b'{"providers": {"x": {}}}', "provider x has no `models`"),
        (
            b'{"providers": {"x": {"models": {"m": {"rates": {"input": "-1"}}}}}}',
            "x, m: input: dollars below zero",
        ),
        (
            b'{"providers": {"x": {"models": {"m": {"rates": {"input": "1"}, "tiers": [{}]}}}}}',
            "contextOver",
        ),
        (b'{"m": {"input_cost_per_token": "much"}}', "'much' is not a price"),
    ):
        with pytest.raises(ValueError, match=re.escape(part)):
            read_catalog(data)


def test_litellm_floats_are_read_as_they_are_meant() -> None:
    (listed,) = read_catalog(
        b'{"sample_spec": {"input_cost_per_token": 1}, "dall-e": {"output_cost_per_image": 1},'
        b'"together_ai/x/y": {"litellm_provider": "together_ai",'
        b'"input_cost_per_token": 9.499999999999999E-7, "output_cost_per_token": 1.5e-06,'
        b'"cache_read_input_token_cost": 1e-8, "output_cost_per_token_above_200k_tokens": 3e-6}}'
    )
    assert listed == Listed(
        "together",
        "x/y",
        (
            Rates(0, 950_000_000, 1_500_000_000, 10_000_000),
            Rates(200_000, None, 3 * DOLLAR),
        ),
    )


def test_models_without_price_are_told_where_dollars_count() -> None:
    config = Config(
        upstreams=(upstream(model_aliases={"fast": "gpt-4o-mini", "slow": "house-blend"}),),
        routes=(Route(path_prefix="/a", upstream="stub", models=("fast", "claude-*", "x-1")),),
        keys=(Key(name="k", allowed_models=("gpt-4o", "x-1")),),
    )
    assert list(unpriced(config)) == []
    budget = Budget(name="b", unit="usd", limit=1)
    found = list(unpriced(replace(config, budgets=(budget,))))
    assert [line.split()[1] for line in found] == ["house-blend", "x-1"]


# the judge: genai-prices, a table that others keep

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "recorded"
MOMENT = datetime(2027, 1, 2, 7, tzinfo=UTC)
"""After the introductions that run out with 2026, and within DeepSeek's peak hours."""
JUDGES = {
    "bedrock": "aws",
    "moonshot": "moonshotai",
    "vertex": "google",
    "xai": "x-ai",
}
HOSTS = {
    "anthropic": "https://api.anthropic.com/v1",
    "azure": "https://acme.openai.azure.com/openai",
    "bedrock": "https://bedrock-runtime.us-east-1.amazonaws.com",
    "cerebras": "https://api.cerebras.ai/v1",
    "cohere": "https://api.cohere.com/v2",
    "deepseek": "https://api.deepseek.com",
    "fireworks": "https://api.fireworks.ai/inference/v1",
    "google": "https://generativelanguage.googleapis.com/v1beta",
    "google-vertex": "https://aiplatform.googleapis.com/v1",
    "groq": "https://api.groq.com/openai/v1",
    "mistral": "https://api.mistral.ai/v1",
    "moonshot": "https://api.moonshot.ai/v1",
    "openai": "https://api.openai.com/v1",
    "perplexity": "https://api.perplexity.ai",
    "together": "https://api.together.xyz/v1",
    "vertex": "https://aiplatform.googleapis.com/v1",
    "xai": "https://api.x.ai/v1",
    "zai": "https://api.z.ai/api/paas/v4",
}
DIFFERENT: set[tuple[str, str]] = {
    ("mistral", "mistral-large-latest"),
}
"""Listed in docs/pricing.md with the reason."""


def judged(provider: str, model: str, usage: Usage) -> int | None:
    """What the judge says, in nano-USD; None if it does not know the model."""
    judge = pytest.importorskip("genai_prices")
    try:
        price = judge.calc_price(
            judge.Usage(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cached_input_tokens or None,
                cache_write_tokens=usage.cache_write_tokens or None,
            ),
            model,
            provider_id=JUDGES.get(provider, provider),
            genai_request_timestamp=MOMENT,
        )
    except LookupError:
        return None
    return int((price.total_price * 10**9).quantize(Decimal(1), ROUND_HALF_UP))


def upstreams() -> PriceBook:
    return PriceBook(
        Config(upstreams=tuple(upstream(f"at {name}", url) for name, url in HOSTS.items()))
    )


@pytest.mark.parametrize("provider", sorted({provider for provider, _ in builtin()}))
def test_the_table_agrees_with_the_judge(provider: str) -> None:
    prices, compared = upstreams(), 0
    for listed, model in sorted(builtin()):
        if listed != provider or (provider, model) in DIFFERENT:
            continue
        name = model
        if provider == "bedrock":
            vendor = "anthropic" if "claude" in model else "openai" if "gpt" in model else "amazon"
            prefix = "global" if model.startswith("global.") else "us"
            name = f"{prefix}.{vendor}.{model.removeprefix('global.')}"
            name = model if ":" in model else name
        for usage in (Usage(1234, 567, 890), Usage(1234, 567, 0, 123), Usage(400_000, 1000, 9)):
            price = prices.find(f"at {provider}", name)
            expected = judged(provider, name, usage)
            assert price is not None, name
            if expected is not None:
                compared += 1
                assert price.cost(usage) == expected, (name, usage)
    assert compared


def recordings() -> list[dict[str, Any]]:
    entries = [orjson.loads(path.read_bytes()) for path in sorted(FOLDER.glob("*.json"))]
    return [each for each in entries if isinstance(each, dict) and each["expected"]["usage"]]


@pytest.mark.parametrize("entry", recordings(), ids=lambda entry: entry["id"])
def test_recorded_answers_cost_what_the_judge_says(entry: dict[str, Any]) -> None:
    body = (FOLDER / entry["body"]).read_bytes()
    said = re.search(rb'"(?:model|modelVersion)"\s*:\s*"([^"\\]+)"', body)
    found = entry["expected"]["usage"]
    usage = Usage(
        found["input_tokens"],
        found["output_tokens"],
        found["cached_input_tokens"] or 0,
        found["cache_write_tokens"] or 0,
    )
    prices, provider = upstreams(), entry["provider"]
    name = f"at {provider}"
    for model in (said[1].decode() if said else "", entry["request"].get("model") or ""):
        price = prices.find(name, model) if model else None
        if price is not None:
            break
    else:
        pytest.skip(f"{provider} sells nothing of that name as far as the table knows")
    judge = "vertex" if provider == "google-vertex" else provider
    expected = judged(judge, model, usage)
    if expected is None:
        pytest.skip(f"the judge does not know {model} at {judge}")
    assert price.cost(usage) == expected, model
