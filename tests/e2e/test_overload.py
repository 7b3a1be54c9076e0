"""What one client, or one provider, may take from the others: memory, time, their answers."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import orjson

from fastgw.http1.body import LAST_CHUNK, chunk
from tests.e2e.test_money import ROOMY, raw_provider
from tests.processes import ALICE, BOB, free_port, request

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway

CHAT = "/openai/chat/completions"
CAROL = "sk-carol-000000-0123456789abcdef"


def resident(gateway: Gateway) -> int:
    """MiB."""
    with open(f"/proc/{gateway.child.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) // 1024


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}


def test_who_takes_no_answers_is_let_go(start: StartGateway) -> None:
    gateway = start(server='send_timeout = "1s"')
    before = resident(gateway)
    flood = b"GET /nowhere HTTP/1.1\r\nHost: g\r\n\r\n" * 10_000
    sent, over = 0, False
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        for _ in range(200):  # 70 MB
            try:
                client.sendall(flood)
                sent += len(flood)
            except OSError:
                over = True
                break
    assert over, "it was read without end"
    assert resident(gateway) < before + 40
    assert request(gateway.port, "GET", "/openai/models", None, bearer(ALICE))[0] == 200


def test_a_long_pipeline_is_answered_whole_and_others_meanwhile(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY)
    number = 3000
    one = f"GET /openai/models HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {ALICE}\r\n"
    refused = "GET /nowhere HTTP/1.1\r\nHost: g\r\n"
    data = b"".join(
        f"{one if at % 10 == 0 else refused}x-request-id: r{at}\r\n\r\n".encode()
        for at in range(number)
    )
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        threading.Thread(target=client.sendall, args=(data,)).start()
        assert request(gateway.port, "GET", "/openai/models", None, bearer(BOB))[0] == 200
        answers = client.makefile("rb")
        for at in range(number):
            status = int(answers.readline().split()[1])
            assert status == (200 if at % 10 == 0 else 401), at
            length, name = 0, b""
            while (line := answers.readline()) != b"\r\n":
                field, _, value = line.partition(b": ")
                if field == b"content-length":
                    length = int(value)
                elif field == b"x-request-id":
                    name = value.strip()
            assert name == b"r%d" % at
            answers.read(length)
        answers.close()


def test_an_upload_that_waited_is_paused_as_any_other(start: StartGateway) -> None:
    port = free_port()
    gateway = start(
        base_url=f"http://127.0.0.1:{port}/v1",
        budgets=ROOMY,
        server='max_request_body = "64MiB"',
        upstream="max_connections = 1",
    )
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        first = threading.Thread(
            target=request, args=(gateway.port, "GET", "/openai/models", None, bearer(ALICE))
        )
        first.start()
        provider, _ = listener.accept()
        provider.recv(65536)
        head = f"POST /openai/files HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {ALICE}\r\n"
        head += f"Content-Length: {40_000_000}\r\n\r\n"
        with provider, socket.create_connection(("127.0.0.1", gateway.port), timeout=3) as client:
            client.sendall(head.encode())
            time.sleep(0.2)  # it waits for the one connection
            sent = 0
            try:
                while sent < 40_000_000:
                    sent += client.send(bytes(1_000_000))
                    if sent == 3_000_000:
                        provider.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                        first.join(10)
            except TimeoutError:
                pass
            assert sent < 40_000_000
            assert resident(gateway) < 60
            gateway.child.kill()
            gateway.child.wait(10)


def test_an_error_that_repeats_the_clients_words_proves_nothing(start: StartGateway) -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":5000}}\n\n'
    event = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'

    def answer(asked: bytes, number: int) -> list[bytes]:
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
        if b'"temperature":"' in asked:
            error = b'{"error":{"message":"temperature: not a number: stream_options"}}'
            return [head % (b"422 No", b"application/json"), chunk(error), LAST_CHUNK]
        told = usage if b"include_usage" in asked else b""
        whole = event + told + b"data: [DONE]\n\n"
        return [head % (b"200 OK", b"text/event-stream"), chunk(whole), LAST_CHUNK]

    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    with raw_provider(answer) as port:
        gateway = start(base_url=f"http://127.0.0.1:{port}/v1", budgets=ROOMY)

        def ask(key: str, **more: object) -> tuple[int, int]:
            text = orjson.dumps(body | more)
            status = request(gateway.port, "POST", CHAT, text, bearer(key))[0]
            return status, gateway.access_log()[-1]["output_tokens"]

        assert ask(BOB) == (200, 5000)
        assert ask(ALICE, temperature="stream_options")[0] == 422
        assert ask(BOB) == (200, 5000)


def test_names_that_are_no_text_leave_nobody_waiting(start: StartGateway) -> None:
    models = b'{"data":[{"id":"m1","owned_by":"\\ud83d"},{"id":"secret"}]}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    key = f'[[keys]]\nname = "carol"\nkey = "{CAROL}"\nallowed_models = ["m*"]\n'
    with raw_provider(lambda asked, number: [answer % (len(models), models)]) as port:
        gateway = start(base_url=f"http://127.0.0.1:{port}/v1", more=key)
        status, _, text = request(gateway.port, "GET", "/openai/models", None, bearer(CAROL))
    assert status == 200
    assert orjson.loads(text.replace(b"\\ud83d", b"?"))["data"] == [{"id": "m1", "owned_by": "?"}]
