"""Fixtures of all tests: a real Redis."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import pytest

from tests.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A server that tests share: use `redis_prefix`, never flush."""
    if url := os.environ.get("FASTGW_TEST_REDIS_URL"):
        yield url
        return
    server = RedisServer()
    yield server.url
    server.kill()


@pytest.fixture
def redis_prefix() -> str:
    """A prefix of keys that no other test has."""
    return f"test-{secrets.token_hex(6)}"


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server of this test's own, to be killed and frozen."""
    server = RedisServer(password="hunter2-secret")
    yield server
    server.thaw()
    server.kill()
