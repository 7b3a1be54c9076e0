"""What a client writes stays what it is: it becomes no line of a log and no member of one."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.processes import ALICE, chat, settled

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway, Provider

FORGED = b'x"}{"time":"2026-11-27T00:00:00Z","key":"bob","status":200,"input_tokens":9000000}{"q":"'
IN_USD = """
[[budgets]]
name = "dollars"
unit = "usd"
per = ["user_id"]
limit = 1.0
"""
WARNS = """
[pricing]
on_unpriced = "warn"
"""


def ask(gateway: Gateway, fields: bytes) -> bytes:
    """A chat completion with these fields as they are, which http.client would not send."""
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    head = (
        b"POST /openai/chat/completions HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer %b\r\n"
        b"Connection: close\r\n%bContent-Length: %d\r\n\r\n"
    ) % (ALICE.encode(), fields, len(body))
    answer = b""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(head + body)
        while data := client.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    return answer.partition(b"\r\n\r\n")[0]


@pytest.mark.parametrize("field", [b"X-Request-Id", b"Request-Id"])
@pytest.mark.parametrize("bad", [b'"', b"\\", b'a","key":"bob","z":"', FORGED])
def test_an_id_that_would_break_a_line_is_replaced(
    gateway: Gateway, provider: Provider, field: bytes, bad: bytes
) -> None:
    ours = []
    for number, sent in enumerate((bad, b"good-1", bad)):
        head = ask(gateway, field + b": " + sent + b"\r\n")
        assert bad not in head
        ours.append(head.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode())
        assert bad not in provider.last().partition(b"\r\n\r\n")[0]
        assert (ours[-1] == "good-1") == (number == 1)
    entries = gateway.access_log()
    assert [each["request_id"] for each in entries] == ours
    assert {(each["key"], each["status"]) for each in entries} == {("alice", 200)}
    assert len(set(ours)) == 3


def test_a_model_makes_no_line_of_the_log(start: StartGateway) -> None:
    gateway = start(budgets=IN_USD, more=WARNS)
    names = ["x\n2026-11-27 00:00:00,000 ERROR fastgw: forged", "\x1b[31mred", 'q","key":"bob']
    for name in names:
        assert chat(gateway, ALICE, "/openai/chat/completions", model=name)[0] == 200
    settled(gateway)
    entries = gateway.access_log()
    assert [each["gen_ai.request.model"] for each in entries] == names
    assert {each["key"] for each in entries} == {"alice"}
    log = gateway.log.read_bytes()
    assert log.count(b"has no price") == len(names)
    assert b"\n2026-11-27 00:00:00,000" not in log
    assert b"\x1b" not in log
    assert orjson.dumps(names[0])[1:-1] in log
