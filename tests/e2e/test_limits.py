"""Bounds of one process: connections, slow and large bodies; browsers; what a key may ask."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.processes import ALICE, BOB, PER_USER, chat, request, settled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway, Provider

HEAD = (
    "POST /openai HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n"
    "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
)


def connect(gateway: Gateway) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), timeout=30)


def sampled(gateway: Gateway, name: str) -> float:
    for line in gateway.metrics().splitlines():
        if line.startswith(f"fastgw_{name} "):
            return float(line.split()[1])
    raise AssertionError(name)


def test_idle_connections_keep_nobody_out(start: StartGateway) -> None:
    gateway = start(server="max_connections = 5")
    idle = [connect(gateway) for _ in range(5)]
    deadline = time.monotonic() + 20
    served = 0
    while served < 3 and time.monotonic() < deadline:
        # Within their first second or two the five are not given up: they have only just come.
        with contextlib.suppress(OSError):
            served += chat(gateway, ALICE)[0] == 200
    assert served == 3
    assert sampled(gateway, "downstream_connections") <= 5
    for each in idle:
        each.close()


def test_busy_connections_are_not_given_up(start: StartGateway) -> None:
    gateway = start(server="max_connections = 2")
    body = orjson.dumps({"model": "stub;first=3", "messages": []})
    busy = [connect(gateway) for _ in range(2)]
    for each in busy:
        each.sendall(HEAD.format(key=BOB, length=len(body)).encode() + body)
    time.sleep(2.2)  # two sweeps: they would be given up now
    with connect(gateway) as late, contextlib.suppress(OSError):
        late.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert late.recv(100) == b""
    for each in busy:
        assert each.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        each.close()
    assert sampled(gateway, "downstream_connections_refused_total") >= 1


def test_a_body_that_trickles_is_no_upload(start: StartGateway, provider: Provider) -> None:
    gateway = start(server='body_timeout = "1s"')
    with connect(gateway) as client:
        client.sendall(HEAD.format(key=ALICE, length=5000).encode())
        client.settimeout(0.2)
        answer = b""
        for _ in range(100):
            client.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = client.recv(1000)
                break
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer
    assert not provider.entries()


def test_bodies_in_memory_are_bounded_all_together(start: StartGateway) -> None:
    gateway = start(server='max_body_memory = "1MiB"', budgets=PER_USER.format(limit=10**9))
    body = orjson.dumps({"messages": [{"role": "user", "content": "x" * 700_000}]})
    with connect(gateway) as first, connect(gateway) as second:
        first.sendall(HEAD.format(key=ALICE, length=len(body)).encode() + body[:-10])
        deadline = time.monotonic() + 20
        while gateway.api("/api/status")["body_memory"] < 500_000:
            assert time.monotonic() < deadline
        second.sendall(HEAD.format(key=BOB, length=len(body)).encode())
        with contextlib.suppress(OSError):
            second.sendall(body)
        assert second.recv(1000).startswith(b"HTTP/1.1 503 ")
        first.sendall(body[-10:])
        assert first.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    assert chat(gateway, BOB, messages=[{"role": "user", "content": "x" * 700_000}])[0] == 200
    assert gateway.api("/api/status")["body_memory"] == 0


def test_browsers(start: StartGateway, provider: Provider) -> None:
    gateway = start(server='cors_origins = ["https://app.example.org"]')
    asked = {
        "Origin": "https://app.example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    status, headers, body = request(gateway.port, "OPTIONS", "/openai", headers=asked)
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-origin"] == "https://app.example.org"
    assert "content-length" not in headers
    assert not provider.entries()
    for key, expected in ((ALICE, 200), ("sk-wrong-key", 401)):
        status, headers, _ = request(
            gateway.port,
            "POST",
            "/openai",
            b'{"messages": []}',
            {"Authorization": f"Bearer {key}", "Origin": "https://app.example.org"},
        )
        assert status == expected
        assert headers.get_all("access-control-allow-origin") == ["https://app.example.org"]
    status, headers, _ = request(
        gateway.port, "OPTIONS", "/openai", headers=asked | {"Origin": "https://evil.example"}
    )
    assert status == 401
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("workers", [1, 2])
def test_a_key_is_told_of_a_budget_whose_account_its_requests_decide(
    start: StartGateway, tmp_path: Path, workers: int
) -> None:
    """And nothing comes to be by looking."""
    budgets = """
[[budgets]]
name = "per-user-daily"
per = ["user_id", "llm.model"]
limit = 10
[[budgets]]
name = "by-path"
per = ["request.path"]
limit = 1000
[[budgets]]
name = "by-user"
per = ["user_id"]
limit = 1000
"""
    gateway = start(
        store=f"sqlite:{tmp_path}/looked.db",
        budgets=budgets,
        server=f"workers = {workers}" * (workers > 1),
    )

    def told() -> list[Any]:
        shown = {"Authorization": f"Bearer {ALICE}"}
        status, _, body = request(gateway.port, "GET", "/key/info", headers=shown)
        assert status == 200
        budgets = orjson.loads(body)["budgets"]
        return [(each["budget"], each["account"], each.get("remaining")) for each in budgets]

    first = [("per-user-daily", None, None), ("by-path", None, None)]
    assert told() == [*first, ("by-user", ["alice"], 1000)]
    assert gateway.api("/api/budgets") == []
    assert chat(gateway, ALICE)[0] == 200
    settled(gateway)
    time.sleep(0.5)  # what the other worker knows may be so old
    assert chat(gateway, ALICE)[0] == 429
    assert told() == [*first, ("by-user", ["alice"], 981)]
    assert [row["used"] for row in gateway.api("/api/budgets")] == [19, 19, 19]
    assert b"/key/info" not in orjson.dumps(gateway.api("/api/budgets"))


def test_a_key_may_ask_about_itself(start: StartGateway, provider: Provider) -> None:
    gateway = start()
    shown = {"Authorization": f"Bearer {ALICE}"}
    status, headers, body = request(gateway.port, "GET", "/key/info", headers=shown)
    assert status == 200
    assert headers["x-request-id"]
    told = orjson.loads(body)
    (budget,) = told.pop("budgets")
    assert told == {"key": "alice", "expires_at": None, "allowed_models": []}
    assert 0 < budget.pop("reset_seconds") <= 86_400
    assert budget == {
        "budget": "per-user-daily", "account": ["alice"], "unit": "tokens", "limit": 100,
        "used": 0, "held": 0, "remaining": 100,
    }  # fmt: skip
    while chat(gateway, ALICE)[0] == 200:
        pass
    # a used up budget does not keep its owner from seeing it
    status, _, body = request(gateway.port, "GET", "/key/info", headers=shown)
    assert status == 200
    assert orjson.loads(body)["budgets"][0] | {"reset_seconds": 0} == budget | {
        "used": 114, "remaining": 0, "reset_seconds": 0,
    }  # fmt: skip
    assert request(gateway.port, "GET", "/key/info")[0] == 401
    assert request(gateway.port, "GET", "/key/info", headers={"x-api-key": "sk-wrong"})[0] == 401
    assert request(gateway.port, "POST", "/key/info", b"{}", shown)[0] == 404
    assert len(provider.entries()) == 6
