"""Metrics: read back by the official parser, series bound by labels, capped, never `_created`."""

from __future__ import annotations

import asyncio
import gc
import itertools
import re
import shutil
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fastgw.config.tables import Metrics as Settings
from fastgw.metrics import TOKEN_BUCKETS, Histogram, Metrics, Sample
from fastgw.model import Usage
from tests.series import use

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KEY = ("/openai", "stub", "chat", "openai", "gpt-4o", "gpt-4o-2024")


def scrape(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of one scrape by name and labels."""
    found = {}
    for family in text_string_to_metric_families(asyncio.run(metrics.render()).decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def names(found: Iterable[tuple[str, object]]) -> set[str]:
    return {name for name, _ in found}


def test_counts_of_an_exchange() -> None:
    metrics = Metrics(Settings())
    series = metrics.series(KEY)
    series.count(("POST", 200, "ok"), 1)
    series.count(("POST", 200, "ok"), 1)
    series.count(("POST", 429, "budget_exceeded"), 1)
    use(series, Usage(9, 10, 4, 2, 1, "reported"))
    found = scrape(metrics)
    labels = {"route": "/openai", "upstream": "stub", "method": "POST"}
    ok = frozenset({**labels, "status": "200", "reason": "ok"}.items())
    refused = frozenset({**labels, "status": "429", "reason": "budget_exceeded"}.items())
    assert found["fastgw_requests_total", ok] == 2
    assert found["fastgw_requests_total", refused] == 1
    gen_ai = {
        "gen_ai_operation_name": "chat",
        "gen_ai_system": "openai",
        "gen_ai_request_model": "gpt-4o",
        "gen_ai_response_model": "gpt-4o-2024",
    }
    for kind, tokens in (
        ("input", 9),
        ("output", 10),
        ("input_cache_read", 4),
        ("input_cache_write", 2),
    ):
        at = frozenset({**gen_ai, "gen_ai_token_type": kind}.items())
        assert found["fastgw_gen_ai_client_token_usage_sum", at] == tokens
        assert found["fastgw_gen_ai_client_token_usage_count", at] == 1
        assert found["fastgw_gen_ai_client_tokens_total", at] == tokens
    assert found["fastgw_usage_source_total", frozenset({("source", "reported")})] == 1
    assert not any(name.endswith("_created") for name in names(found))


def test_buckets_are_cumulative_and_end_in_inf() -> None:
    metrics = Metrics(Settings())
    for tokens in (1, 2, 4, 5, 10**9):
        use(metrics.series(KEY), Usage(tokens, 0, 0, 0, 0, "reported"))
    found = scrape(metrics)
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in found.items()
        if name == "fastgw_gen_ai_client_token_usage_bucket"
        and ("gen_ai_token_type", "input") in labels
    }
    assert buckets["1"] == 1
    assert buckets["4"] == 3
    assert buckets["16"] == 4
    assert buckets[str(4**13)] == 4
    assert buckets["+Inf"] == 5
    assert len(buckets) == len(TOKEN_BUCKETS) + 1


@pytest.mark.parametrize(("full", "expected"), [(False, 1), (True, len(TOKEN_BUCKETS) + 1)])
def test_labels_of_ones_own_cost_no_buckets_unless_asked(full: bool, expected: int) -> None:
    metrics = Metrics(Settings(labels={"user_id": "apiKey.user_id"}, label_buckets=full))
    use(metrics.series((*KEY, "alice")), Usage(9, 10, 0, 0, 0, "reported"))
    found = scrape(metrics)
    buckets = [
        labels
        for name, labels in found
        if name == "fastgw_gen_ai_client_token_usage_bucket"
        and {("gen_ai_token_type", "input"), ("user_id", "alice")} <= labels
    ]
    assert len(buckets) == expected


def test_a_label_without_value_is_unknown_and_an_odd_one_is_made_printable() -> None:
    metrics = Metrics(Settings(labels={"team": "apiKey.team"}))
    for team in ("", 'a"b\\c\nd', "x" * 1000, "ü😀"):
        metrics.series((*KEY, team)).count(("POST", 200, "ok"), 1)
    teams = {
        dict(labels)["team"] for name, labels in scrape(metrics) if name == "fastgw_requests_total"
    }
    assert teams == {"unknown", 'a"b\\c?d', "x" * 128, "ü😀"}


def test_series_past_the_cap_count_under_other_and_nothing_is_lost() -> None:
    metrics = Metrics(Settings(labels={"user": "apiKey.user"}, max_series=20))
    for user in range(500):
        series = metrics.series((*KEY[:4], f"model-{user}", "", f"user-{user}"))
        series.count(("POST", 200, "ok"), 1)
        use(series, Usage(1, 2, 0, 0, 0, "reported"))
    found = scrape(metrics)
    requests = {
        dict(labels)["user"]: value
        for (name, labels), value in found.items()
        if name == "fastgw_requests_total"
    }
    assert "other" in requests
    assert len(requests) <= 21
    assert sum(requests.values()) == 500
    tokens = [v for (name, _), v in found.items() if name == "fastgw_gen_ai_client_tokens_total"]
    assert sum(tokens) == 1500
    # a combination that was there before goes on under its own name
    metrics.series((*KEY[:4], "model-0", "", "user-0")).count(("POST", 200, "ok"), 1)
    again = scrape(metrics)
    assert sum(v for (n, labels), v in again.items() if ("user", "user-0") in labels) > sum(
        v for (n, labels), v in found.items() if ("user", "user-0") in labels
    )


def test_namespace_and_samples() -> None:
    metrics = Metrics(Settings(namespace="agentgateway"), "1.2.3")
    metrics.add_source(
        lambda: [
            Sample("budget_used", ("daily", "alice"), 19),
            Sample("budget_refusals_total", ("daily",), 3),
            Sample("store_up", (), 1),
        ]
    )
    metrics.store.settled(0.001, 4)
    metrics.store.failed()
    found = scrape(metrics)
    used = frozenset({("budget", "daily"), ("account", "alice")})
    assert found["agentgateway_budget_used", used] == 19
    assert found["agentgateway_budget_refusals_total", frozenset({("budget", "daily")})] == 3
    assert found["agentgateway_store_up", frozenset()] == 1
    assert found["agentgateway_store_batch_size_sum", frozenset()] == 4
    assert found["agentgateway_store_settle_seconds_count", frozenset()] == 1
    assert found["agentgateway_store_failures_total", frozenset()] == 1
    assert found["agentgateway_build_info", frozenset({("version", "1.2.3")})] == 1
    assert "process_cpu_seconds_total" in names(found)


def test_every_family_has_help_and_type_and_stands_once() -> None:
    metrics = Metrics(Settings(labels={"user_id": "apiKey.user_id"}))
    for user in ("alice", "bob"):
        series = metrics.series((*KEY, user))
        series.count(("POST", 200, "ok"), 1)
        use(series, Usage(9, 10, 4, 2, 1, "counted"))
        for observe in (series.duration, series.processing, series.server_duration):
            observe(0.01)
        series.time_to_first_token(0.02)
        series.time_per_output_token(0.03)
    text = asyncio.run(metrics.render()).decode()
    helped = re.findall(r"^# HELP (\S+)", text, re.MULTILINE)
    typed = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert helped == typed
    assert len(set(helped)) == len(helped)
    promtool = shutil.which("promtool")
    if promtool:  # where Prometheus is installed, its own linter agrees
        run = subprocess.run(
            [promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False
        )
        assert run.returncode == 0, run.stdout + run.stderr


@given(st.lists(st.floats(0, 100), max_size=200), st.integers(1, 5))
def test_a_histogram_equals_counting_one_by_one(values: list[float], folds: int) -> None:
    bounds = (0.5, 1.0, 10.0, 50.0)
    histogram = Histogram(bounds)
    for at, value in enumerate(values):
        histogram.observe(value)
        if at % folds == 0:
            histogram.fold()
    counts, total = histogram.snapshot()
    edges = (-1.0, *bounds, float("inf"))
    assert counts == [
        sum(1 for value in values if low < value <= high) for low, high in itertools.pairwise(edges)
    ]
    assert total == pytest.approx(sum(values))


def test_samples_of_accounts_are_gone_through_beside_the_loop() -> None:
    """There may be as many as accounts; the collector does not look at what is made of them."""
    seen: list[tuple[int, bool]] = []

    def samples() -> Iterator[Sample]:
        seen.append((threading.get_ident(), gc.isenabled()))
        yield Sample("budget_used", ("daily", "alice"), 5)

    text = asyncio.run(Metrics(Settings()).render(samples())).decode()
    assert 'fastgw_budget_used{account="alice",budget="daily"} 5.0' in text
    ((thread, collects),) = seen
    assert thread != threading.get_ident()
    assert not collects
    assert gc.isenabled()
