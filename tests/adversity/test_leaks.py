"""A thousand clients that vanish, at every point of an exchange, leave nothing behind."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.adversity import leaks
from tests.adversity.conftest import BUDGET, Bench, spoken

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REQUESTS = 1000


@pytest.fixture
def capped(tmp_path: Path) -> Iterator[Bench]:
    """With budgets that hold."""
    bench = Bench(tmp_path, BUDGET + leaks.CAPS)
    yield bench
    bench.close()


@pytest.mark.slow
def test_clients_that_vanish_leave_nothing(capped: Bench) -> None:
    bench = capped
    report = leaks.run(bench, REQUESTS, seed=7)
    assert report["tasks"][1] <= report["tasks"][0]
    assert report["left_behind"] == {}
    assert set(report["phases"]) == set(leaks.PHASES)
    before, after = report["files"]
    # idle connections to the provider may be more or fewer
    idle = sum(pool["idle"] for pool in bench.gateway.api("/api/status")["upstreams"].values())
    assert after <= before + idle, report
    assert bench.gateway.used("alice") > 0


def test_what_is_held_is_told(bench: Bench) -> None:
    with socket.create_connection(("127.0.0.1", bench.gateway.port)) as client:
        client.sendall(spoken(bench.name("held"), stub="first=30"))
        while not leaks.left_behind(bench, 0.0).get("stub busy"):
            pass
        held = leaks.left_behind(bench, 0.0)
    assert held == {"connections": 1, "exchanges": 1, "stub busy": 1}
    assert leaks.left_behind(bench) == {}
