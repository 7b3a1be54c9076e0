"""What the numbers survive: killed workers, a store that forgets, long answers in mid-air."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING

import orjson
import pytest
import redis

from tests.processes import ALICE, PER_USER, chat, request, settled

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway, Provider
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
    settled(hosts[1])  # its last debit may be on its way; the other's are waited for below
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


def leave_after(gateway: Gateway, size: int, stub: str, *, stream: bool = True) -> None:
    """A client that goes away once it has so many bytes; with 0, once the provider is asked."""
    body = orjson.dumps({"model": "gpt-4o", "stream": stream, "messages": []})
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(
            b"POST /openai HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\nx-stub: %b\r\n"
            b"content-length: %d\r\n\r\n%b" % (ALICE.encode(), stub.encode(), len(body), body)
        )
        got = 0
        while got < size:
            got += len(client.recv(4096))
        until(lambda: gateway.api("/api/status")["upstreams"]["stub"]["busy"] == 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_drained_answer_costs_what_the_provider_says(start: StartGateway, stream: bool) -> None:
    gateway = start(budgets=PLENTY, upstream='on_disconnect = "drain"')
    stub = "events=40;pace=0.02;first=1;prompt=11;completion=77"
    leave_after(gateway, 600 if stream else 0, stub, stream=stream)
    until(lambda: gateway.api("/api/status")["drains"] == 1)
    until(lambda: gateway.api("/api/status")["drains"] == 0)
    assert gateway.used("alice") == 88
    (line,) = gateway.access_log()
    assert (line["reason"], line["usage_source"]) == ("client_disconnected", "drained")
    assert (line["input_tokens"], line["output_tokens"]) == (11, 77)
    assert 'fastgw_usage_source_total{source="drained"} 1' in gateway.metrics()


@pytest.mark.parametrize(
    ("bound", "stub"),
    [
        ('drain_timeout = "500ms"', "events=4000;pace=0.02"),
        ("max_drain_bytes = 4096", "events=4000;pace=0.002"),
        ("max_drains = 0", "events=4000;pace=0.02"),
    ],
)
def test_a_drain_has_bounds_and_what_came_is_charged(
    start: StartGateway, provider: Provider, bound: str, stub: str
) -> None:
    gateway = start(budgets=PLENTY, upstream=f'on_disconnect = "drain"\n{bound}')
    leave_after(gateway, 2000, stub)
    until(lambda: gateway.api("/api/status")["exchanges"] == 0)
    until(lambda: gateway.api("/api/status")["drains"] == 0)
    (line,) = gateway.access_log()
    assert (line["reason"], line["usage_source"]) == ("client_disconnected", "counted")
    assert 5 < line["output_tokens"] < 1000
    settled(gateway)
    assert gateway.used("alice") == line["input_tokens"] + line["output_tokens"]
    until(lambda: gateway.api("/api/status")["upstreams"]["stub"]["busy"] == 0)


def test_a_worker_that_ends_stops_its_drains(start: StartGateway) -> None:
    gateway = start(budgets=PLENTY, upstream='on_disconnect = "drain"')
    leave_after(gateway, 2000, "events=4000;pace=0.02")
    until(lambda: gateway.api("/api/status")["drains"] == 1)
    assert gateway.stop() == 0
    again = start(budgets=PLENTY, store=f"sqlite:{gateway.folder}/budgets-{gateway.port}.db")
    assert 10 < again.used("alice") < 1000
