"""Sums of workers: nothing goes backwards, accounts are not counted twice."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import orjson
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fastgw.admin.aggregate import (
    AccountRow,
    ProcessSums,
    Totals,
    exposition,
    merge_accounts,
    owed_beside,
    pack,
    sum_status,
    unpack,
)
from fastgw.config.tables import Metrics as Settings
from fastgw.metrics import Metrics, Sample
from fastgw.model import Usage
from fastgw.policy.account import Limit
from fastgw.policy.ledger import Ledger
from fastgw.policy.window import EpochWindow
from fastgw.store.memory import MemoryStore
from tests.series import use

if TYPE_CHECKING:
    from fastgw.exposition import Numbers

KEY = ("/openai", "stub", "chat", "openai", "m", "m")


def over_the_wire(numbers: Numbers) -> Numbers:
    return unpack(orjson.loads(orjson.dumps(pack(numbers))))


def text_of(totals: Totals, own: Numbers, rows: list[AccountRow]) -> dict[str, float]:
    """Samples by name and labels."""
    process = ProcessSums([os.getpid()], 0.0)
    text = exposition(Metrics(Settings()), own, totals.copy(), rows, process).decode()
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def work(metrics: Metrics, number: int) -> None:
    for _ in range(number):
        series = metrics.series(KEY)
        series.count(("POST", 200, "ok"), 1)
        use(series, Usage(9, 10, source="reported"))
        series.duration(0.02)
    metrics.store.settled(0.001, 2)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["work", "tell", "die", "end"])), max_size=40
    )
)
def test_sums_are_exact_but_for_what_a_killed_worker_did_not_tell(
    steps: list[tuple[int, str]],
) -> None:
    totals = Totals()
    workers = [Metrics(Settings()) for _ in range(3)]
    untold = [0, 0, 0]
    expected = 0
    before = 0.0
    for at, what in steps:
        if what == "work":
            work(workers[at], at + 1)
            untold[at] += at + 1
            continue
        if what in ("tell", "end"):
            totals.tell(at, over_the_wire(workers[at].changes()))
            expected += untold[at]
            untold[at] = 0
        if what in ("die", "end"):
            totals.bury(at)
            workers[at] = Metrics(Settings())
            untold[at] = 0
        shown = totals.copy()()
        count = sum(values[0] for values in shown.get("requests_total", {}).values())
        tokens = sum(values[-1] for values in shown.get("gen_ai_client_token_usage", {}).values())
        assert count == expected
        assert tokens == expected * 19
        assert (
            sum(sum(values[:-1]) for values in shown.get("request_duration_seconds", {}).values())
            == expected
        )
        assert count >= before
        before = count


def test_a_scrape_of_two_workers() -> None:
    totals = Totals()
    for worker, up in ((1, 1), (2, 0)):
        metrics = Metrics(Settings(), "1.0")
        work(metrics, worker)
        metrics.add_source(
            lambda up=up: [  # type: ignore[misc]
                Sample("store_up", (), up),
                Sample("debits_pending", (), 2),
                Sample("upstream_connections", ("stub", "idle"), 3),
                Sample("budget_refusals_total", ("daily",), 5),
            ]
        )
        totals.tell(worker, over_the_wire(metrics.changes()))
    rows = [
        AccountRow("daily", "alice", "daily/alice@1", 100, 50, 7, 10.0),
        AccountRow("daily", "alice", "daily/alice@1", 100, 57, 2, 11.0),
        AccountRow("daily", "bob", "", 100, 0, 0, 3.0),
    ]
    own: Numbers = {"workers": {("ready",): [2]}, "build_info": {("1.0",): [1]}}
    found = text_of(totals, own, rows)
    assert found["fastgw_store_up[]"] == 0
    assert found["fastgw_debits_pending[]"] == 4
    assert found["fastgw_upstream_connections[('state', 'idle'), ('upstream', 'stub')]"] == 6
    assert found["fastgw_budget_refusals_total[('budget', 'daily')]"] == 10
    assert found["fastgw_build_info[('version', '1.0')]"] == 1
    assert found["fastgw_workers[('state', 'ready')]"] == 2
    assert found["fastgw_store_settle_seconds_count[]"] == 2
    alice = "[('account', 'alice'), ('budget', 'daily')]"
    assert found[f"fastgw_budget_used{alice}"] == 57 + 7 + 2
    assert found[f"fastgw_budget_remaining{alice}"] == 34
    assert found[f"fastgw_budget_limit{alice}"] == 100
    assert found["process_cpu_seconds_total[]"] > 0
    # the gauges of a dead worker go, what it counted stays
    totals.bury(2)
    found = text_of(totals, own, rows)
    assert found["fastgw_store_up[]"] == 1
    assert found["fastgw_debits_pending[]"] == 2
    assert found["fastgw_budget_refusals_total[('budget', 'daily')]"] == 10


def test_an_account_whose_window_is_over_somewhere_is_shown_as_it_is_now() -> None:
    old = AccountRow("daily", "alice", "daily/alice@1", 100, 90, 5, 9.0)
    new = AccountRow("daily", "alice", "daily/alice@2", 100, 3, 1, 20.0)
    over = AccountRow("daily", "alice", "", 100, 0, 0, 30.0)
    assert merge_accounts([old, new, over]) == [new]
    assert merge_accounts([over]) == [over]
    again = old._replace(owed=7, known_at=1.0)
    assert merge_accounts([again, old]) == [old._replace(owed=12)]


def test_process_sums_leave_out_who_is_gone() -> None:
    own = {m.name: m.samples[0].value for m in ProcessSums([os.getpid()], 0.0).collect()}
    both = {
        m.name: m.samples[0].value for m in ProcessSums([os.getpid(), 2**22 + 1], 100.0).collect()
    }
    assert set(own) == set(both)
    assert both["process_start_time_seconds"] == own["process_start_time_seconds"]
    assert both["process_cpu_seconds"] >= own["process_cpu_seconds"] + 100


def test_status_adds_up() -> None:
    one = {"n": 1, "up": True, "name": "a", "pools": {"x": {"idle": 2}}, "listen": ["l"]}
    two = {"n": 2, "up": False, "name": "b", "pools": {"x": {"idle": 3}, "y": {"idle": 1}}}
    assert sum_status([one, two]) == {
        "n": 3,
        "up": False,
        "name": "a",
        "pools": {"x": {"idle": 5}, "y": {"idle": 1}},
        "listen": ["l"],
    }
    assert sum_status([]) == {}


def test_of_answers_at_nearly_the_same_time_the_larger_is_the_later() -> None:
    first = AccountRow("daily", "alice", "daily/alice@1", 100, 50, 0, 10.01)
    later = AccountRow("daily", "alice", "daily/alice@1", 100, 55, 0, 10.0)  # asked for before it
    assert [row.used for row in merge_accounts([first, later])] == [55]
    corrected = first._replace(used=40, known_at=12.0)
    assert [row.used for row in merge_accounts([corrected, later])] == [40]


DAILY = Limit("daily", "tokens", 10**6, EpochWindow("day"))
NOW = 4_000_000_000.0


class Teller:
    """A worker's book, and what it says when it is asked."""

    def __init__(self, name: str, store: MemoryStore) -> None:
        self.ledger = Ledger(name, 0.1)
        self.store = store
        self.account = self.ledger.account(DAILY, (), NOW)

    def debit(self, amount: int) -> None:
        self.ledger.debit((self.account,), Usage(amount, 0), NOW)

    def settle(self, *, answered: bool = True) -> None:
        if (batch := self.ledger.take()) is not None:
            answer = asyncio.run(self.store.settle(batch))
            if answered:
                self.ledger.settled(answer, NOW)

    def row(self) -> AccountRow:
        count = self.account.count
        return AccountRow(
            "daily",
            "",
            count.key,
            10**6,
            count.used,
            count.spent - count.used,
            max(0.0, count.known_at),
            "tokens",
            self.ledger.writer,
            self.ledger.sequence,
            count.sent,
        )


STEPS = st.lists(
    st.tuples(st.sampled_from(["debit", "take", "lose", "settle"]), st.integers(0, 1)), max_size=20
)


@given(before=STEPS, meanwhile=STEPS)
def test_what_is_on_its_way_counts_once(
    before: list[tuple[str, int]], meanwhile: list[tuple[str, int]]
) -> None:
    """Whatever left, came or was answered between the workers' word and the look at the store."""
    store = MemoryStore()
    workers = [Teller("a", store), Teller("b", store)]

    def work(steps: list[tuple[str, int]]) -> None:
        for kind, number in steps:
            worker = workers[number]
            if kind == "debit":
                worker.debit(7)
            elif kind == "take":
                worker.ledger.take()
            else:
                worker.settle(answered=kind == "settle")

    work(before)
    truth = 7 * sum(1 for kind, _ in before if kind == "debit")
    rows = [worker.row() for worker in workers]
    work([step for step in meanwhile if step[0] != "debit"])
    settled = {(row.key, row.writer): 0 for row in rows if row.owed or row.sent}
    found = asyncio.run(store.accounts(settled=settled))
    (key,) = {row.key for row in rows}
    stored = found[key].used if key in found else 0
    assert stored + owed_beside(rows, settled).get(key, 0) == truth


def test_names_with_commas_are_told_apart() -> None:
    rows = [
        AccountRow("daily", "a,b,c", "one", 100, 0, 5, 1.0),
        AccountRow("daily", "a,b,c", "other", 100, 0, 7, 1.0),
        AccountRow("daily", "a,b,c", "", 100, 0, 0, 1.0),
    ]
    assert owed_beside(rows, {}) == {"one": 5, "other": 7}
