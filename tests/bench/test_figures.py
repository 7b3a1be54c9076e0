"""Medians, ratios, tables and aims, of the results of a real run and of changes made to them."""

from __future__ import annotations

import copy
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bench import figures, plots, report

RESULTS = Path(__file__).with_name("results.json")


@pytest.fixture
def results() -> dict[str, Any]:
    return copy.deepcopy(report.read(RESULTS))


def rounds(results: dict[str, Any], workload: str, target: str) -> list[dict[str, Any]]:
    for each in results["workloads"]:
        for row in each["rows"]:
            if (each["name"], row["target"]) == (workload, target):
                found: list[dict[str, Any]] = row["rounds"]
                return found
    raise AssertionError(f"no {workload}, {target}")


def test_figures_are_medians_of_the_rounds(results: dict[str, Any]) -> None:
    fastgw = rounds(results, "w1", "fastgw")
    found = figures.all_of(results)["w1"]["fastgw"]
    assert found.cpu_us == median(each["cpu"] / each["requests"] * 1e6 for each in fastgw)
    assert found.rate == median(each["requests"] / each["seconds"] for each in fastgw)
    assert found.p50 == median(each["latency_p50"] for each in fastgw)
    assert found.rss_peak == max(each["rss_peak"] for each in fastgw)


def test_a_ratio_is_of_one_round(results: dict[str, Any]) -> None:
    """A machine that is slower in one round, for all, changes no ratio."""
    before = figures.all_of(results)["w1"]
    for target in before:
        rounds(results, "w1", target)[1]["cpu"] *= 7
    after = figures.all_of(results)["w1"]
    assert after["fastgw"].ratios["nginx"] == pytest.approx(before["fastgw"].ratios["nginx"])
    assert after["nginx"].ratios["nginx"] == 1
    assert after["direct"].ratios == {}
    assert "direct" not in after["fastgw"].ratios
    inverse = median(
        theirs["cpu"] / theirs["requests"] * mine["requests"] / mine["cpu"]
        for mine, theirs in zip(
            rounds(results, "w1", "fastgw"), rounds(results, "w1", "nginx"), strict=True
        )
    )
    assert after["nginx"].ratios["fastgw"] == pytest.approx(inverse)


@pytest.mark.parametrize(
    ("change", "who"),
    [
        ({"cpu": 0.95, "load_cpu": 0.1}, "itself"),
        ({"cpu": 0.5, "load_cpu": 0.6, "stub_cpu": 0.35}, "load"),
        ({"cpu": 0.5, "load_cpu": 0.5, "other_cpu": 0.3}, "others"),
        ({"cpu": 0.5, "load_cpu": 0.5, "store_cpu": 0.2, "stub_cpu": 0.2}, "load"),
        ({"cpu": 0.2}, "nobody"),
    ],
)
def test_who_limits_the_rate(change: dict[str, float], who: str) -> None:
    idle = {"cpu": 0.0, "load_cpu": 0.0, "stub_cpu": 0.0, "store_cpu": 0.0, "other_cpu": 0.0}
    cpus = {"target": [0], "load": [1], "stub": [1], "pair": [0, 1]}
    assert figures.limit(idle | change | {"seconds": 1.0}, cpus, "fastgw") == who


def test_the_load_has_a_core_to_itself_where_there_are_enough() -> None:
    cpus = {"target": [0], "load": [3], "stub": [2], "pair": [0, 1]}
    result = {"cpu": 0.5, "load_cpu": 0.6, "stub_cpu": 0.6, "store_cpu": 0.0, "other_cpu": 0.0}
    assert figures.limit(result | {"seconds": 1.0}, cpus, "fastgw") == "nobody"
    two = result | {"seconds": 1.0, "cpu": 1.7}
    assert figures.limit(two, cpus, "fastgw-two") == "nobody"
    assert figures.limit(two | {"cpu": 1.9}, cpus, "fastgw-two") == "itself"


def test_what_failed_is_told(results: dict[str, Any]) -> None:
    assert figures.failures(results) == []
    rounds(results, "w1", "fastgw")[2]["errors"] = 3
    results["workloads"][0]["skipped"] = {
        "envoy": "not there: make bench",
        "haproxy": "failed: it does not listen",
    }
    assert figures.failures(results) == [
        "w1, fastgw: 3 requests failed",
        "w1, haproxy failed: it does not listen",
    ]
    assert "FAILED: w1, fastgw: 3 requests failed" in figures.tables(results)


def test_a_table_has_a_row_for_each_target(results: dict[str, Any]) -> None:
    (w1, w4) = results["workloads"]
    cpus = results["options"]["cpus"]
    lines = figures.table(w1, cpus).splitlines()
    names = [row["target"] for row in w1["rows"]]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == names
    assert len({line.count("|") for line in lines}) == 1
    nginx = next(line for line in lines if line.startswith("| nginx |"))
    assert nginx.split(" | ")[2] == "1.00"
    direct = figures.all_of(results)["w4"]["direct"].p50
    added = (figures.all_of(results)["w4"]["fastgw"].p50 - direct) * 1000
    row = next(line for line in figures.table(w4, cpus).splitlines() if "| fastgw |" in line)
    assert f"| {added:.0f} |" in row


def test_the_store_is_told_of_those_that_have_one(results: dict[str, Any]) -> None:
    w1 = results["workloads"][0]
    w1["name"] = "w7"
    redis = rounds(results, "w7", "fastgw-redis")
    for each in redis:
        each |= {"requests": 1000, "store_calls": 40, "store_cpu": 0.002}
    lines = figures.table(w1, results["options"]["cpus"]).splitlines()
    assert next(line for line in lines if "| fastgw-redis |" in line).split(" | ")[7:9] == [
        "25",
        "2.0",
    ]
    assert next(line for line in lines if "| nginx |" in line).split(" | ")[7:9] == ["-", "-"]


def test_aims_tell_what_was_reached(results: dict[str, Any]) -> None:
    found = {aim.title: aim for aim in figures.aims(results)}
    ratio = found["w1: CPU of fastgw, SQLite / nginx"]
    assert ratio.measured == figures.all_of(results)["w1"]["fastgw"].ratios["nginx"]
    assert found["w3: CPU of fastgw / nginx"].measured is None
    assert "w3" not in figures.aims_table(results)
    litellm = found["w1: CPU of LiteLLM / fastgw"]
    assert litellm.met(litellm.bar)
    for target in ("fastgw", "nginx"):
        for one, other in zip(
            rounds(results, "w1", "fastgw"), rounds(results, "w1", target), strict=True
        ):
            one["cpu"] = other["cpu"] / other["requests"] * one["requests"]
    line = next(
        line
        for line in figures.aims_table(results).splitlines()
        if line.startswith("| w1: CPU of fastgw, SQLite / nginx |")
    )
    assert line == "| w1: CPU of fastgw, SQLite / nginx | 1.00 | <= 1.3 | <= 1 | stretch |"


def test_a_machine_that_did_other_work_is_told_of(results: dict[str, Any]) -> None:
    every = [
        each
        for workload in results["workloads"]
        for row in workload["rows"]
        for each in row["rounds"]
    ]
    for busy, provisional in ((0.05, False), (0.2, True)):
        for each in every:
            each["other_cpu"] = busy * each["seconds"]
        assert f"used {busy:.2f} CPUs" in figures.reading(results)
        assert ("provisional" in figures.reading(results)) is provisional


@pytest.mark.parametrize(("cpus", "reached"), [(2, "-"), (4, "yes")])
def test_two_workers_need_cpus_of_their_own(
    results: dict[str, Any], cpus: int, reached: str
) -> None:
    results["machine"]["cpus"] = cpus
    w8 = results["workloads"][0]
    w8["name"] = "w8"
    one = next(row for row in w8["rows"] if row["target"] == "fastgw")
    two = copy.deepcopy(one) | {"target": "fastgw-two"}
    for each in two["rounds"]:
        each["seconds"] /= 2
    w8["rows"].append(two)
    (line,) = [line for line in figures.aims_table(results).splitlines() if "w8: rate" in line]
    assert line.endswith(f"| 2.00 | >= 1.8 | - | {reached} |")


def test_plots_are_of_what_was_measured(results: dict[str, Any]) -> None:
    pictures = plots.draw(results)
    assert set(pictures) == {"w1.svg", "w4.svg"}
    for text in pictures.values():
        assert text.count('class="ours"') == 2
        assert text.count("<svg") == text.count("</svg>") == 1
    nginx = figures.all_of(results)["w1"]["nginx"].cpu_us
    assert f"{1e6 / nginx:,.0f}" in pictures["w1.svg"]


def test_a_picture_escapes_what_it_says() -> None:
    text = plots.bars("a < b", "x & y", [("<one>", 2.0, "2"), ("two", 0.0, "0")], "& below")
    assert "a &lt; b" in text
    assert "&lt;one&gt;" in text
    assert "x &amp; y" in text
    assert "&amp; below" in text
