"""SIGHUP: a new configuration under running requests; a bad one changes nothing."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl
from typing import TYPE_CHECKING

import orjson
import pytest
import trustme

from tests.e2e.test_workers import read_all, samples, stream_head, total, wait_for, workers
from tests.processes import ALICE, BOB, PER_USER, Provider, chat, request, settled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway

CAROL = "sk-carol-0123456789abcdef"
ROOMY = PER_USER.format(limit=1_000_000)

both = pytest.mark.parametrize("server", ["", "workers = 3"], ids=["one", "several"])


def change(gateway: Gateway, *pairs: tuple[str, str]) -> None:
    """Replace texts of the configuration, each of which stands there."""
    text = gateway.config.read_text()
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    gateway.config.write_text(text)


def hup(gateway: Gateway, result: str = "success") -> None:
    """Reload, and wait until it is done."""
    before = samples(gateway, "config_reloads_total")[frozenset({("result", result)})]
    gateway.child.send_signal(signal.SIGHUP)
    wait_for(
        lambda: samples(gateway, "config_reloads_total")[frozenset({("result", result)})] > before,
        f"a reload with {result}: {gateway.log.read_text()}",
    )


@both
def test_keys_and_budgets_change_under_a_running_stream(start: StartGateway, server: str) -> None:
    gateway = start(server=server, budgets=PER_USER.format(limit=2000))
    digest = gateway.api("/api/status")["config"]
    kept = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    headers = {"Authorization": f"Bearer {BOB}"}
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "Hello!"}]})

    def ask() -> int:
        kept.request("POST", "/openai", body, headers)
        answer = kept.getresponse()
        answer.read()
        return answer.status

    assert ask() == 200
    socket_before = kept.sock
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(stream_head(ALICE, "events=100;pace=0.02"))
        first = client.recv(65536)
        assert b" 200 " in first
        change(
            gateway,
            (ALICE, CAROL),  # alice's secret is gone, carol's is hers now
            ("limit = 2000", "limit = 130"),
        )
        hup(gateway)
        assert chat(gateway, ALICE)[0] == 401
        assert chat(gateway, CAROL)[0] == 200
        assert ask() == 200  # on the same connection, by the new configuration
        assert kept.sock is socket_before
        assert b"[DONE]" in read_all(client)
    kept.close()
    settled(gateway)
    # what was used under the old limit counts under the new one: 110 of the stream and 19
    assert gateway.used("alice") == 129
    assert chat(gateway, CAROL)[0] == 200
    settled(gateway)
    wait_for(lambda: chat(gateway, CAROL)[0] == 429, "the new limit")
    status = gateway.api("/api/status")
    assert status["config"] != digest
    assert {worker["config"] for worker in status["workers"]} == {status["config"]}
    limits = samples(gateway, "budget_limit")
    assert limits[frozenset({("budget", "per-user-daily"), ("account", "alice")})] == 130
    assert samples(gateway, "config_reload_success") == {frozenset(): 1}


def test_a_key_that_is_gone_is_refused_though_its_head_is_known(start: StartGateway) -> None:
    gateway = start(budgets=ROOMY)
    for _ in range(4):  # each on a connection of its own
        assert chat(gateway, ALICE)[0] == 200
    change(gateway, (ALICE, CAROL))
    hup(gateway)
    for _ in range(4):
        assert chat(gateway, ALICE)[0] == 401
        assert chat(gateway, CAROL)[0] == 200


@both
def test_a_bad_file_keeps_the_old_configuration(start: StartGateway, server: str) -> None:
    gateway = start(server=server, budgets=ROOMY)
    digest = gateway.api("/api/status")["config"]
    good = gateway.config.read_text()
    gateway.config.write_text(good.replace("limit =", "limitt =") + "\n[[keys]]\nnam = 'x'\n")
    hup(gateway, "failure")
    log = gateway.log.read_text()
    assert "limitt: unknown setting; did you mean" in log
    assert "nam: unknown setting" in log
    assert "the old configuration stays" in log
    assert ALICE not in log
    assert samples(gateway, "config_reload_success") == {frozenset(): 0}
    assert gateway.api("/api/status")["config"] == digest
    assert chat(gateway, ALICE)[0] == 200
    gateway.config.write_text(good)
    hup(gateway)
    assert samples(gateway, "config_reload_success") == {frozenset(): 1}
    assert chat(gateway, ALICE)[0] == 200


@both
def test_what_needs_a_restart_is_named_and_left(start: StartGateway, server: str) -> None:
    gateway = start(server=server, budgets=ROOMY)
    change(
        gateway,
        (f"127.0.0.1:{gateway.port}", "127.0.0.1:1"),
        ('labels = { user_id = "apiKey.user_id" }', 'namespace = "other"'),
        ("limit = 1000000", "limit = 999999"),
    )
    hup(gateway)
    assert "server.listen, metrics.namespace, metrics.labels: a restart is needed" in (
        gateway.log.read_text()
    )
    assert chat(gateway, ALICE)[0] == 200
    assert list(samples(gateway, "budget_limit").values()) == [999999]
    assert total(gateway, "requests_total") == 1


@both
def test_routes_and_upstreams_change_and_pools_that_did_not_stay(
    start: StartGateway, server: str, tmp_path: Path
) -> None:
    gateway = start(server=server, budgets=ROOMY)
    other = Provider(tmp_path)
    try:
        for _ in range(6):
            assert chat(gateway, ALICE)[0] == 200
        idle = gateway.api("/api/status")["upstreams"]["stub"]["idle"]
        assert idle > 0
        second = f"""
[[upstreams]]
name = "second"
base_url = "http://127.0.0.1:{other.port}/v1"
[[routes]]
path_prefix = "/second"
upstream = "second"
[metrics]"""
        change(gateway, ("[metrics]", second))
        assert chat(gateway, ALICE, "/second")[0] == 404
        hup(gateway)
        assert gateway.api("/api/status")["upstreams"]["stub"]["idle"] == idle
        assert chat(gateway, ALICE, "/second")[0] == 200
        assert len(other.entries()) == 1
        # a changed upstream: the exchange under way ends on the old one
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
            client.sendall(stream_head(ALICE, "events=60;pace=0.02"))
            assert b" 200 " in client.recv(65536)
            text = gateway.config.read_text()
            old = next(line for line in text.splitlines() if line.startswith("base_url"))
            change(gateway, (old, f'base_url = "http://127.0.0.1:{other.port}/v1"'))
            hup(gateway)
            assert chat(gateway, ALICE)[0] == 200
            assert len(other.entries()) == 2
            assert b"[DONE]" in read_all(client)
        wait_for(
            lambda: gateway.api("/api/status")["upstreams"]["stub"]["busy"] == 0, "all released"
        )
    finally:
        other.stop()


@both
def test_the_access_log_moves(start: StartGateway, server: str) -> None:
    gateway = start(server=server, budgets=ROOMY)
    assert chat(gateway, ALICE)[0] == 200
    assert len(gateway.access_log()) == 1
    moved = gateway.folder / "moved.log"
    change(gateway, (f"{gateway.folder}/access-{gateway.port}.log", str(moved)))
    hup(gateway)
    assert chat(gateway, ALICE)[0] == 200
    wait_for(lambda: moved.read_bytes().count(b"\n") == 1, "a line in the new file")
    assert len(gateway.access_log()) == 1
    change(gateway, (str(moved), f"{gateway.folder}/away/access.log"))
    hup(gateway, "failure")
    assert "the old configuration stays" in gateway.log.read_text()
    assert chat(gateway, ALICE)[0] == 200
    wait_for(lambda: moved.read_bytes().count(b"\n") == 2, "the old file goes on")


@both
def test_a_new_certificate_is_shown(start: StartGateway, server: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    pem = tmp_path / "both.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    gateway = start(budgets=ROOMY, server=f'{server}\ntls_cert = "{pem}"\ntls_key = "{pem}"')
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    wait_for(lambda: request(gateway.admin_port, "GET", "/healthz/ready")[0] == 200, "ready")

    def serial() -> str:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as plain:
            with trusting.wrap_socket(plain, server_hostname="127.0.0.1") as client:
                certificate = client.getpeercert()
                assert certificate is not None
                return str(certificate["serialNumber"])

    first = serial()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(pem))
    assert serial() == first
    hup(gateway)
    assert {serial() != first for _ in range(6)} == {True}
    last = serial()
    pem.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    hup(gateway, "failure")
    assert {serial() for _ in range(6)} == {last}


def test_a_worker_that_is_replaced_serves_by_the_new_configuration(start: StartGateway) -> None:
    gateway = start(server="workers = 2", budgets=ROOMY)
    change(gateway, (ALICE, CAROL))
    hup(gateway)
    digest = gateway.api("/api/status")["config"]
    change(gateway, (CAROL, ALICE))  # on disk only: nobody asked to read it
    pids = [worker["pid"] for worker in workers(gateway)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: total(gateway, "worker_restarts_total") == 2, "restarts")
    gateway.wait_until_ready()
    assert {worker["config"] for worker in workers(gateway)} == {digest}
    for _ in range(6):
        assert chat(gateway, CAROL)[0] == 200
        assert chat(gateway, ALICE)[0] == 401


@pytest.mark.slow
def test_a_worker_that_hangs_makes_a_reload_fail_for_all(start: StartGateway) -> None:
    gateway = start(server="workers = 2", budgets=ROOMY)
    digest = gateway.api("/api/status")["config"]
    victim = workers(gateway)[0]["pid"]
    os.kill(victim, signal.SIGSTOP)
    try:
        change(gateway, (ALICE, CAROL))
        hup(gateway, "failure")
    finally:
        os.kill(victim, signal.SIGCONT)
    assert "worker 1: does not answer; the old configuration stays" in gateway.log.read_text()
    # The one that hung still has both messages before it: the new configuration, and to go back.
    wait_for(
        lambda: (
            {worker["config"] for worker in workers(gateway)} == {digest}
            and {chat(gateway, ALICE)[0] for _ in range(12)} == {200}
        ),
        "one configuration",
    )
    for _ in range(6):
        assert chat(gateway, ALICE)[0] == 200
        assert chat(gateway, CAROL)[0] == 401


def test_many_reloads_in_a_row_under_load_refuse_nobody(start: StartGateway) -> None:
    gateway = start(server="workers = 2", budgets=ROOMY)
    for number in range(10):
        change(gateway, ("limit = 1000000", f"limit = 1000000 # {number}"))
        gateway.child.send_signal(signal.SIGHUP)
        for _ in range(5):
            assert chat(gateway, ALICE)[0] == 200
    assert total(gateway, "requests_total") == 50
    assert samples(gateway, "config_reload_success") == {frozenset(): 1}
