"""The benchmark runs: counts only. Figures are had by `make bench`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from bench import report, run
from bench.install import Missing
from bench.measure import run_workload, verify
from bench.processes import Cores
from bench.targets import Place, Target, TargetFailed, fill, make_keys
from bench.tools import LoadFailed, Tools, run_load
from bench.workloads import WORKLOADS
from tests.processes import ROOT, Provider

if TYPE_CHECKING:
    from pathlib import Path


def test_a_quick_run(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    made = subprocess.run(
        [
            *(sys.executable, "-m", "bench.run", "--quick", "--seconds", "0.3", "--only", "w1,w3"),
            *("--targets", "direct,nginx,fastgw", "--output", str(output)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    results = report.read(output)
    assert [each["name"] for each in results["workloads"]] == ["w1", "w3"]
    for workload in results["workloads"]:
        rows = {row["target"]: row for row in workload["rows"]}
        assert {"direct", "fastgw"} <= set(rows)
        assert set(rows) | set(workload["skipped"]) == {"direct", "nginx", "fastgw"}
        for row in rows.values():
            (measured,) = row["rounds"]
            assert measured["errors"] == 0
            assert measured[workload["unit"]] > 0
            if workload["name"] == "w3":
                assert measured["requests"] == 1000
                assert measured["events"] >= 15_000
        assert rows["fastgw"]["rounds"][0]["cpu"] > 0
        assert rows["fastgw"]["rss_start"] > 10
    for name in ("w1", "w3"):
        assert f"### {name}: " in made.stdout


@pytest.mark.parametrize("arguments", [["--only", "w1,w99"], ["--targets", "fastgw,apache"]])
def test_names_that_do_not_exist_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run.parse(arguments)
    assert "is none of" in capsys.readouterr().err


def test_quick_is_one_round_of_a_second_at_most() -> None:
    options = run.parse(["--quick"])
    assert (options.rounds, options.seconds) == (1, 1.0)
    assert run.parse(["--quick", "--seconds", "0.3"]).seconds == 0.3
    assert run.parse([]).rounds == 3


def test_workloads_have_names_of_their_own() -> None:
    names = [workload.name for workload in WORKLOADS]
    assert len(set(names)) == len(names)
    assert {workload.group for workload in WORKLOADS} == {f"w{number}" for number in range(1, 9)}


def test_a_paced_stream_lasts_as_long_as_a_measurement() -> None:
    (w3,) = [workload for workload in WORKLOADS if workload.name == "w3"]
    assert w3.stub(3.0) == "events=150;pace=0.02"
    assert [workload.stub(3.0) for workload in WORKLOADS if workload.name == "w1"] == ["pad=240"]


def place(folder: Path, provider: Provider) -> Place:
    return Place(folder, provider.port, provider.child.pid, 0, make_keys(2), Cores.of({0}))


def test_a_target_that_lets_a_wrong_key_pass_is_not_measured(tmp_path: Path) -> None:
    provider = Provider(tmp_path)
    try:
        open_door = Target("nginx", provider.port, provider.child.pid, "/v1/chat/completions")
        with pytest.raises(TargetFailed, match="the wrong key got 200"):
            verify(open_door, place(tmp_path, provider))
        verify(replace(open_door, name="direct"), place(tmp_path, provider))
    finally:
        provider.stop()


def test_a_target_that_has_no_answer_is_not_measured(tmp_path: Path) -> None:
    provider = Provider(tmp_path)
    try:
        lost = Target("direct", provider.port, provider.child.pid, "/nowhere")
        with pytest.raises(TargetFailed, match="the right key got 404"):
            verify(lost, place(tmp_path, provider))
    finally:
        provider.stop()


def test_what_is_not_there_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(name: str, _: Place) -> Target:
        raise Missing(f"install {name}")

    monkeypatch.setattr("bench.targets.start", start)
    said: list[str] = []
    (w1,) = [workload for workload in WORKLOADS if workload.name == "w1"]
    made = run_workload(w1, ["envoy"], Tools.find(), Cores.of({0}), 1, 0.1, said.append)
    assert made["rows"] == []
    assert made["skipped"] == {"envoy": "not there: install envoy"}
    assert said == ["  envoy not there: install envoy"]


def test_a_configuration_is_filled_in(tmp_path: Path) -> None:
    given = Place(tmp_path, 1111, 0, 2222, make_keys(3), Cores.of({0}))
    for name in ("nginx.conf", "nginx-lua.conf", "haproxy.cfg", "envoy.yaml", "litellm.yaml"):
        text = fill(name, given, 3333).read_text()
        assert "1111" in text
        assert "@PROVIDER@" not in text
    with pytest.raises(KeyError):
        fill("fastgw.toml", given, 3333)


def test_a_load_that_says_nothing_of_use_is_an_error() -> None:
    with pytest.raises(LoadFailed, match="status 3: no such thing"):
        run_load([sys.executable, "-c", "print('no such thing'); raise SystemExit(3)"], 1.0)
