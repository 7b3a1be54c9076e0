"""What an operator does: start, drain, rotate logs, TLS and unix sockets, a bad address."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import orjson
import pytest
import trustme

from tests.processes import ALICE, BOB, PER_USER, ROOT, Provider, chat, free_port, request, settled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import StartGateway

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello!"}]}
ROOMY = PER_USER.format(limit=1_000_000)


def head(body: bytes, *fields: str) -> bytes:
    lines = ["POST /openai HTTP/1.1", "Host: a", f"Authorization: Bearer {ALICE}", *fields]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def test_a_stop_lets_running_streams_finish(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY)
    body = orjson.dumps({**BODY, "stream": True})
    idle = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(head(body, "x-stub: events=40;pace=0.02"))
        first = client.recv(65536)
        assert b" 200 " in first
        gateway.child.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        # the port is closed to newcomers, readiness says why
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", gateway.port), timeout=5).recv(1)
        status, _, text = request(gateway.admin_port, "GET", "/healthz/ready")
        assert (status, b"draining" in text) == (503, True)
        rest = first
        while part := client.recv(65536):
            rest += part
    assert idle.recv(1) == b""  # an idle connection is closed at once
    idle.close()
    assert b"[DONE]" in rest
    assert rest.endswith(b"0\r\n\r\n")
    assert gateway.child.wait(20) == 0
    again = start(budgets=ROOMY, store=f"sqlite:{gateway.folder}/budgets-{gateway.port}.db")
    chat(again, BOB)
    assert again.used("alice") == 50


def test_a_stop_cuts_what_outlasts_the_drain_and_still_debits_it(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY, drain="300ms")
    body = orjson.dumps({**BODY, "stream": True})
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(head(body, "x-stub: events=1000;pace=0.02"))
        assert b" 200 " in client.recv(65536)
        time.sleep(0.3)
        began = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - began < 15  # and not the twenty seconds of the stream
    entry = gateway.access_log()[-1]
    assert entry["reason"] == "shutdown"
    assert entry["usage_source"] == "counted"
    assert entry["output_tokens"] > 5


def test_keep_alive_ends_politely_during_a_drain(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY)
    body = orjson.dumps(BODY)
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    headers = {"Authorization": f"Bearer {ALICE}", "x-stub": "first=0.5"}

    def stop() -> None:
        time.sleep(0.2)
        gateway.child.send_signal(signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    connection.request("POST", "/openai", body, headers)
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.read()
    assert answer.headers["connection"] == "close"
    connection.close()
    thread.join()
    assert gateway.child.wait(20) == 0


def test_logs_are_rotated_by_hup(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY)
    path = gateway.folder / f"access-{gateway.port}.log"
    chat(gateway, ALICE)
    assert len(gateway.access_log()) == 1
    path.rename(path.with_suffix(".1"))
    gateway.child.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    chat(gateway, ALICE)
    assert len(gateway.access_log()) == 1
    assert len(path.with_suffix(".1").read_bytes().splitlines()) == 1


def test_several_addresses_ipv6_and_unix(start: StartGateway, tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "fastgw.sock"
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))
    left_behind.close()
    gateway = start(budgets=ROOMY, listen=f'["127.0.0.1:{port}", "[::1]:{port}", "unix:{path}"]')
    data = head(orjson.dumps(BODY), "Connection: close")
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", port)),
        (socket.AF_INET6, ("::1", port)),
        (socket.AF_UNIX, str(path)),
    ):
        with socket.socket(family) as client:
            client.settimeout(20)
            client.connect(address)
            client.sendall(data)
            assert client.recv(65536).startswith(b"HTTP/1.1 200"), address
    assert gateway.used("alice") == 57
    clients = [entry["client"] for entry in gateway.access_log()]
    assert clients[:2] == ["127.0.0.1", "::1"]


def test_tls_on_both_sides(start: StartGateway, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    both = tmp_path / "both.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(both))
    provider = Provider(tmp_path, "", 0, "--tls-cert", str(both))
    try:
        gateway = start(
            budgets=ROOMY,
            server=f'tls_cert = "{both}"\ntls_key = "{both}"',
            base_url=f"https://localhost:{provider.port}/v1",
            upstream=f'ca_file = "{tmp_path}/ca.pem"',
        )
        trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        for stream in (False, True):
            client = http.client.HTTPSConnection(
                "localhost", gateway.port, timeout=20, context=trusting
            )
            client.request(
                "POST",
                "/openai",
                orjson.dumps({**BODY, "stream": stream}),
                {"Authorization": f"Bearer {ALICE}"},
            )
            answer = client.getresponse()
            assert answer.status == 200
            assert (b"[DONE]" in answer.read()) is stream
            client.close()
        assert gateway.used("alice") == 38
        # who speaks plain HTTP to the TLS port gets nothing
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as plain:
            plain.sendall(head(orjson.dumps(BODY)))
            try:
                assert b"200" not in plain.recv(4096)
            except ConnectionResetError:
                pass
        # a provider that nobody vouches for is not spoken to
        wary = start(budgets=ROOMY, base_url=f"https://localhost:{provider.port}/v1")
        status, _, text = chat(wary, ALICE)
        assert status == 502
        assert b"upstream_unavailable" in text
        # nor one with a certificate for another name
        other = start(
            budgets=ROOMY,
            base_url=f"https://localhost.localdomain:{provider.port}/v1",
            upstream=f'ca_file = "{tmp_path}/ca.pem"',
        )
        assert chat(other, ALICE)[0] == 502
        log = provider.log.read_text()
        assert "Traceback" not in log
    finally:
        provider.stop()


def test_an_address_in_use_is_said_and_exit_1(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY)
    second = subprocess.run(
        [sys.executable, "-m", "fastgw", "serve", "--config", str(gateway.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=gateway.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert second.returncode == 1
    assert "in use" in second.stderr
    assert "Traceback" not in second.stderr
    assert chat(gateway, ALICE)[0] == 200


def test_status_shows_what_runs(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY)
    chat(gateway, ALICE)
    settled(gateway)
    status = gateway.api("/api/status")
    assert status["listen"] == [f"127.0.0.1:{gateway.port}"]
    assert status["exchanges"] == 0
    assert status["upstreams"]["stub"]["idle"] == 1
    store = status["store"]
    assert (store["url"], store["up"], store["debits_pending"]) == ("sqlite", True, 0)
    assert (status["keys"], status["budgets"]) == (2, 1)
    assert len(status["config"]) == 64


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_signal_does_not_wait_for_who_reads_nothing(
    start: StartGateway, workers: int
) -> None:
    gateway = start(budgets=ROOMY, drain="60s", server=f"workers = {workers}" * (workers > 1))
    body = orjson.dumps({**BODY, "stream": True})
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", gateway.port))
        client.sendall(head(body, "x-stub: events=100000"))
        time.sleep(0.5)
        gateway.child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        gateway.child.send_signal(signal.SIGTERM)
        assert gateway.child.wait(20) == 0
