"""A short chaos for each store, and proof that its judges can say no."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest

from fastgw import clock
from fastgw.audit.findings import DIFFERS, UNLOGGED
from tests.adversity import chaos
from tests.adversity.chaos_clients import Seen
from tests.adversity.conftest import ask, spoken
from tests.processes import PER_USER, Gateway, Process, Provider

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 15.0
CASES = {
    # Redis forgets everything as well, which the one worker knows
    "redis": {"store": "redis", "workers": 1, "kills": 0},
    "redis, workers": {"store": "redis", "workers": 2, "kills": 10},
    "sqlite, workers": {"store": "sqlite", "workers": 2, "kills": 10},
}
FAULTS = {"redis": 7, "sqlite": 1}
"""Kinds of fault, and one more: killed workers, or a Redis that forgets."""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_everything_breaks_and_the_books_agree(tmp_path: Path, case: str) -> None:
    options: dict[str, Any] = CASES[case]
    report = chaos.run(tmp_path, seconds=SECONDS, seed=7, **options)
    assert not report["wrong"], orjson.dumps(report, option=orjson.OPT_INDENT_2).decode()
    # each kind of client, of answer and of fault took part
    assert {"200", "429", "left"} <= set(report["outcomes"])
    assert all(report["faults"].values())
    assert len(report["faults"]) == FAULTS[options["store"]] + 1
    assert report["audit"]["compared"] > 0
    assert bool(report["replies_lost"]) == (options["store"] == "redis")


@pytest.mark.slow
def test_a_store_that_forgets_is_found_out(tmp_path: Path) -> None:
    """The same without a store that keeps: what was used is told by the logs, and is not there."""
    report = chaos.run(tmp_path, seconds=3.0, clients=20, store="sqlite", forget=True, seed=7)
    assert "the books disagree" in report["wrong"]
    assert not report["audit"]["equal"]
    assert all(row["difference"] < 0 for row in report["audit"]["accounts"])


def test_a_refusal_is_false_where_all_that_was_asked_for_would_not_have_filled(
    tmp_path: Path,
) -> None:
    log = tmp_path / "stub.jsonl"
    now = clock.wall()
    facts: dict[str, Any] = {"request_id": "a", "status": 200, "reported": True, "whole": True}
    facts |= {"input_tokens": 10, "output_tokens": 9, "text_bytes": 4, "prompt_counted": 10}
    for at in (now - 2, now - 1, now + 1):
        facts |= {"time": clock.timestamp(at), "began": clock.timestamp(at), "end": "done"}
        with log.open("ab") as file:
            file.write(orjson.dumps(facts | {"account": "small0"}) + b"\n")
    house = cast("Any", SimpleNamespace(stub_log=log, small=38))
    seen = Seen(refusals=[(now, name, "b", "429") for name in ("small0", "small1", "big0")])
    assert [each[1] for each in chaos.false_refusals(seen, house)] == ["small1", "big0"]
    house.small = 39
    assert len(chaos.false_refusals(seen, house)) == 3


def test_who_has_an_answer_whole_must_have_been_charged() -> None:
    told = {"reported": True, "input_tokens": 10, "output_tokens": 9}
    untold = told | {"reported": False}
    unlogged = [
        {"request_id": number, "key": key, "provider": provider}
        for number, key, provider in (
            ("a", "big0", told),
            ("b", "big0", told),
            ("c", "big0", untold),
            ("d", "small0", told),
        )
    ]

    def short(used: int) -> dict[str, int]:
        rows = [
            {"budget": "big", "account": "big0", "provider": 100, "used": used},
            {"budget": "small", "account": "small0", "provider": 7, "used": 7},
        ]
        books = {"exchanges": {UNLOGGED: unlogged}, "accounts": rows}
        return chaos.shortfall(books, {"a", "c"})

    assert short(119) == {}
    assert short(118) == {"big0": 1}


def test_a_request_in_no_log_may_have_been_counted() -> None:
    row = {"budget": "calls", "account": "big0", "difference": 2}
    books: dict[str, Any] = {"equal": False, "counts": {UNLOGGED: 3}, "accounts": [row]}
    assert chaos.agree(books, Counter({"big0": 2}))
    assert not chaos.agree(books, Counter({"big0": 1, "big1": 9}))
    assert not chaos.agree(books | {"accounts": [row | {"difference": -1}]}, Counter({"big0": 2}))
    assert not chaos.agree(books | {"accounts": [row | {"budget": "big"}]}, Counter({"big0": 2}))
    assert not chaos.agree(books | {"counts": {DIFFERS: 1}}, Counter({"big0": 2}))
    assert not chaos.agree({"equal": False, "error": "no store"}, Counter({"big0": 2}))


def test_a_request_that_reached_the_provider_must_have_been_counted() -> None:
    unlogged = [{"key": "big0"}, {"key": "big0"}]

    def missing(used: int) -> list[tuple[str, int]]:
        rows = [{"budget": "calls", "account": "big0", "provider": 5, "used": used}]
        return chaos.uncounted({"exchanges": {UNLOGGED: unlogged}, "accounts": rows})

    assert missing(7) == []
    assert missing(6) == [("big0", 1)]


@pytest.mark.slow
def test_who_has_an_answer_was_charged_though_the_worker_died_at_once(tmp_path: Path) -> None:
    provider = Provider(tmp_path)
    charged = []
    try:
        for number in range(6):
            gateway = Gateway(tmp_path, provider.port, budgets=PER_USER.format(limit=10**9))
            answer = ask(gateway.port, spoken(f"kill-{number}", stub="events=30000;usage=never"))
            gateway.child.kill()
            gateway.child.wait(20)
            assert answer.whole
            again = Process("fastgw", "serve", "--config", str(gateway.config), log=gateway.log)
            again.wait_for(gateway.admin_port)
            charged.append(gateway.used("alice"))
            again.stop()
    finally:
        provider.stop()
    assert min(charged) > 30000
