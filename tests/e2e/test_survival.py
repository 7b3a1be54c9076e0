"""What the numbers survive: killed workers, a store that forgets, long answers in mid-air."""

from __future__ import annotations

import contextlib
import http.client
import signal
import threading
import time
from typing import TYPE_CHECKING

import pytest
import redis

from tests.processes import ALICE, PER_USER, chat, request, settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway
    from tests.redis_server import RedisServer

PLENTY = PER_USER.format(limit=10**9)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shown(gateway: Gateway) -> int:
    """Used of alice at this moment, whatever runs."""
    rows = gateway.api("/api/budgets")
    return next((int(row["used"]) for row in rows if "alice" in row["account"].values()), 0)


def stream(gateway: Gateway) -> threading.Thread:
    """A long answer, read in the background: 4 seconds, 2,000 events."""

    def read() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # it may be cut
            chat(gateway, ALICE, stream=True, stub="events=2000;pace=0.002;prompt=10")

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_a_store_that_forgot_everything_gets_it_back(
    redis_server: RedisServer, start: StartGateway
) -> None:
    gateway = start(store=redis_server.url, budgets=PLENTY)
    for _ in range(5):
        assert chat(gateway, ALICE)[0] == 200
    assert gateway.used("alice") == 5 * 19
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        assert chat(gateway, ALICE)[0] == 200
        assert gateway.used("alice") == 6 * 19
        client.script_flush()
        assert chat(gateway, ALICE)[0] == 200
        assert gateway.used("alice") == 7 * 19
    assert "fastgw_store_losses_total 1" in gateway.metrics()
    assert "the store has lost data: 1 account(s)" in gateway.log.read_text()


def test_what_several_hosts_knew_comes_back_within_the_stated_bound(
    redis_server: RedisServer, start: StartGateway
) -> None:
    hosts = [start(store=redis_server.url, budgets=PLENTY) for _ in range(2)]
    for _ in range(5):
        for host in hosts:
            assert chat(host, ALICE)[0] == 200
    before = hosts[0].used("alice")
    assert before == 10 * 19
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    for host in hosts:
        assert chat(host, ALICE)[0] == 200
    for host in hosts:
        settled(host)
    # Each host puts back what it knew and adds its own. Host 0 saw host 1's debits up to its own
    # last answer, so at most one debit of the other is missing.
    after = hosts[0].used("alice")
    assert before + 38 - 19 <= after <= before + 38


def test_a_long_answer_eats_the_budget_while_it_is_written(
    redis_server: RedisServer, start: StartGateway
) -> None:
    one, two = (start(store=redis_server.url, budgets=PLENTY) for _ in range(2))
    reading = stream(one)
    until(lambda: shown(two) > 300)  # another host sees it
    reading.join()
    assert one.used("alice") == 2010  # and at the end it is what the provider said
    assert two.used("alice") == 2010


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_kill_9_in_the_middle_of_an_answer_loses_nothing_that_was_counted(
    redis_server: RedisServer, start: StartGateway, store: str
) -> None:
    more = {"store": redis_server.url} if store == "redis" else {}
    gateway = start(budgets=PLENTY, **more)
    assert chat(gateway, ALICE)[0] == 200
    reading = stream(gateway)
    until(lambda: shown(gateway) > 300)
    gateway.stop(signal.SIGKILL)
    reading.join()
    options = {"store": redis_server.url if store == "redis" else ""}
    if store == "sqlite":
        options["store"] = f"sqlite:{gateway.folder}/budgets-{gateway.port}.db"
    again = start(budgets=PLENTY, **options)
    used = again.used("alice")
    assert 300 < used < 2010 + 19
    assert chat(again, ALICE)[0] == 200
    assert again.used("alice") == used + 19


def test_debits_made_while_the_store_is_away_survive_kill_9(
    redis_server: RedisServer, start: StartGateway
) -> None:
    gateway = start(store=redis_server.url, budgets=PLENTY)
    assert chat(gateway, ALICE)[0] == 200
    settled(gateway)
    redis_server.kill()
    for _ in range(4):
        assert chat(gateway, ALICE)[0] == 200
    gateway.stop(signal.SIGKILL)
    redis_server.start()  # empty
    again = start(store=redis_server.url, budgets=PLENTY)
    # The journal holds the four that were owed, and what `used` was.
    assert again.used("alice") == 5 * 19


def test_a_stop_with_the_store_away_leaves_the_debts_to_the_next_start(
    redis_server: RedisServer, start: StartGateway
) -> None:
    gateway = start(store=redis_server.url, budgets=PLENTY)
    assert chat(gateway, ALICE)[0] == 200
    settled(gateway)
    redis_server.kill()
    assert chat(gateway, ALICE)[0] == 200
    assert gateway.stop() == 1
    assert "the journal keeps them" in gateway.log.read_text()
    redis_server.start()
    again = start(store=redis_server.url, budgets=PLENTY)
    assert again.used("alice") == 2 * 19
    assert "account(s) of a process that died" in again.log.read_text()


def test_a_journal_that_was_asked_for_must_be_there(start: StartGateway, tmp_path: object) -> None:
    with pytest.raises(AssertionError, match="the journal cannot be kept"):
        start(store_more='journal = "/dev/null/x"')
    gateway = start(store_more='journal = ""')
    assert chat(gateway, ALICE)[0] == 200
    assert gateway.api("/api/status")["store"]["journal"] is False
    assert "fastgw_journal_up 0" in gateway.metrics()
    assert request(gateway.port, "GET", "/nowhere")[0] in (401, 404)
