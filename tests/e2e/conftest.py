"""Processes that end-to-end tests share: one stub provider, gateways on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.processes import Gateway, Provider

if TYPE_CHECKING:
    from pathlib import Path

StartGateway = Callable[..., Gateway]


@pytest.fixture(scope="session")
def stub_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    provider = Provider(tmp_path_factory.mktemp("provider"))
    yield provider
    provider.stop()


@pytest.fixture
def provider(stub_process: Provider) -> Provider:
    """The stub provider with an empty log."""
    stub_process.forget()
    return stub_process


@pytest.fixture
def start(tmp_path: Path, provider: Provider) -> Iterator[StartGateway]:
    """Starts gateways before the provider; each is ended, and must end well."""
    running: list[Gateway] = []

    def begin(**options: Any) -> Gateway:
        gateway = Gateway(tmp_path, options.pop("provider_port", provider.port), **options)
        running.append(gateway)
        return gateway

    yield begin
    for gateway in running:
        if gateway.child.poll() is None:
            assert gateway.stop() == 0, gateway.log.read_text()
        assert "Traceback" not in gateway.log.read_text(), gateway.log.read_text()


@pytest.fixture
def gateway(start: StartGateway) -> Gateway:
    return start()
