"""The numbers of several workers as one: what the supervisor's admin port shows.

1. Counters and histograms add up. A worker tells those that changed, as they are now; what it said
   last stays when it dies, so no sum ever goes backwards, and what a worker that was killed counted
   after its last word (a second or less) is lost to the metrics. The budgets lose nothing by that.
2. Gauges are those of the workers that live: sums, or by the rule of `_RULES`.
3. An account is the same in all workers and must not be summed: what the store holds is taken from
   the worker that asked it last, and what each worker still owes the store is added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fastgw import clock
from fastgw.config.heap import no_collection
from fastgw.exposition import add, merge_gauges, render
from fastgw.metrics import Sample, is_cumulative
from fastgw.money import NANO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.core import Metric

    from fastgw.exposition import Merge, Numbers
    from fastgw.metrics import Metrics
    from fastgw.store.base import Sequences

_RULES: dict[str, Merge] = {"store_up": min, "journal_up": min, "build_info": max}
"""Of other gauges the sum is shown."""


_AT_ONCE = 1.0
"""Seconds between two answers of the store, of which the larger one counts."""


class AccountRow(NamedTuple):
    """One account as a worker knows it, in the budget's unit.

    `key` names account and window, "" where its window is over. `used` is what the store said at
    `known_at` (epoch seconds, 0: never), `owed` what was debited here since and is not settled.
    Amounts in usd are nano-USD here, and dollars in a gauge. Of what is owed `sent` was under way
    in the batch of `sequence`, the last that the worker began as `writer`; the rest in none.
    """

    budget: str
    account: str
    key: str
    limit: int
    used: int
    owed: int
    known_at: float
    unit: str = "tokens"
    writer: str = ""
    sequence: int = 0
    sent: int = 0


def owed_beside(rows: Iterable[AccountRow], settled: Sequences) -> dict[str, int]:
    """What workers owe the store beside what it holds, by the key of the account. `rows` are older
    than `settled`: what was on its way then, or left since, may have come."""
    owed: dict[str, int] = {}
    for row in rows:
        last = settled.get((row.key, row.writer), 0)
        if row.key and last <= row.sequence:
            left = row.owed if last < row.sequence else row.owed - row.sent
            if left:
                owed[row.key] = owed.get(row.key, 0) + left
    return owed


def merge_accounts(rows: Iterable[AccountRow]) -> list[AccountRow]:
    """One row for each account: rule 3 of the module."""
    grouped: dict[tuple[str, str], list[AccountRow]] = {}
    for row in rows:
        grouped.setdefault((row.budget, row.account), []).append(row)
    merged = []
    for same in grouped.values():
        freshest = max(same, key=lambda row: (row.key != "", row.known_at))
        alike = [row for row in same if row.key == freshest.key]
        # Of answers at nearly the same time the one asked for last need not be the last one given.
        used = max(row.used for row in alike if row.known_at >= freshest.known_at - _AT_ONCE)
        merged.append(freshest._replace(used=used, owed=sum(row.owed for row in alike)))
    return merged


def account_samples(rows: Iterable[AccountRow]) -> Iterator[Sample]:
    """The gauges of accounts."""
    for row in rows:
        labels = (row.budget, row.account)
        used = row.used + row.owed
        scale = NANO if row.unit == "usd" else 1
        yield Sample("budget_limit", labels, row.limit / scale)
        yield Sample("budget_used", labels, used / scale)
        yield Sample("budget_remaining", labels, max(0, row.limit - used) / scale)


def pack(numbers: Numbers) -> dict[str, list[Any]]:
    """Numbers as JSON can hold them."""
    return {name: list(series.items()) for name, series in numbers.items()}


def unpack(packed: Mapping[str, Any]) -> Numbers:
    """What `pack` made."""
    return {
        name: {tuple(labels): values for labels, values in series}
        for name, series in packed.items()
    }


class Totals:
    """What all workers said, the dead ones included."""

    def __init__(self) -> None:
        self._dead: Numbers = {}
        self._counted: dict[int, Numbers] = {}
        self._gauges: dict[int, Numbers] = {}

    def tell(self, worker: int, numbers: Numbers) -> None:
        """A worker told its changes."""
        counted = self._counted.setdefault(worker, {})
        gauges: Numbers = {}
        for name, series in numbers.items():
            if is_cumulative(name):
                counted.setdefault(name, {}).update(series)
            else:
                gauges[name] = series
        self._gauges[worker] = gauges

    def bury(self, worker: int) -> None:
        """A worker ended; another may take its number."""
        add(self._dead, self._counted.pop(worker, {}))
        self._gauges.pop(worker, None)

    def copy(self) -> Callable[[], Numbers]:
        """A function that adds up what is known now; it may run in a thread."""
        # `add` makes lists of its own, so copies of the tables are enough; the sums of the dead
        # change in place, hence the copy of their lists.
        dead: Numbers = {}
        add(dead, self._dead)
        counted = [_shallow(numbers) for numbers in self._counted.values()]
        gauges = [_shallow(numbers) for numbers in self._gauges.values()]

        def total() -> Numbers:
            for numbers in counted:
                add(dead, numbers)
            for name in {name for numbers in gauges for name in numbers}:
                dead[name] = merge_gauges(name, gauges, _RULES.get(name, sum))
            return dead

        return total


def _shallow(numbers: Numbers) -> Numbers:
    return {name: dict(series) for name, series in numbers.items()}


class ProcessSums(Collector):
    """`process_*` of several processes: sums; the start is that of the first.

    `ended_seconds`: CPU time of the processes that are gone.
    """

    def __init__(self, pids: Iterable[int], ended_seconds: float) -> None:
        self._pids = tuple(pids)
        self._ended_seconds = ended_seconds

    def collect(self) -> Iterator[Metric]:
        """Read /proc. A process that ended meanwhile is left out."""
        texts: dict[str, str] = {}
        values: dict[str, list[float]] = {}
        for pid in self._pids:
            for metric in _collector(pid).collect():
                for sample in metric.samples:
                    texts[sample.name] = metric.documentation
                    values.setdefault(sample.name, []).append(sample.value)
        for name, found in values.items():
            if name == "process_cpu_seconds_total":
                yield CounterMetricFamily(name, texts[name], sum(found) + self._ended_seconds)
            else:
                value = min(found) if name == "process_start_time_seconds" else sum(found)
                yield GaugeMetricFamily(name, texts[name], value)


def _collector(pid: int) -> ProcessCollector:
    return ProcessCollector(pid=lambda: pid, registry=None)


def exposition(
    metrics: Metrics,
    own: Numbers,
    total: Callable[[], Numbers],
    rows: Iterable[AccountRow],
    process: ProcessSums,
) -> bytes:
    """The text of a scrape; `own` is what the supervisor alone knows. For a thread."""
    with no_collection():
        numbers = total()
        numbers.update(own)
        metrics.add_samples(numbers, account_samples(merge_accounts(rows)))
        return render(metrics.families(numbers), process)


def sum_status(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Several workers' status as one: numbers add up, flags hold where all hold, of the rest the
    first counts."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            have = found.get(name)
            if have is None:
                found[name] = value
            elif isinstance(value, dict):
                found[name] = sum_status((have, value))
            elif isinstance(value, bool):
                found[name] = have and value
            elif isinstance(value, int | float):
                found[name] = have + value
    return found


def worker_row(number: int, state: str, pid: int, status: Mapping[str, Any]) -> dict[str, Any]:
    """A worker in the list of /api/status; `status` is its own."""
    shown = ("uptime_seconds", "config", "connections", "exchanges")
    return {"number": number, "state": state, "pid": pid} | {
        name: status[name] for name in shown if name in status
    }


def age(since: float) -> float:
    """Seconds since this monotonic moment, rounded for people."""
    return round(clock.monotonic() - since, 3)
