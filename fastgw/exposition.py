"""From numbers to the Prometheus text format (0.0.4), and the sums of several workers.

`Numbers` are plain: they are copied on the loop, travel as JSON from a worker to its supervisor,
add up, and are put into words in a thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from typing import Any

Numbers = dict[str, dict[tuple[str, ...], list[float]]]
"""Metric name without namespace, label values, values: one of a counter or a gauge; of a histogram
the counts between its bounds, the count above them all, and the sum."""

Merge = Callable[[Iterable[float]], float]
"""How the gauges of several workers become one: sum, min or max."""


@dataclass(frozen=True, slots=True)
class Family:
    """A declared metric. `kind` is counter, gauge or histogram; `bounds` are a histogram's.

    `of` names a histogram: then this counter is its sum and has no numbers of its own.
    """

    kind: str
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    of: str = ""


def families(numbers: Numbers, declared: Mapping[str, Family], namespace: str) -> list[Metric]:
    """The families of a scrape, in the order of their declaration."""
    found: list[Metric] = []
    for name, family in declared.items():
        shown = f"{namespace}_{name}" if namespace else name
        labels = list(family.labels)
        series = numbers.get(family.of or name, {})
        metric: Any
        if family.kind == "histogram":
            metric = HistogramMetricFamily(shown, family.text, labels=labels)
            for values, numbers_of in series.items():
                _add_histogram(metric, values, numbers_of, family.bounds)
        else:
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(shown, family.text, labels=labels)
            for values, numbers_of in series.items():
                metric.add_metric(list(values), numbers_of[-1])
        found.append(metric)
    return found


def _add_histogram(
    family: HistogramMetricFamily,
    labels: tuple[str, ...],
    numbers: list[float],
    bounds: tuple[float, ...],
) -> None:
    below = 0.0
    buckets = []
    for bound, count in zip((*map(_bound, bounds), "+Inf"), numbers[:-1], strict=True):
        below += count
        buckets.append((bound, below))
    family.add_metric(list(labels), buckets, numbers[-1])


def _bound(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))


def add(total: Numbers, more: Numbers) -> None:
    """Add counters and histograms series by series; gauges, too, where a sum is what is meant."""
    for name, series in more.items():
        into = total.setdefault(name, {})
        for labels, values in series.items():
            have = into.get(labels)
            if have is None:
                into[labels] = list(values)
            else:
                for at, value in enumerate(values):
                    have[at] += value


def merge_gauges(
    name: str, parts: Iterable[Numbers], merge: Merge
) -> dict[tuple[str, ...], list[float]]:
    """One gauge of several workers, by its own rule."""
    by_labels: dict[tuple[str, ...], list[float]] = {}
    for part in parts:
        for labels, values in part.get(name, {}).items():
            by_labels.setdefault(labels, []).append(values[-1])
    return {labels: [merge(values)] for labels, values in by_labels.items()}


class _Snapshot(Collector):
    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def render(found: list[Metric], *collectors: Collector) -> bytes:
    """The text of these families and of what `collectors` add. Takes milliseconds: not for the
    loop."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(found))
    for collector in collectors:
        registry.register(collector)
    return generate_latest(registry)
