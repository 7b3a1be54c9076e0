"""What a client might do to pay less than it had, or to make others pay."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.processes import ALICE, BOB, PER_USER, chat, request, settled

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway, Provider

CHAT = "/openai/chat/completions"
PRICED = """
[[budgets]]
name = "dollars"
unit = "usd"
per = ["user_id"]
limit = 1.0
{more}
"""
FEE = """
[[prices]]
model = "*"
input = 1.0
output = 1.0
request = 0.01
"""


def stream(gateway: Gateway, body: bytes, behaviour: str, key: str = ALICE) -> socket.socket:
    """Begin a stream; the caller leaves when it likes."""
    client = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {key}\r\n"
    head += f"x-stub: {behaviour}\r\nContent-Length: {len(body)}\r\n\r\n"
    client.sendall(head.encode() + body)
    assert b" 200 " in client.recv(65536)
    return client


def nested(depth: int) -> bytes:
    """A request whose tools are nested so deep that the message cannot be written again."""
    schema = b'{"a":' * depth + b"1" + b"}" * depth
    return (
        b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}],'
        b'"tools":[{"type":"function","function":{"name":"f","parameters":%b}}]}' % schema
    )


@pytest.mark.parametrize("depth", [10, 250, 1015])
def test_tools_nested_deep_are_paid_for_by_who_leaves(
    start: StartGateway, provider: Provider, depth: int
) -> None:
    gateway = start(budgets=PER_USER.format(limit=100))
    with stream(gateway, nested(depth), "events=1000;pace=0.01"):
        time.sleep(0.5)
    settled(gateway)
    assert gateway.used("alice") > 10
    deadline = time.monotonic() + 10
    while not (entries := gateway.access_log()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (entries[-1]["reason"], entries[-1]["usage_source"]) == (
        "client_disconnected",
        "counted",
    )
    assert entries[-1]["output_tokens"] > 5


def test_a_fee_for_each_request_is_none_for_one_that_failed(start: StartGateway) -> None:
    gateway = start(budgets=PRICED.format(more='admission = "reserve"'), more=FEE)
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    headers = {"Authorization": f"Bearer {ALICE}", "x-stub": "fault=status:500"}
    for _ in range(3):
        assert request(gateway.port, "POST", CHAT, body, headers)[0] == 500
    assert chat(gateway, BOB)[0] == 200
    deadline = time.monotonic() + 10
    while not gateway.used("bob", "dollars"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert gateway.used("alice", "dollars") == 0


def test_who_leaves_a_stream_that_a_budget_cuts_gets_no_more_of_it(start: StartGateway) -> None:
    budget = PER_USER.format(limit=100).rstrip() + '\ncutoff = "mid_stream"\n'
    gateway = start(budgets=budget, upstream='on_disconnect = "drain"')
    body = orjson.dumps(
        {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    )
    with stream(gateway, body, "events=400;pace=0.005"):
        pass
    deadline = time.monotonic() + 20
    while not (entries := gateway.access_log()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert entries[-1]["reason"] == "client_disconnected"
    used = entries[-1]["input_tokens"] + entries[-1]["output_tokens"]
    assert 100 <= used <= 130


def test_a_stream_ends_by_the_prices_under_which_it_began(start: StartGateway) -> None:
    gateway = start(budgets=PRICED.format(more=""), more=FEE)
    body = orjson.dumps(
        {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    )
    with stream(gateway, body, "events=100;pace=0.02") as client:
        text = gateway.config.read_text()
        gateway.config.write_text(text.replace("request = 0.01", "request = 100.0"))
        os.kill(gateway.child.pid, signal.SIGHUP)
        while part := client.recv(65536):
            if part.endswith(b"0\r\n\r\n"):
                break
    entries = gateway.access_log()
    deadline = time.monotonic() + 10
    while not entries:
        assert time.monotonic() < deadline
        entries = gateway.access_log()
    assert 0.01 < entries[-1]["cost_usd"] < 0.02
    assert gateway.used("alice", "dollars") < 20_000_000


def test_headers_that_differ_far_behind_are_two_accounts(start: StartGateway) -> None:
    per = '[[budgets]]\nname = "by-token"\nper = [\'request.headers["x-user"]\']\nlimit = 20\n'
    gateway = start(budgets=per)
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})

    def ask(user: str) -> int:
        headers = {"Authorization": f"Bearer {ALICE}", "x-user": user}
        return request(gateway.port, "POST", CHAT, body, headers)[0]

    long = "e" * 600
    statuses = [ask(f"{long}a") for _ in range(3)]
    assert statuses[-1] == 429
    assert ask(f"{long}b") == 200
