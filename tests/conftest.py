"""Fixtures of all tests: a real Redis, and vocabularies as they were."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from fastgw.usage import vocabulary
from tests.redis_server import PASSWORD, RedisCluster, RedisServer, SentinelPair, find_servers

if TYPE_CHECKING:
    from collections.abc import Iterator


settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")  # no test asserts a time: this machine may do other work as well

THEIRS = os.environ.get("FASTGW_TEST_REDIS_URL")


@pytest.fixture(
    scope="session", params=[THEIRS] if THEIRS else find_servers() or [""], ids=os.path.basename
)
def redis_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that tests share, of each kind found: use `redis_prefix`, never flush."""
    if THEIRS:
        yield THEIRS
        return
    server = RedisServer(binary=request.param)
    yield server.url
    server.end()


@pytest.fixture(autouse=True)
def vocabularies() -> Iterator[None]:
    """A worker that a test starts here leaves none in memory: how others count depends on it."""
    loaded, wanted = dict(vocabulary._loaded), set(vocabulary._wanted)
    yield
    vocabulary._loaded.clear()
    vocabulary._loaded.update(loaded)
    vocabulary._wanted.clear()
    vocabulary._wanted.update(wanted)


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[RedisCluster]:
    """Three masters that tests share: use `redis_prefix`, never flush, move no slot."""
    cluster = RedisCluster()
    yield cluster
    cluster.end()


@pytest.fixture
def redis_prefix() -> str:
    """A prefix of keys that no other test has."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server of this test's own, to be killed and frozen."""
    server = RedisServer(PASSWORD)
    yield server
    server.thaw()
    server.end()


@pytest.fixture
def redis_pair() -> Iterator[SentinelPair]:
    """A master and a replica of this test's own, under a Sentinel."""
    pair = SentinelPair()
    yield pair
    pair.end()


@pytest.fixture
def redis_replicated() -> Iterator[RedisCluster]:
    """A cluster of this test's own, each master with a replica."""
    cluster = RedisCluster(replicas=True)
    yield cluster
    cluster.end()
