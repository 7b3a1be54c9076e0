"""Files of prices: our own table, agentgateway's model catalog, LiteLLM's model_prices JSON.

Ours is an agentgateway catalog with a `date` and, for each provider, a `source` beside: prices in
dollars for a million tokens, as text; `request` in dollars for each request.

    {"providers": {"openai": {"models": {"gpt-4o": {
        "rates": {"input": "2.50", "output": "10", "cacheRead": "1.25"},
        "tiers": [{"contextOver": 200000, "rates": {"input": "5"}}]}}}}}

LiteLLM's has dollars for one token, as floats: rounded to a nano-USD for a million tokens, which is
finer than any price and takes away what floats add ("9.499999999999999E-7").
"""

from __future__ import annotations

import json  # noqa: TID251 - orjson reads decimals as floats only
import re
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any

from fastgw.config.tables import Listed, Rates
from fastgw.money import read_usd

_OURS = {
    "input": "input",
    "output": "output",
    "cacheRead": "cache_read",
    "cacheWrite": "cache_write",
    "reasoning": "reasoning",
    "request": "request",
}
_LITELLM = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write",
    "output_cost_per_reasoning_token": "reasoning",
    "input_cost_per_request": "request",
}
_ABOVE = re.compile(r"(.+)_above_([0-9]+)k_tokens")

PROVIDERS = {
    "aws": "bedrock", "aws.bedrock": "bedrock", "amazon": "bedrock", "bedrock_converse": "bedrock",
    "amazon-bedrock": "bedrock", "azure_ai": "azure", "azure-openai": "azure",
    "text-completion-openai": "openai", "azure_text": "azure", "gemini": "google",
    "gcp.gemini": "google", "google-gemini": "google", "gcp.vertex_ai": "vertex",
    "vertex_ai": "vertex", "vertex": "vertex", "google-vertex": "vertex", "mistralai": "mistral",
    "mistral_ai": "mistral", "x-ai": "xai", "x_ai": "xai", "together_ai": "together",
    "togetherai": "together", "cohere_chat": "cohere", "deepseek-ai": "deepseek",
    "fireworks_ai": "fireworks", "text-completion-codestral": "mistral", "codestral": "mistral",
}  # fmt: skip
"""Other names of a provider, and ours."""


def provider_name(name: str) -> str:
    """Our name for a provider."""
    name = name.lower()
    if name.startswith("vertex_ai"):
        return "vertex"
    return PROVIDERS.get(name, name)


def read_catalog(data: bytes) -> list[Listed]:
    """The models of a file, in its order; those without prices for tokens are left out.

    Raises ValueError with what is wrong.
    """
    try:
        content = json.loads(data, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}".replace("\n", " ")) from None
    if not isinstance(content, dict):
        raise ValueError("no catalog of prices: not a JSON object")
    providers = content.get("providers")
    if isinstance(providers, dict):
        return [listed for name, each in providers.items() for listed in _provider(name, each)]
    found = [
        listed
        for name, each in content.items()
        if isinstance(each, dict) and (listed := _litellm(name, each))
    ]
    if not found:
        raise ValueError(
            "no catalog of prices: it has neither `providers` nor models with input_cost_per_token"
        )
    return found


def _provider(name: str, content: Any) -> list[Listed]:
    models = content.get("models") if isinstance(content, dict) else None
    if not isinstance(models, dict):
        raise ValueError(f"provider {name} has no `models`")
    found = []
    for model, each in models.items():
        if not isinstance(each, dict) or not isinstance(each.get("rates"), dict):
            continue
        where = f"{name}, {model}"
        tiers = each.get("tiers") or []
        if not isinstance(tiers, list) or not all(isinstance(tier, dict) for tier in tiers):
            raise ValueError(f"{where}: `tiers` is no list of objects")
        rates = [_rates(each["rates"], 0, where)]
        if rates[0].input is None:
            continue
        for tier in tiers:
            above = tier.get("contextOver")
            if type(above) is not int or above < 1:
                raise ValueError(f"{where}: a tier has no `contextOver`")
            rates.append(_rates(tier.get("rates") or {}, above, where))
        found.append(Listed(provider_name(name), model, tuple(sorted(rates, key=_above))))
    return found


def _rates(given: dict[str, Any], above: int, where: str) -> Rates:
    found: dict[str, int] = {}
    for name, value in given.items():
        if name in _OURS and value is not None:
            try:
                found[_OURS[name]] = read_usd(value)
            except ValueError as error:
                raise ValueError(f"{where}: {name}: {error}") from None
    return _complete(found, above)


def _complete(found: dict[str, int], above: int) -> Rates:
    """A model that makes no tokens has no output price; in a tier None is the price below it."""
    if not above and "input" in found:
        found.setdefault("output", 0)
    return Rates(
        above,
        found.get("input"),
        found.get("output"),
        found.get("cache_read"),
        found.get("cache_write"),
        found.get("reasoning"),
        found.get("request"),
    )


def _litellm(name: str, given: dict[str, Any]) -> Listed | None:
    if name == "sample_spec" or given.get("input_cost_per_token") is None:
        return None
    levels: dict[int, dict[str, int]] = {0: {}}
    for setting, value in given.items():
        above = 0
        match = _ABOVE.fullmatch(setting)
        if match is not None:
            setting, above = match[1], int(match[2]) * 1000
        field = _LITELLM.get(setting)
        if field is not None and value is not None:
            nano = _per_million(value, name)
            levels.setdefault(above, {})[field] = nano // 10**6 if field == "request" else nano
    provider = str(given.get("litellm_provider") or "")
    prefix, slash, rest = name.partition("/")
    model = rest if slash and provider_name(prefix) == provider_name(provider) else name
    rates = tuple(_complete(levels[above], above) for above in sorted(levels))
    return Listed(provider_name(provider), model, rates)


def _per_million(value: object, name: str) -> int:
    try:
        nano = Decimal(str(value)).scaleb(15).to_integral_value(ROUND_HALF_UP)
    except InvalidOperation:
        raise ValueError(f"{name}: {value!r} is not a price") from None
    if not nano.is_finite() or nano < 0:
        raise ValueError(f"{name}: {value!r} is not a price")
    return int(nano)


def _above(rates: Rates) -> int:
    return rates.above
