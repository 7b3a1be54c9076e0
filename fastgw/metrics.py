"""Every metric, declared once; counted with plain integers, put into words at a scrape.

The exchange path holds an `ExchangeSeries`, bound once for a combination of labels, and adds to it:
no label look-up, no lock. Histograms collect their observations in a list (an append each) and are
folded in bulk once a second and at a scrape: sorted, then cut at the bounds (0.07 us an observation
instead of 0.3 us). A scrape copies the numbers on the loop and renders them in a thread.

Labels of the operator's own (`[metrics] labels`) multiply series, so they stand on the counters and
on gen_ai_client_token_usage, whose buckets then shrink to +Inf unless `label_buckets` is set; all
other histograms go without them. Past `max_series` combinations, values that come from clients or
keys count under `other`. A label without a value is `unknown`.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import ProcessCollector

from fastgw.config.heap import no_collection
from fastgw.exposition import Family, families, render
from fastgw.money import NANO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client.core import Metric

    from fastgw.config.tables import Metrics as Settings
    from fastgw.exposition import Numbers

TOKEN_BUCKETS = tuple(4.0**power for power in range(14))
SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 80)
PROCESSING = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)
SERVER_SECONDS = tuple(0.01 * 2**power for power in range(14))
FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
)  # fmt: skip
PER_TOKEN = (0.001, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
SETTLE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1)

UNKNOWN = "unknown"
OTHER = "other"
MAX_LABEL = 128
_FOLD_AT = 4096

_GEN_AI = (
    "gen_ai_operation_name", "gen_ai_system", "gen_ai_request_model", "gen_ai_response_model",
)  # fmt: skip


class Histogram:
    """Observations of one series. `observe` is the append of a list."""

    __slots__ = ("_bounds", "_counts", "_total", "fresh", "observe", "waiting")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self.fresh = False  # has what `changes` did not tell
        self.waiting: list[float] = []
        self.observe: Callable[[float], None] = self.waiting.append

    def fold(self) -> None:
        """Sort what waits into the buckets."""
        waiting = self.waiting
        if not waiting:
            return
        waiting.sort()
        below = 0
        for at, bound in enumerate(self._bounds):
            upto = bisect_right(waiting, bound)
            self._counts[at] += upto - below
            below = upto
        self._counts[-1] += len(waiting) - below
        self._total += sum(waiting)
        waiting.clear()  # the same list: `observe` is bound to it
        self.fresh = True

    def snapshot(self) -> tuple[list[int], float]:
        """Counts between the bounds (the last one above them all), and the sum."""
        self.fold()
        return list(self._counts), self._total

    def numbers(self) -> list[float]:
        """Counts and sum in one list; empty without observations."""
        self.fold()
        return [*self._counts, self._total] if any(self._counts) else []


class Spent:
    """gen_ai_client_token_usage and gen_ai_client_tokens_total of one series, by token type.

    `cost`: what they cost in nano-USD; `unpriced`: exchanges whose model has no price. Whoever
    holds an ExchangeSeries adds to the two (a method would double what that costs)."""

    __slots__ = ("cost", "histograms", "input", "told", "unpriced")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.histograms = {
            kind: Histogram(bounds)
            for kind in ("input", "output", "input_cache_read", "input_cache_write")
        }
        self.input = self.histograms["input"]
        self.cost = 0
        self.unpriced = 0
        self.told = (0, 0)  # what `changes` said of the two


class ExchangeSeries:
    """What an exchange with these labels adds to. All durations in seconds."""

    __slots__ = (
        "_outcomes",
        "_sources",
        "cached_tokens",
        "duration",
        "input_tokens",
        "output_tokens",
        "processing",
        "server_duration",
        "spent",
        "time_per_output_token",
        "time_to_first_token",
        "written_tokens",
    )

    def __init__(
        self,
        outcomes: dict[tuple[str, int, str], int],
        latency: tuple[Histogram, Histogram],
        server: tuple[Histogram, Histogram, Histogram],
        tokens: Spent,
        sources: dict[str, int],
    ) -> None:
        self._outcomes = outcomes
        self.spent = tokens
        self._sources = sources
        self.duration = latency[0].observe
        self.processing = latency[1].observe
        self.server_duration = server[0].observe
        self.time_to_first_token = server[1].observe
        self.time_per_output_token = server[2].observe
        of = tokens.histograms
        self.input_tokens = of["input"].observe
        self.output_tokens = of["output"].observe
        self.cached_tokens = of["input_cache_read"].observe
        self.written_tokens = of["input_cache_write"].observe

    def count(self, outcome: tuple[str, int, str], number: int) -> None:
        """So many requests ended. `outcome`: method, status, and ok or what refused or ended it."""
        self._outcomes[outcome] = self._outcomes.get(outcome, 0) + number

    def count_source(self, source: str, number: int) -> None:
        """So many had their cost from there."""
        self._sources[source] = self._sources.get(source, 0) + number


class StoreSeries:
    """What the settlement adds to."""

    def __init__(self) -> None:
        self.seconds = Histogram(SETTLE_SECONDS)
        self.lines = Histogram(BATCHES)
        self.failures = 0

    def settled(self, seconds: float, lines: int) -> None:
        """A batch of so many lines was applied after so many seconds."""
        self.seconds.observe(seconds)
        self.lines.observe(lines)

    def failed(self) -> None:
        """A call to the store failed or took too long."""
        self.failures += 1


class Sample(NamedTuple):
    """A number that lives elsewhere: metric name without namespace, label values, value."""

    name: str
    labels: tuple[str, ...]
    value: float


_COUNTED: dict[str, Family] = {
    "requests_total": Family(
        "counter", "Requests by outcome", ("route", "upstream", "method", "status", "reason")
    ),
    "request_duration_seconds": Family(
        "histogram", "From request head to end of answer", ("route", "upstream"), SECONDS
    ),
    "request_processing_seconds": Family(
        "histogram",
        "From request head to the request sent to the provider: the gateway's own time",
        ("route", "upstream"),
        PROCESSING,
    ),
    "gen_ai_server_request_duration": Family(
        "histogram", "Provider time of a request in seconds", _GEN_AI, SERVER_SECONDS
    ),
    "gen_ai_server_time_to_first_token": Family(
        "histogram", "Until the first byte of the answer's body in seconds", _GEN_AI, FIRST_TOKEN
    ),
    "gen_ai_server_time_per_output_token": Family(
        "histogram", "Seconds per output token after the first", _GEN_AI, PER_TOKEN
    ),
    "gen_ai_client_token_usage": Family(
        "histogram", "Tokens per request", (*_GEN_AI, "gen_ai_token_type"), TOKEN_BUCKETS
    ),
    "gen_ai_client_tokens_total": Family(
        "counter",
        "Tokens by type",
        (*_GEN_AI, "gen_ai_token_type"),
        of="gen_ai_client_token_usage",
    ),
    "gen_ai_client_cost_usd_total": Family("counter", "Cost in US dollars", _GEN_AI),
    "gen_ai_unpriced_total": Family(
        "counter", "Exchanges that count as free since their model has no price", _GEN_AI
    ),
    "usage_source_total": Family("counter", "Exchanges by who said what they cost", ("source",)),
    "store_settle_seconds": Family("histogram", "Time of one settle call", (), SETTLE_SECONDS),
    "store_batch_size": Family("histogram", "Accounts in one settle call", (), BATCHES),
    "store_failures_total": Family("counter", "Calls to the store that failed"),
    "build_info": Family("gauge", "Version that runs", ("version",)),
}
"""What exchanges and settlement count."""


def is_cumulative(name: str) -> bool:
    """Whether a metric is a counter or a histogram: several workers' add up, a dead one's stay."""
    counted = _COUNTED.get(name)
    return counted.kind != "gauge" if counted is not None else name.endswith("_total")


_WITH_OWN_LABELS = {
    "requests_total", "gen_ai_client_token_usage", "gen_ai_client_tokens_total",
    "gen_ai_client_cost_usd_total", "gen_ai_unpriced_total",
}  # fmt: skip

_SAMPLED: dict[str, tuple[str, tuple[str, ...]]] = {
    "downstream_connections": ("Open client connections", ()),
    "downstream_connections_refused_total": ("Client connections closed for want of room", ()),
    "upstream_connections": ("Connections to a provider by state", ("upstream", "state")),
    "budget_used": ("Used of a budget in its current window", ("budget", "account")),
    "budget_limit": ("Limit of a budget", ("budget", "account")),
    "budget_remaining": ("Left of a budget in its current window", ("budget", "account")),
    "budget_refusals_total": ("Requests that a budget refused", ("budget",)),
    "debits_pending": ("Accounts with debits that the store has not acknowledged", ()),
    "holds": ("Accounts on which something is held for requests in flight", ()),
    "store_losses_total": ("Accounts that the store had lost and got back from a worker", ()),
    "journal_up": ("Whether debits survive a crash of the process", ()),
    "store_up": ("Whether the last call to the store succeeded", ()),
    "workers": ("Worker processes by state", ("state",)),
    "worker_restarts_total": ("Workers started again after their end", ()),
    "config_reloads_total": ("Reloads of the configuration by result", ("result",)),
    "config_reload_success": ("Whether the last reload of the configuration went well", ()),
    "access_log_dropped_total": ("Access log lines given up for want of room", ()),
}


_SERVER_NAMES = (
    "gen_ai_server_request_duration",
    "gen_ai_server_time_to_first_token",
    "gen_ai_server_time_per_output_token",
)


class Metrics:
    """All series of a worker."""

    def __init__(self, settings: Settings, version: str = "") -> None:
        self.namespace = settings.namespace
        self.label_names = tuple(settings.labels or ())
        self.store = StoreSeries()
        self._version = version
        self._max_series = settings.max_series
        self._token_bounds = TOKEN_BUCKETS if settings.label_buckets or not self.label_names else ()
        self._series: dict[tuple[str, ...], ExchangeSeries] = {}
        self._outcomes: dict[tuple[str, ...], dict[tuple[str, int, str], int]] = {}
        self._latency: dict[tuple[str, ...], tuple[Histogram, Histogram]] = {}
        self._server: dict[tuple[str, ...], tuple[Histogram, Histogram, Histogram]] = {}
        self._tokens: dict[tuple[str, ...], Spent] = {}
        self._sources: dict[str, int] = {}
        # what `changes` said of requests_total
        self._told: dict[tuple[str, ...], dict[tuple[str, int, str], int]] = {}
        self._samplers: list[Callable[[], Iterable[Sample]]] = []
        self._process = ProcessCollector(namespace="", registry=None)

    def add_source(self, sampler: Callable[[], Iterable[Sample]]) -> None:
        """Ask `sampler` for samples at each scrape; called on the loop."""
        self._samplers.append(sampler)

    def series(self, key: tuple[str, ...]) -> ExchangeSeries:
        """The handle for these labels: (route, upstream, operation, system, request model,
        response model, *values of the operator's labels); "" where one has no value."""
        found = self._series.get(key)
        if found is None:
            found = self._bind(key)
            if len(self._series) < 4 * self._max_series:
                self._series[key] = found
        return found

    def _bind(self, key: tuple[str, ...]) -> ExchangeSeries:
        route, upstream, operation, system, *named = (clean(value) for value in key)
        tokens_key = (operation, system, *named)
        outcomes_key = (route, upstream, *named[2:])
        if len(self._tokens) + len(self._outcomes) >= self._max_series and not (
            tokens_key in self._tokens and outcomes_key in self._outcomes
        ):
            named = [OTHER] * len(named)
            tokens_key = (operation, system, *named)
            outcomes_key = (route, upstream, *named[2:])
        if tokens_key not in self._tokens:
            self._tokens[tokens_key] = Spent(self._token_bounds)
        if (route, upstream) not in self._latency:
            self._latency[route, upstream] = (Histogram(SECONDS), Histogram(PROCESSING))
        server_key = (operation, system, *named[:2])
        if server_key not in self._server:
            self._server[server_key] = (
                Histogram(SERVER_SECONDS),
                Histogram(FIRST_TOKEN),
                Histogram(PER_TOKEN),
            )
        return ExchangeSeries(
            self._outcomes.setdefault(outcomes_key, {}),
            self._latency[route, upstream],
            self._server[server_key],
            self._tokens[tokens_key],
            self._sources,
        )

    def fold(self) -> None:
        """Fold what waits in long lists; called once a second, so that they stay short."""
        for _, _, _, histogram in self._histograms(changed=True):
            if len(histogram.waiting) >= _FOLD_AT:
                histogram.fold()

    def _histograms(self, changed: bool) -> Iterator[tuple[str, tuple[str, ...], str, Histogram]]:
        """Name, labels, token type, histogram of each series; `changed`: most of those without
        new observations are left out."""
        for key, (duration, processing) in self._latency.items():
            yield "request_duration_seconds", key, "", duration
            yield "request_processing_seconds", key, "", processing
        for key, server in self._server.items():
            for name, histogram in zip(_SERVER_NAMES, server, strict=True):
                yield name, key, "", histogram
        for key, tokens in self._tokens.items():
            if changed and not (tokens.input.waiting or tokens.input.fresh):
                continue  # whatever is observed, input tokens are
            for kind, histogram in tokens.histograms.items():
                yield "gen_ai_client_token_usage", key, kind, histogram
        yield "store_settle_seconds", (), "", self.store.seconds
        yield "store_batch_size", (), "", self.store.lines

    async def render(self, more: Iterable[Sample] = ()) -> bytes:
        """The Prometheus text format (0.0.4). Numbers are copied now, rendered in a thread; `more`
        samples are gone through there."""
        numbers = self.numbers()
        return await asyncio.to_thread(self._render, numbers, more)

    def _render(self, numbers: Numbers, more: Iterable[Sample]) -> bytes:
        with no_collection():
            self.add_samples(numbers, more)
            return render(self.families(numbers), self._process)

    def families(self, numbers: Numbers) -> list[Metric]:
        """What a scrape shows of these numbers, of this worker or of several."""
        return families(numbers, self._declared(numbers), self.namespace)

    def _declared(self, numbers: Numbers) -> dict[str, Family]:
        own = self.label_names
        found: dict[str, Family] = {}
        for name, family in _COUNTED.items():
            if name in _WITH_OWN_LABELS:
                bounds = self._token_bounds if family.kind == "histogram" else ()
                family = Family(family.kind, family.text, (*family.labels, *own), bounds, family.of)
            found[name] = family
        for name, (text, labels) in _SAMPLED.items():
            if name in numbers:
                kind = "counter" if name.endswith("_total") else "gauge"
                found[name] = Family(kind, text, labels)
        return found

    def numbers(self) -> Numbers:
        """Everything, as it is now."""
        return self._numbers(False)

    def changes(self) -> Numbers:
        """Counters and histograms that changed since the last call, and all samples."""
        return self._numbers(True)

    def _numbers(self, changed: bool) -> Numbers:
        """Looks at every series, and those may be tens of thousands: what did not change costs
        0.1 us."""
        found: Numbers = {"build_info": {(self._version,): [1]}}
        requests = found["requests_total"] = {}
        told = self._told
        for key, outcomes in self._outcomes.items():
            if changed:
                before = told.get(key, {})
                if before == outcomes:
                    continue
                told[key] = dict(outcomes)
            else:
                before = {}
            route, upstream, *custom = key
            for outcome, number in outcomes.items():
                if before.get(outcome) != number:
                    method, status, reason = outcome
                    labels = (route, upstream, method, str(status), reason, *custom)
                    requests[labels] = [number]
        for name, key, kind, histogram in self._histograms(changed):
            if changed:
                if not (histogram.waiting or histogram.fresh):
                    continue
                histogram.fold()
                histogram.fresh = False
            if values := histogram.numbers():
                labels = (*key[:4], kind, *key[4:]) if kind else key
                found.setdefault(name, {})[labels] = values
        costs: dict[tuple[str, ...], list[float]] = {}
        unpriced: dict[tuple[str, ...], list[float]] = {}
        for key, tokens in self._tokens.items():
            now = (tokens.cost, tokens.unpriced)
            if changed:
                if tokens.told == now:
                    continue
                tokens.told = now
            if tokens.cost:
                costs[key] = [tokens.cost / NANO]
            if tokens.unpriced:
                unpriced[key] = [tokens.unpriced]
        found["gen_ai_client_cost_usd_total"] = costs
        found["gen_ai_unpriced_total"] = unpriced
        found["usage_source_total"] = {(who,): [number] for who, number in self._sources.items()}
        found["store_failures_total"] = {(): [self.store.failures]}
        for sampler in self._samplers:
            self.add_samples(found, sampler())
        return found

    def add_samples(self, found: Numbers, samples: Iterable[Sample]) -> None:
        """Put samples into numbers, as far as `max_series` allows; equal labels add up."""
        for name, labels, value in samples:
            series = found.setdefault(name, {})
            cleaned = tuple(clean(label) for label in labels)
            have = series.get(cleaned)
            if have is not None:
                series[cleaned] = [have[0] + value]
            elif len(series) < self._max_series:
                series[cleaned] = [value]


def clean(value: str) -> str:
    """A label value that is short, printable and not empty."""
    if not value:
        return UNKNOWN
    value = value[:MAX_LABEL]
    return value if value.isprintable() else "".join(c if c.isprintable() else "?" for c in value)
