"""What tokens cost: the price of a model at an upstream, and a usage at that price.

1. Money is integers: prices in nano-USD for a million tokens, costs in nano-USD. Each kind of token
   is multiplied by its price; the sum is rounded once, half up.
2. A price is looked for by the names of a model, the most exact first: as it was written, without
   the prefixes of routers and clouds, without its date. For each name in turn: `[[prices]]`, those
   for this upstream before those for all, the last first; the catalogs, the last first; the table
   that comes with fastgw.
3. In catalogs and table a model stands under a provider. Which one an upstream is, its host tells,
   else its dialect, else its name; it takes that provider's prices and no other's. Of an upstream
   that is none of them the model's prefix tells (`groq/…`), else the price of the model's maker
   counts. So a model that its maker does not sell has no price at a server of one's own.
4. What has no price is None, never 0: whoever asks decides what that means.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from math import gcd
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastgw.config.catalogs import provider_name, read_catalog
from fastgw.config.tables import Rates

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fastgw.config.tables import Config, Listed, Upstream
    from fastgw.config.tables import Price as Setting
    from fastgw.model import Usage

MILLION = 1_000_000
_NEVER = 2**62
LONGEST = 256
"""Characters of a model's name whose price is kept."""
_REMEMBERED = 10_000
"""Models of which the answer is remembered: clients may name any."""

MAKERS = ("openai", "anthropic", "google", "mistral", "deepseek", "xai", "cohere")
"""Providers whose price counts where an upstream is none that we know."""

_SELLS = {
    "azure": ("azure", "openai"),
    "bedrock": ("bedrock",),
    "vertex": ("vertex", "google"),
}
"""Providers under which a provider's models may stand, where that is not its own name alone."""

_DIALECTS = frozenset(
    "anthropic azure bedrock cohere deepseek gemini groq mistral openrouter xai".split()
)
"""Dialects that only one provider speaks."""

_HOSTS = {
    "api.openai.com": "openai",
    "openai.azure.com": "azure",
    "services.ai.azure.com": "azure",
    "cognitiveservices.azure.com": "azure",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "google",
    "aiplatform.googleapis.com": "vertex",
    "amazonaws.com": "bedrock",
    "api.aws": "bedrock",
    "api.mistral.ai": "mistral",
    "codestral.mistral.ai": "mistral",
    "api.deepseek.com": "deepseek",
    "api.x.ai": "xai",
    "api.cohere.com": "cohere",
    "api.cohere.ai": "cohere",
    "api.groq.com": "groq",
    "api.together.xyz": "together",
    "api.together.ai": "together",
    "api.cerebras.ai": "cerebras",
    "api.moonshot.ai": "moonshot",
    "api.z.ai": "zai",
    "api.perplexity.ai": "perplexity",
    "api.fireworks.ai": "fireworks",
}
"""Hosts of providers; subdomains and regions (`us-east5-aiplatform…`) included."""


class Price:
    """What a model costs, up to `above` input tokens; for longer prompts `over` holds."""

    __slots__ = (
        "_cached", "_half", "_input", "_output", "_per", "_request", "_thought", "_written",
        "above", "over", "rates",
    )  # fmt: skip

    def __init__(self, rates: Sequence[Rates]) -> None:
        """`rates` by rising `above`, from 0; what one leaves out is as in the one before."""
        first, *rest = rates
        assert first.input is not None
        plain, made = first.input, first.output or 0
        cached = plain if first.cache_read is None else first.cache_read
        written = plain if first.cache_write is None else first.cache_write
        thought = made if first.reasoning is None else first.reasoning
        self._request = first.request or 0
        self.rates = Rates(first.above, plain, made, cached, written, thought, self._request)
        # In the smallest numbers that are exact: mostly nano-USD for a token.
        unit = gcd(plain, made, cached, written, thought, MILLION)
        self._per = MILLION // unit
        self._half = self._per // 2
        self._input = plain // unit
        self._output = made // unit
        # what a token of each kind costs more than one of the plain kind
        self._cached = (cached - plain) // unit
        self._written = (written - plain) // unit
        self._thought = (thought - made) // unit
        self.above = _NEVER
        self.over: Price | None = None
        if rest:
            filled = (
                high if high is not None else low
                for high, low in zip(rest[0][1:], first[1:], strict=True)
            )
            self.above = rest[0].above
            self.over = Price((Rates(rest[0].above, *filled), *rest[1:]))

    def cost(self, usage: Usage) -> int:
        """The cost in nano-USD."""
        given, made = usage[0], usage[1]
        if given > self.above and self.over is not None:
            return self.over.cost(usage)
        total = given * self._input + made * self._output
        cached, written, thought = usage[2], usage[3], usage[4]
        if cached or written or thought:
            cached = min(cached, given)
            total += cached * self._cached + min(written, given - cached) * self._written
            total += min(thought, made) * self._thought
        return (total + self._half) // self._per + self._request

    def most(self, usage: Usage) -> int:
        """What a request may cost of which `usage` is an estimate: all of its prompt may be written
        to a cache and all of its output be reasoning, where those are dearer, and a prompt near the
        next prices may turn out longer than that."""
        total = usage.input_tokens * (self._input + max(0, self._written))
        total += usage.output_tokens * (self._output + max(0, self._thought))
        cost = (total + self._half) // self._per + self._request
        if self.over is not None and usage.input_tokens * 5 // 4 > self.above:
            return max(cost, self.over.most(usage))
        return cost

    def room(self, input_tokens: int, amount: int) -> int:
        """Output tokens that `amount` nano-USD pay for after this prompt, 0 if none."""
        if self.over is not None and input_tokens * 5 // 4 > self.above:
            return self.over.room(input_tokens, amount)
        prompt = input_tokens * (self._input + max(0, self._written))
        left = (amount - self._request) * self._per - prompt
        each = self._output + max(0, self._thought)
        return max(0, left // each) if each else _NEVER

    def __repr__(self) -> str:
        return f"<Price {self.rates}>"


class PriceBook:
    """All prices of a configuration."""

    def __init__(self, config: Config) -> None:
        self._own = [(each, Price(_rates(each))) for each in reversed(config.prices)]
        self._listed: dict[tuple[str, str], Price] = {}
        self._lists: tuple[dict[tuple[str, str], Sequence[Rates]], ...] = (
            _by_name(config.catalog),
            *((builtin(),) if config.pricing.builtin else ()),
        )
        self._providers = {each.name: provider_of(each) for each in config.upstreams}
        self._found: dict[tuple[str, str], Price | None] = {}

    def find(self, upstream: str, model: str) -> Price | None:
        """The price of `model` at the upstream of this name; None if there is none."""
        key = (upstream, model)
        try:
            return self._found[key]
        except KeyError:
            pass
        if len(self._found) >= _REMEMBERED:
            self._found.clear()
        found = self._search(upstream, model)
        if len(model) <= LONGEST:  # a longer one is not kept: its length is the client's choice
            self._found[key] = found
        return found

    def _search(self, upstream: str, model: str) -> Price | None:
        prefix, _, rest = model.lower().partition("/")
        provider = self._providers.get(upstream, "")
        if provider:
            providers = _SELLS.get(provider, (provider,))
        elif rest:
            hint = provider_name(prefix)
            providers = (*_SELLS.get(hint, (hint,)), *MAKERS)
        else:
            providers = MAKERS
        for name in names(model):
            for only in (True, False):
                for setting, price in self._own:
                    if only == bool(setting.upstream) and setting.upstream in ("", upstream):
                        if _fits(setting.model.lower(), name):
                            return price
            for listed in self._lists:
                for each in providers:
                    rates = listed.get((each, name))
                    if rates is not None:
                        return Price(rates)
        return None


def _rates(setting: Setting) -> tuple[Rates, ...]:
    return (
        Rates(
            0,
            setting.input,
            setting.output,
            setting.cache_read,
            setting.cache_write,
            setting.reasoning,
            setting.request,
        ),
        *setting.tiers,
    )


def _by_name(listed: Iterable[Listed]) -> dict[tuple[str, str], Sequence[Rates]]:
    """The last of each name wins."""
    return {(each.provider, each.model.lower()): each.rates for each in listed}


def _fits(pattern: str, name: str) -> bool:
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    if pattern.startswith("*"):
        return name.endswith(pattern[1:])
    return name == pattern


@cache
def builtin() -> dict[tuple[str, str], Sequence[Rates]]:
    """The table that comes with fastgw: usage/prices.json."""
    data = resources.files("fastgw.usage").joinpath("prices.json").read_bytes()
    return _by_name(read_catalog(data))


def provider_of(upstream: Upstream) -> str:
    """Which provider an upstream is, "" for none that we know."""
    host = (urlsplit(upstream.base_url).hostname or "").lower()
    for known, name in _HOSTS.items():
        if host == known or host.endswith((f".{known}", f"-{known}")):
            return name
    if upstream.dialect in _DIALECTS:
        return "" if upstream.dialect == "openrouter" else provider_name(upstream.dialect)
    name = provider_name(upstream.name)
    return name if name in _HOSTS.values() else ""


def unpriced(config: Config) -> Iterator[str]:
    """Of the models that the configuration names, those that no budget in usd can charge: a line
    for each."""
    if not any(budget.unit == "usd" for budget in config.budgets):
        return
    book = PriceBook(config)
    upstreams = {upstream.name: upstream for upstream in config.upstreams}
    keys = [model for key in config.keys for model in key.allowed_models]
    told = set()
    for route in config.routes:
        upstream = upstreams[route.upstream]
        aliases = upstream.model_aliases or {}
        asked = (model for model in (*route.models, *keys) if "*" not in model)
        models = [upstream.model] if upstream.model else [*aliases.values(), *asked]
        for model in models:
            sent = aliases.get(model, model)
            if (upstream.name, sent) not in told and book.find(upstream.name, sent) is None:
                told.add((upstream.name, sent))
                yield (
                    f"model {sent} has no price at upstream {upstream.name}, and budgets count "
                    "dollars; add it to [[prices]]"
                )


_REGION = re.compile(r"(?:(global)|us-gov|us|eu|apac|jp|au|ca|sa|af|me|in|uk|mx)\.(?=[a-z0-9]+\.)")
_VENDOR = re.compile(
    r"(?:ai21|amazon|anthropic|cohere|google|meta|minimax|mistral|moonshotai|moonshot|nvidia|openai"
    r"|qwen|writer|zai)\."
)
_REVISION = re.compile(r"(?:-v?[0-9]{1,2}:[0-9]{1,2}(?::[0-9a-z]+)?|-v[0-9]{1,2})$")
_DATES = (
    re.compile(r"[-@](?:20[0-9]{6}|20[0-9]{2}-[0-9]{2}-[0-9]{2}|default|latest)$"),
    re.compile(r"-preview-[0-9]{2}-(?:20)?[0-9]{2}$"),
    re.compile(r"-[0-9]{2}-20[0-9]{2}$"),
    re.compile(r"-(?:[0-9]{4}|0[0-9]{2})$"),
)


def names(model: str) -> Iterator[str]:
    """The names under which a model may be listed, the most exact first, in lower case.

    `us.anthropic.claude-sonnet-4-20250514-v1:0`: itself, `claude-sonnet-4-20250514`,
    `claude-sonnet-4`. A fine-tuned model is never the model it was made from; nor is one with a
    suffix that changes what is paid for (`:free`, `:online`).
    """
    seen: set[str] = set()
    for name in _names(model.lower()):
        if name and name not in seen:
            seen.add(name)
            yield name


def _names(model: str) -> Iterator[str]:
    yield model
    if model.startswith("ft:"):
        base = "ft:" + model.split(":")[1]
        yield base
        yield _undated(base)
        return
    name = model
    while "/" in name:
        name = name.partition("/")[2]
        yield name
    match = _REGION.match(name)
    everywhere = match is not None and match[1]
    bare = _VENDOR.sub("", name[match.end() :] if match else name, count=1)
    bare = _REVISION.sub("", bare) if bare != name or ":" in bare else bare
    forms = [bare, _undated(bare)]
    if bare.startswith("claude"):
        forms += [form.replace(".", "-") for form in forms]
    for form in forms:
        if everywhere:
            yield f"global.{form}"
        yield form


def _undated(name: str) -> str:
    for pattern in _DATES:
        shorter = pattern.sub("", name)
        if shorter != name:
            return shorter
    return name
