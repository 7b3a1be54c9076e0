"""What no method, path or shape of a request gets around, and what a refused client is told."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.processes import ALICE, PER_USER, request

if TYPE_CHECKING:
    from http.client import HTTPMessage

    from tests.e2e.conftest import StartGateway
    from tests.processes import Provider

ROOMY = PER_USER.format(limit=1_000_000)
CHAT = "/openai/chat/completions"
LIMITED = """
[[keys]]
name = "carol"
key = "sk-carol-000000-0123456789abcdef"
allowed_models = ["gpt-4o*"]
"""
CAROL = "sk-carol-000000-0123456789abcdef"


def ask(model: str = "m", **more: object) -> bytes:
    return orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}], **more})


def bearer(key: str, **more: str) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {key}",
        "Content-Type": "application/json",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


@pytest.mark.parametrize("method", ["QUERY", "SEARCH", "MKCOL", "GET", "DELETE", "OPTIONS"])
def test_a_method_is_no_way_around_a_limit(
    start: StartGateway, provider: Provider, method: str
) -> None:
    gateway = start(budgets=PER_USER.format(limit=0), more=LIMITED)
    provider.forget()
    assert request(gateway.port, method, CHAT, ask(), bearer(ALICE))[0] == 429
    status, _, answer = request(gateway.port, method, CHAT, ask("gpt-3"), bearer(CAROL))
    assert (status, b"model_not_allowed" in answer) == (403, True)
    assert provider.entries() == []


def test_what_has_no_body_is_free_whatever_was_sent_before_on_the_connection(
    start: StartGateway, provider: Provider
) -> None:
    gateway = start(budgets=PER_USER.format(limit=0))

    def head(method: str, length: int) -> bytes:
        return (
            f"{method} /openai/files/f HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {ALICE}"
            f"\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        answers = client.makefile("rb")

        def status() -> int:
            line = answers.readline()
            length = 0
            while (field := answers.readline()) != b"\r\n":
                name, _, value = field.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            answers.read(length)
            return int(line.split()[1])

        provider.forget()
        for _ in range(3):
            client.sendall(head("DELETE", 0))
            assert status() != 429
            client.sendall(head("DELETE", 2) + b"{}")
            assert status() == 429
        assert len(provider.entries()) == 3
        answers.close()


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize(
    "path", ["chat/completions", "images/generations", "moderations", "rerank", "audio/speech"]
)
def test_the_model_is_replaced_whatever_the_operation(
    start: StartGateway, provider: Provider, path: str, free: bool
) -> None:
    route = '[[routes]]\npath_prefix = "/free"\nupstream = "stub"\nbudgets = false'
    gateway = start(budgets=ROOMY, upstream='model_aliases = { fast = "gpt-4o-mini" }', more=route)
    place = f"/{'free' if free else 'openai'}/{path}"
    request(gateway.port, "POST", place, ask("fast"), bearer(ALICE))
    assert b'"model":"gpt-4o-mini"' in provider.last()
    request(gateway.port, "POST", place, ask("other"), bearer(ALICE))
    assert b'"model":"other"' in provider.last()


def test_a_forced_model_is_named_where_a_body_names_one(
    start: StartGateway, provider: Provider
) -> None:
    gateway = start(budgets=ROOMY, upstream='model = "forced"')
    request(gateway.port, "POST", CHAT, ask("a"), bearer(ALICE))
    assert b'"model":"forced"' in provider.last()
    cancel = "/openai/fine_tuning/jobs/j/cancel"
    request(gateway.port, "POST", cancel, b'{"why":"no"}', bearer(ALICE))
    assert provider.last().endswith(b'{"why":"no"}')
    form = (
        b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\na\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
        b"--x--\r\n"
    )
    headers = bearer(ALICE) | {"Content-Type": "multipart/form-data; boundary=x"}
    request(gateway.port, "POST", "/openai/audio/translations", form, headers)
    assert provider.last().endswith(form.replace(b"\r\n\r\na\r\n", b"\r\n\r\nforced\r\n"))
    two = form.replace(b"--x--", form[: form.index(b"--x\r\n", 5)] + b"--x--")
    status, _, answer = request(gateway.port, "POST", "/openai/audio/translations", two, headers)
    assert (status, b"several models" in answer) == (400, True)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b""),
        ("application/json", b"[]"),
        ("application/json", b'{"n":12345678901234567890123,"a":"\\ud800"}'),
        ("application/x-ndjson", b'{"a":1}\n{"a":2}\n'),
        ("multipart/form-data; boundary=b; charset=utf-8", b"--b\r\n\r\nx\r\n--b--\r\n"),
    ],
)
@pytest.mark.parametrize("upstream", ['model = "forced"', 'model_aliases = { fast = "gpt-x" }'])
def test_what_names_no_model_goes_on_as_it_came(
    start: StartGateway, provider: Provider, upstream: str, kind: str, body: bytes
) -> None:
    gateway = start(budgets=ROOMY, upstream=upstream)
    headers = bearer(ALICE) | {"Content-Type": kind}
    status, _, _ = request(gateway.port, "POST", "/openai/batches/b/cancel", body, headers)
    assert status != 400
    assert provider.last().partition(b"\r\n\r\n")[2] == body


@pytest.mark.parametrize("body", [b'{"Model":"x"}', b'[{"model":"x"}]', b'{"model":"x"'])
def test_nothing_gets_around_a_forced_model(start: StartGateway, body: bytes) -> None:
    gateway = start(budgets=ROOMY, upstream='model = "forced"')
    assert request(gateway.port, "POST", "/openai/rerank", body, bearer(ALICE))[0] == 400


def test_the_request_id_of_the_client_is_on_every_answer(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY)
    mine = {"x-request-id": "mine-77"}
    cases = [
        (401, "POST", CHAT, {**bearer("sk-bad"), **mine}),
        (401, "POST", CHAT, mine),
        (404, "POST", "/nowhere", {**bearer(ALICE), **mine}),
        (400, "POST", "/openai/a/%2e%2e/b", {**bearer(ALICE), **mine}),
    ]
    for expected, method, path, headers in cases:
        status, fields, _ = request(gateway.port, method, path, ask(), headers)
        assert (status, fields["x-request-id"]) == (expected, "mine-77")
        assert gateway.access_log()[-1]["request_id"] == "mine-77"


def test_a_body_that_is_too_large_is_refused_by_its_length_as_any_other(
    start: StartGateway,
) -> None:
    anthropic = (
        '[[upstreams]]\nname = "a"\nbase_url = "http://127.0.0.1:9/v1"\ndialect = "anthropic"\n'
        '[[routes]]\npath_prefix = "/anthropic"\nupstream = "a"'
    )
    gateway = start(
        budgets=ROOMY,
        server='max_request_body = "1MiB"\ncors_origins = ["https://app.example"]',
        more=anthropic,
    )

    def send(key: str) -> bytes:
        head = (
            "POST /anthropic/v1/messages HTTP/1.1\r\nHost: gateway\r\nOrigin: https://app.example"
            f"\r\nx-api-key: {key}\r\nx-request-id: mine-78\r\nContent-Length: 2000000\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
            client.sendall(head.encode())
            answer = b""
            while part := client.recv(65536):
                answer += part
        return answer

    answer = send(ALICE)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"type":"request_too_large"' in answer
    assert b'"request_id":"mine-78"' in answer
    assert b"access-control-allow-origin: https://app.example\r\n" in answer
    assert b"connection: close\r\n" in answer
    entry = gateway.access_log()[-1]
    assert (entry["status"], entry["reason"], entry["key"]) == (413, "body_too_large", "alice")
    assert (entry["method"], entry["path"]) == ("POST", "/anthropic/v1/messages")
    assert send("sk-wrong").startswith(b"HTTP/1.1 401 ")


def test_the_log_names_the_model_that_was_not_allowed(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY, more=LIMITED)
    assert request(gateway.port, "POST", CHAT, ask("gpt-3"), bearer(CAROL))[0] == 403
    assert gateway.access_log()[-1]["gen_ai.request.model"] == "gpt-3"


def test_a_stop_tells_those_whom_it_cuts(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY, drain="300ms")
    told: dict[str, tuple[int, HTTPMessage, bytes]] = {}

    def wait(name: str, body: bytes, behaviour: str) -> None:
        headers = bearer(ALICE, x_stub=behaviour)
        told[name] = request(gateway.port, "POST", CHAT, body, headers)

    waiting = threading.Thread(target=wait, args=("json", ask(), "first=20"))
    waiting.start()
    stream = ask(stream=True)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {ALICE}\r\n"
        head += f"x-stub: events=1000;pace=0.05\r\nContent-Length: {len(stream)}\r\n\r\n"
        client.sendall(head.encode() + stream)
        answer = client.recv(65536)
        time.sleep(0.3)
        assert gateway.stop() == 0
        while part := client.recv(65536):
            answer += part
    waiting.join(20)
    assert b'"code":"overloaded"' in answer
    assert b"the gateway is stopping" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    status, fields, text = told["json"]
    assert (status, fields["retry-after"]) == (503, "1")
    assert b"the gateway is stopping" in text
    entries = gateway.access_log()[-2:]
    assert [entry["reason"] for entry in entries] == ["shutdown", "shutdown"]
    assert {entry["status"] for entry in entries} == {200, 503}
    assert all(entry["usage_source"] == "counted" for entry in entries)
    assert all(entry["input_tokens"] > 0 for entry in entries)
