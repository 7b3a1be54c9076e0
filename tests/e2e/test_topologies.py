"""Whole gateways over Sentinel and over a cluster, while a master dies: no debit is lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from tests.processes import ALICE, BOB, chat, settled
from tests.redis_server import caught_up, until

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway, Provider
    from tests.redis_server import RedisCluster, SentinelPair

NAMES = [f"budget-{number}" for number in range(8)]
BUDGETS = "".join(
    f'[[budgets]]\nname = "{name}"\nper = ["user_id"]\nlimit = 1_000_000\n' for name in NAMES
)
"""Sixteen accounts, in ten of the groups of a cluster and on each master of three."""


def reported(provider: Provider) -> int:
    """Tokens that the provider says it served."""
    return sum(entry["prompt"] + entry["completion"] for entry in provider.entries())


def serve(gateways: list[Gateway], requests: int) -> None:
    """So many requests at once, all served."""
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(
            lambda number: chat(gateways[number % len(gateways)], (ALICE, BOB)[number // 2 % 2])[0],
            range(requests),
        )
        assert list(answers) == [200] * requests


def up(gateway: Gateway) -> bool:
    return bool(gateway.api("/api/status")["store"]["up"])


def exact(gateways: list[Gateway], provider: Provider) -> None:
    """Each gateway reports, for each budget, what the provider says."""
    for gateway in gateways:
        until(partial(up, gateway), "the store to be back")
        settled(gateway)
    for gateway in gateways:
        for name in NAMES:
            total = gateway.used("alice", name) + gateway.used("bob", name)
            assert total == reported(provider)
        assert "hunter2" not in gateway.log.read_text()


def test_a_failover_by_sentinel(
    redis_pair: SentinelPair, start: StartGateway, provider: Provider
) -> None:
    gateways = [start(store=redis_pair.url(), budgets=BUDGETS) for _ in range(2)]
    serve(gateways, 60)
    exact(gateways, provider)
    redis_pair.replicated()
    redis_pair.master.kill()
    serve(gateways, 60)
    exact(gateways, provider)
    assert redis_pair.sentinel.named() == redis_pair.replica.port


def test_a_failover_in_a_cluster(
    redis_replicated: RedisCluster, start: StartGateway, provider: Provider
) -> None:
    gateways = [start(store=redis_replicated.url, budgets=BUDGETS) for _ in range(2)]
    serve(gateways, 60)
    exact(gateways, provider)
    for node in redis_replicated.masters:
        assert node.ask("DBSIZE") > 0
    caught_up(redis_replicated.masters[2], redis_replicated.replicas[2])
    redis_replicated.masters[2].kill()
    serve(gateways, 60)
    exact(gateways, provider)
    assert redis_replicated.replicas[2].ask("ROLE")[0] == "master"
