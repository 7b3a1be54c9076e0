"""What could be charged nothing, twice, or to nobody: odd numbers, odd requests, a store away."""

from __future__ import annotations

import http.client
import signal
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson
import pytest
import redis

from tests.processes import ALICE, BOB, PER_USER, chat, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway
    from tests.redis_server import RedisServer

ROOMY = PER_USER.format(limit=10**9)


@contextmanager
def raw_provider(answer: Callable[[bytes, int], bytes | list[bytes]]) -> Iterator[int]:
    """A provider that says `answer(request, number of the connection)`; b"" closes. What is a list
    is sent so that each piece of it is read alone. Its port."""
    server = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve(client: socket.socket, number: int) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client:
            data = b""
            while not over.is_set() and (more := client.recv(65536)):
                data += more
                head, blank, body = data.partition(b"\r\n\r\n")
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                if not blank or len(body) < int(length or 0):
                    continue
                said = answer(data, number)
                if not said:
                    return
                for piece in [said] if isinstance(said, bytes) else said:
                    client.sendall(piece)
                    if piece is not said:
                        time.sleep(0.02)
                data = b""

    def accept() -> None:
        number = 0
        while not over.is_set():
            try:
                client, _ = server.accept()
            except OSError:
                return
            number += 1
            threading.Thread(target=serve, args=(client, number), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def json_answer(body: bytes, *fields: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: application/json", *fields]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def usage(**more: object) -> bytes:
    return orjson.dumps(
        {"object": "chat.completion", "choices": [{"message": {"content": "four" * 10}}], **more}
    )


@pytest.mark.parametrize("store", ["sqlite", "redis"])
@pytest.mark.parametrize("number", [b"1" + b"0" * 30, b"9223372036854775807", b"1e30", b"-5"])
def test_a_number_beyond_reason_is_no_count_and_stops_no_debit(
    redis_server: RedisServer, start: StartGateway, store: str, number: bytes
) -> None:
    body = usage(usage={"prompt_tokens": 10, "completion_tokens": "X"}).replace(b'"X"', number)
    with raw_provider(lambda request, _: json_answer(body)) as port:
        gateway = start(
            provider_port=port, budgets=ROOMY, store=redis_server.url if store == "redis" else ""
        )
        assert chat(gateway, ALICE)[0] == 200
        (line,) = gateway.access_log()
        assert line["usage_source"] == "counted"
        assert line["output_tokens"] == 10
        assert gateway.used("alice") == line["input_tokens"] + 10
        assert chat(gateway, BOB)[0] == 200
        assert gateway.used("bob") == gateway.used("alice")


def test_an_account_that_is_no_count_stops_no_other(
    redis_server: RedisServer, start: StartGateway
) -> None:
    gateway = start(store=redis_server.url, budgets=ROOMY)
    assert chat(gateway, ALICE)[0] == 200
    gateway.used("alice")
    with redis.Redis.from_url(redis_server.url) as client:
        (key,) = client.keys("fastgw:a:*alice*")
        client.set(key, "broken by hand")
    for _ in range(3):
        assert chat(gateway, ALICE)[0] == chat(gateway, BOB)[0] == 200
    assert gateway.used("bob") == 57
    assert "cannot keep 1 account" in gateway.log.read_text()


def test_a_get_with_a_body_is_not_sent_again(start: StartGateway) -> None:
    seen: list[bytes] = []

    def answer(data: bytes, number: int) -> bytes:
        seen.append(data)
        return b"" if data.startswith(b"GET") else json_answer(b"{}")

    with raw_provider(answer) as port:
        gateway = start(provider_port=port, budgets=ROOMY)
        assert chat(gateway, ALICE)[0] == 200  # a connection to be used again
        shown = {"Authorization": f"Bearer {ALICE}"}
        status, _, _ = request(gateway.port, "GET", "/openai/models", b"x" * 600, shown)
        assert status == 502
        assert chat(gateway, BOB)[0] == 200
    assert [data.split(b" ")[0] for data in seen] == [b"POST", b"GET", b"POST"]


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, br"])
def test_an_answer_in_a_coding_that_cannot_be_read_is_counted_by_its_bytes(
    start: StartGateway, coding: bytes
) -> None:
    asked: list[bytes] = []

    def answer(data: bytes, number: int) -> bytes:
        asked.append(data.lower())
        return json_answer(b"\x0b\x02\x80" * 400, b"Content-Encoding: " + coding)

    with raw_provider(answer) as port:
        gateway = start(provider_port=port, budgets=ROOMY)
        shown = {"Authorization": f"Bearer {ALICE}", "Accept-Encoding": "br, identity;q=0"}
        body = b'{"messages": [], "stream": true}'
        status, _, got = request(gateway.port, "POST", "/openai", body, shown)
        assert (status, got) == (200, b"\x0b\x02\x80" * 400)
        assert gateway.used("alice") >= 300
    assert b"accept-encoding: identity\r\n" in asked[0]


@pytest.mark.parametrize(
    ("path", "answer", "charged"),
    [
        ("/v1/messages", {"type": "message", "usage": {
            "input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5}}, 12),
        ("/v1/images/generations", {"created": 1, "usage": {
            "input_tokens": 3, "output_tokens": 4, "total_tokens": 7}}, 7),
        ("/deployments/x/chat/completions", {"choices": [], "usage": {
            "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}, 7),
        ("/v1/responses/resp_1/cancel", {"object": "response", "usage": {
            "input_tokens": 3, "output_tokens": 4}}, 0),
        ("/v1/chat/completions/chatcmpl-1", {"object": "chat.completion", "usage": {
            "prompt_tokens": 3, "completion_tokens": 4}}, 0),
    ],
)  # fmt: skip
def test_other_paths_are_charged_what_they_report_and_old_usage_once(
    start: StartGateway, path: str, answer: dict[str, object], charged: int
) -> None:
    with raw_provider(lambda request, _: json_answer(orjson.dumps(answer))) as port:
        gateway = start(provider_port=port, budgets=ROOMY)
        assert chat(gateway, ALICE, f"/openai{path}")[0] == 200
        assert gateway.used("alice") == charged


def test_background_responses_are_refused_under_a_budget(gateway: Gateway) -> None:
    status, _, body = chat(gateway, ALICE, "/openai/responses", input="x", background=True)
    assert (status, orjson.loads(body)["error"]["code"]) == (400, "not_meterable")


def test_names_that_no_log_can_hold_end_no_exchange(start: StartGateway) -> None:
    body = usage(usage={"prompt_tokens": 1, "completion_tokens": 2}, model="X")
    odd = body.replace(b'"X"', b'"\\ud800"')
    with raw_provider(lambda request, _: json_answer(odd)) as port:
        gateway = start(provider_port=port, budgets=ROOMY)
        client = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        for _ in range(3):  # on one connection
            client.request(
                "POST", "/openai", b'{"model": "\\ud800", "messages": []}',
                {"Authorization": f"Bearer {ALICE}"},
            )  # fmt: skip
            answer = client.getresponse()
            answer.read()
            assert answer.status == 200
        client.close()
        assert gateway.used("alice") == 9
        by_model = start(
            provider_port=port, budgets=ROOMY.replace('["user_id"]', '["user_id", "llm.model"]')
        )
        assert chat(by_model, ALICE, model="x")[0] == 200
        status, _, said = request(
            by_model.port, "POST", "/openai", b'{"model": "\\ud800"}',
            {"Authorization": f"Bearer {ALICE}"},
        )  # fmt: skip
        assert (status, orjson.loads(said)["error"]["code"]) == (400, "invalid_json")


def test_windows_end_while_the_store_is_away(
    redis_server: RedisServer, start: StartGateway
) -> None:
    gateway = start(
        store=redis_server.url, budgets=PER_USER.format(limit=20) + 'window = "second"\n'
    )
    assert chat(gateway, ALICE)[0] == 200
    gateway.used("alice")
    redis_server.kill()
    deadline = time.monotonic() + 30
    served = refused = 0
    while (served < 4 or not refused) and time.monotonic() < deadline:
        status = chat(gateway, ALICE)[0]
        served += status == 200
        refused += status == 429
    assert served >= 4  # two in a second: in two windows at least
    assert refused
    assert gateway.stop() == 1  # what is owed is lost, and said so


def test_a_stop_waits_for_a_store_that_comes_back(
    redis_server: RedisServer, start: StartGateway
) -> None:
    gateway = start(store=redis_server.url, budgets=ROOMY)
    assert chat(gateway, ALICE)[0] == 200
    gateway.used("alice")
    redis_server.freeze()
    assert chat(gateway, ALICE)[0] == 200
    gateway.child.send_signal(signal.SIGTERM)
    time.sleep(1.5)  # more than one deadline of the store
    redis_server.thaw()
    assert gateway.child.wait(30) == 0
    with redis.Redis.from_url(redis_server.url) as client:
        (key,) = client.keys("fastgw:a:*alice*")
        assert client.hget(key, "used") == b"38"
