"""Two processes with one store: one budget, to the token; and what happens while it is away."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.processes import ALICE, BOB, PER_USER, TOKEN, chat, request, settled

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway, Provider
    from tests.redis_server import RedisServer


def reported(provider: Provider) -> int:
    """Tokens that the provider says it served."""
    return sum(entry["prompt"] + entry["completion"] for entry in provider.entries())


@pytest.fixture(params=["redis", "sqlite"])
def pair(
    request: pytest.FixtureRequest,
    start: StartGateway,
    redis_url: str,
    redis_prefix: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Gateway, Gateway]:
    """Two gateways on different ports with one store."""
    if request.param == "redis":
        store, more = redis_url, f'prefix = "{redis_prefix}"'
    else:
        store, more = f"sqlite:{tmp_path_factory.mktemp('shared')}/budgets.db", ""
    more += "\nmax_staleness = 0"
    budgets = PER_USER.format(limit=1000)
    return (
        start(store=store, store_more=more, budgets=budgets),
        start(store=store, store_more=more, budgets=budgets),
    )


def test_two_gateways_share_a_budget_exactly(
    pair: tuple[Gateway, Gateway], provider: Provider
) -> None:
    answers = []
    for number in range(60):
        stub = f"prompt={number % 7};events={number % 5 + 1}"
        answers.append(chat(pair[number % 2], ALICE, stub=stub, stream=number % 3 == 0)[0])
        settled(pair[number % 2])
    served = answers.count(200)
    assert answers == [200] * served + [429] * (60 - served) or served == 60
    assert pair[0].used("alice") == pair[1].used("alice") == reported(provider)
    # now use it up
    while chat(pair[0], ALICE, stub="prompt=100")[0] == 200:
        settled(pair[0])
    assert chat(pair[0], ALICE)[0] == 429
    assert chat(pair[1], ALICE)[0] == 429
    assert chat(pair[1], BOB)[0] == 200
    settled(pair[1])
    total = pair[0].used("alice") + pair[0].used("bob")
    assert total == reported(provider)
    assert 1000 <= pair[0].used("alice") < 1000 + 109


def test_two_gateways_at_once_lose_nothing(
    pair: tuple[Gateway, Gateway], provider: Provider
) -> None:
    with ThreadPoolExecutor(24) as pool:
        list(
            pool.map(
                lambda number: chat(
                    pair[number % 2], (ALICE, BOB)[number % 3 % 2], stub="prompt=1;events=1"
                ),
                range(400),
            )
        )
    for gateway in pair:
        settled(gateway)
    assert len(provider.entries()) == 400
    for gateway in pair:
        assert gateway.used("alice") + gateway.used("bob") == reported(provider) == 800


def test_a_killed_gateway_keeps_what_it_settled(
    start: StartGateway, redis_url: str, redis_prefix: str
) -> None:
    more = f'prefix = "{redis_prefix}"'
    first = start(store=redis_url, store_more=more)
    for _ in range(3):
        assert chat(first, ALICE)[0] == 200
    assert first.used("alice") == 57
    first.child.kill()
    first.child.wait(20)
    second = start(store=redis_url, store_more=more)
    assert [chat(second, ALICE)[0] for _ in range(4)] == [200] * 3 + [429]
    assert second.used("alice") == 114


def wait_until(condition: object, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


def up(gateway: Gateway) -> bool:
    return bool(gateway.api("/api/status")["store"]["up"])


@pytest.mark.parametrize("how", ["kill", "freeze"])
def test_store_away_local_goes_on_and_settles_later(
    redis_server: RedisServer, start: StartGateway, how: str
) -> None:
    gateway = start(
        store=redis_server.url, store_more='timeout = "200ms"', budgets=PER_USER.format(limit=200)
    )
    assert chat(gateway, ALICE)[0] == 200
    settled(gateway)
    if how == "kill":
        redis_server.kill()
    else:
        redis_server.freeze()
    # it goes on with what it knows: 200 tokens are ten requests and a bit
    answers = [chat(gateway, ALICE)[0] for _ in range(14)]
    assert answers == [200] * 10 + [429] * 4
    wait_until(lambda: not up(gateway), "the store is noticed to be away")
    assert gateway.api("/api/status")["store"]["debits_pending"] == 1
    assert request(gateway.admin_port, "GET", "/healthz/ready")[0] == 200
    assert "fastgw_store_up 0.0" in gateway.metrics()
    if how == "kill":
        redis_server.start()  # empty: what it had acknowledged comes back with what we owe
    else:
        redis_server.thaw()
    wait_until(lambda: up(gateway), "the store is back")
    settled(gateway)
    assert gateway.used("alice") == 209
    assert "hunter2" not in gateway.log.read_text()


def test_store_away_closed_is_503(redis_server: RedisServer, start: StartGateway) -> None:
    gateway = start(store=redis_server.url, store_more='timeout = "200ms"\non_failure = "closed"')
    assert chat(gateway, ALICE)[0] == 200
    redis_server.kill()
    wait_until(lambda: chat(gateway, ALICE)[0] == 503, "503")
    status, headers, body = chat(gateway, ALICE)
    assert status == 503
    assert b"store_unavailable" in body
    assert int(headers["retry-after"]) > 0
    assert request(gateway.admin_port, "GET", "/healthz/ready")[0] == 503
    redis_server.start()
    wait_until(lambda: chat(gateway, ALICE)[0] == 200, "200 again")


def ready(gateway: Gateway) -> int:
    return request(gateway.admin_port, "GET", "/healthz/ready")[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_that_nobody_calls_is_watched(
    redis_server: RedisServer, start: StartGateway, workers: int
) -> None:
    """No request comes at all."""
    redis_server.kill()
    more = 'timeout = "200ms"\non_failure = "closed"'
    gateway = start(
        store=redis_server.url, store_more=more, server=f"workers = {workers}" * (workers > 1)
    )
    for _ in range(2):
        wait_until(lambda: ready(gateway) == 503, "the store is noticed to be away")
        wait_until(lambda: not up(gateway), "the status says so")
        text = gateway.metrics()
        assert "fastgw_store_up 0.0" in text
        assert "fastgw_store_failures_total 0.0" not in text
        assert chat(gateway, ALICE)[0] == 503
        for path in ("/api/budgets", "/api/usage"):
            token = {"Authorization": f"Bearer {TOKEN}"}
            status, headers, body = request(gateway.admin_port, "GET", path, headers=token)
            assert status == 503
            assert int(headers["retry-after"]) > 0
            assert b"store_unavailable" in body
        redis_server.start()
        wait_until(lambda: ready(gateway) == 200, "the store is noticed to be back")
        wait_until(lambda: up(gateway), "the status says so")
        assert "fastgw_store_up 1.0" in gateway.metrics()
        assert isinstance(gateway.api("/api/budgets"), list)
        redis_server.kill()
    redis_server.start()


def test_store_away_open_admits_all_and_owes(
    redis_server: RedisServer, start: StartGateway
) -> None:
    gateway = start(
        store=redis_server.url,
        store_more='timeout = "200ms"\non_failure = "open"',
        budgets=PER_USER.format(limit=50),
    )
    redis_server.kill()
    wait_until(lambda: chat(gateway, BOB)[0] == 200 and not up(gateway), "noticed")
    assert [chat(gateway, ALICE)[0] for _ in range(6)] == [200] * 6
    redis_server.start()
    wait_until(lambda: up(gateway), "the store is back")
    assert gateway.used("alice") == 6 * 19
    assert chat(gateway, ALICE)[0] == 429


def test_a_start_without_the_store_goes_on_as_configured(
    redis_server: RedisServer, start: StartGateway
) -> None:
    redis_server.kill()
    gateway = start(store=redis_server.url, store_more='timeout = "200ms"')
    assert chat(gateway, ALICE)[0] == 200
    redis_server.start()
    wait_until(lambda: up(gateway), "the store is back")
    assert gateway.used("alice") == 19
    assert "store away at start" in gateway.log.read_text()


def test_a_stop_with_the_store_away_says_what_is_owed(
    redis_server: RedisServer, start: StartGateway
) -> None:
    gateway = start(store=redis_server.url, store_more='timeout = "200ms"')
    assert chat(gateway, ALICE)[0] == 200
    settled(gateway)
    redis_server.kill()
    assert chat(gateway, ALICE)[0] == 200
    assert gateway.stop() == 1
    assert "accounts unsettled" in gateway.log.read_text()
