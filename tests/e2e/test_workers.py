"""Several workers on one port: served together, counted together, restarted, reloaded, drained."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import ALICE, BOB, PER_USER, ROOT, chat, free_port, request, settled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway, Provider

ROOMY = PER_USER.format(limit=1_000_000)
STREAM = orjson.dumps(
    {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}
)


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


def samples(gateway: Gateway, name: str) -> dict[frozenset[tuple[str, str]], float]:
    """The samples of that name, by labels, as the official parser reads them."""
    return {
        frozenset(sample.labels.items()): sample.value
        for family in text_string_to_metric_families(gateway.metrics())
        for sample in family.samples
        if sample.name == f"fastgw_{name}"
    }


def total(gateway: Gateway, name: str) -> float:
    return sum(samples(gateway, name).values())


def workers(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.api("/api/status")["workers"]
    return found


def stream_head(key: str, stub: str) -> bytes:
    lines = ["POST /openai HTTP/1.1", "Host: a", f"Authorization: Bearer {key}", f"x-stub: {stub}"]
    lines += ["Connection: close", f"Content-Length: {len(STREAM)}", "", ""]
    return "\r\n".join(lines).encode() + STREAM


def read_all(client: socket.socket) -> bytes:
    found = b""
    while part := client.recv(65536):
        found += part
    return found


@pytest.fixture(params=["sqlite", "redis"])
def four(
    request: pytest.FixtureRequest, start: StartGateway, redis_url: str, redis_prefix: str
) -> Gateway:
    """Four workers on one store."""
    store, more = "", ""
    if request.param == "redis":
        store, more = redis_url, f'prefix = "{redis_prefix}"'
    return start(server="workers = 4", store=store, store_more=more, budgets=ROOMY)


def send(gateway: Gateway, number: int) -> None:
    """So many requests, each on a connection of its own, from several clients at once."""
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(
            lambda at: chat(gateway, (ALICE, BOB)[at % 2], stub="prompt=3;events=2")[0],
            range(number),
        )
        assert list(answers) == [200] * number


def test_four_workers_serve_and_count_as_one(four: Gateway, provider: Provider) -> None:
    send(four, 80)
    assert total(four, "requests_total") == 80
    assert total(four, "request_duration_seconds_count") == 80
    assert total(four, "gen_ai_client_tokens_total") == 80 * 5
    used = samples(four, "budget_used")
    assert sum(used.values()) == 400
    assert {dict(labels)["account"] for labels in used} == {"alice", "bob"}
    assert four.used("alice") == four.used("bob") == 200
    assert len(provider.entries()) == 80
    assert sum(worker["exchanges"] for worker in workers(four)) == 0
    assert len({worker["pid"] for worker in workers(four)}) == 4


def test_a_killed_worker_is_replaced_and_no_sum_goes_backwards(four: Gateway) -> None:
    send(four, 40)
    assert total(four, "requests_total") == 40  # this asked every worker
    before = {worker["number"]: worker["pid"] for worker in workers(four)}
    os.kill(before[2], signal.SIGKILL)
    wait_for(lambda: total(four, "worker_restarts_total") == 1, "a restart")
    assert total(four, "requests_total") == 40
    four.wait_until_ready()
    send(four, 40)
    settled(four)
    assert total(four, "requests_total") == 80
    assert total(four, "gen_ai_client_token_usage_count") == 160
    assert four.used("alice") + four.used("bob") == 400
    after = {worker["number"]: worker["pid"] for worker in workers(four)}
    assert {number for number in after if after[number] != before[number]} == {2}
    assert samples(four, "workers")[frozenset({("state", "ready")})] == 4


def test_budgets_are_shown_while_a_worker_is_gone(four: Gateway) -> None:
    send(four, 40)
    settled(four)
    pids = [worker["pid"] for worker in workers(four)]
    os.kill(pids[0], signal.SIGSTOP)
    os.kill(pids[1], signal.SIGKILL)
    try:
        rows = {row["account"]["user_id"]: row["used"] for row in four.api("/api/budgets")}
        assert rows == {"alice": 100, "bob": 100}
        assert total(four, "requests_total") == 40
        assert request(four.admin_port, "GET", "/healthz/ready")[0] == 200
    finally:
        os.kill(pids[0], signal.SIGCONT)
    four.wait_until_ready()


def test_no_debit_is_shown_twice_on_its_way_to_the_store(start: StartGateway) -> None:
    gateway = start(server="workers = 2", budgets=ROOMY)
    pauses = random.Random(1)
    for number in range(1, 101):
        assert chat(gateway, ALICE)[0] == 200
        time.sleep(pauses.random() * 0.03)
        assert gateway.used("alice") == number * 19


def test_a_limit_holds_over_all_workers(start: StartGateway) -> None:
    gateway = start(
        server="workers = 3",
        budgets=PER_USER.format(limit=100),
        store_more="max_staleness = 0",
    )
    answers = []
    for _ in range(30):
        answers.append(chat(gateway, ALICE)[0])
        settled(gateway)
    assert answers == [200] * 6 + [429] * 24
    assert gateway.used("alice") == 114
    assert total(gateway, "budget_refusals_total") == 24
    assert list(samples(gateway, "budget_remaining").values()) == [0]


def test_a_stop_drains_every_worker_and_says_so_first(start: StartGateway) -> None:
    gateway = start(server="workers = 3", budgets=ROOMY)
    clients = []
    for _ in range(6):
        client = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
        client.sendall(stream_head(ALICE, "events=60;pace=0.02"))
        assert b" 200 " in client.recv(65536)
        clients.append(client)
    gateway.child.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    status, _, text = request(gateway.admin_port, "GET", "/healthz/ready")
    assert (status, b"draining" in text) == (503, True)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", gateway.port), timeout=5).recv(1)
    for client in clients:
        assert b"[DONE]" in read_all(client)
        client.close()
    assert gateway.child.wait(20) == 0
    again = start(budgets=ROOMY, store=f"sqlite:{gateway.folder}/budgets-{gateway.port}.db")
    assert chat(again, BOB)[0] == 200
    assert again.used("alice") == 6 * 70


def test_a_second_signal_cuts_and_still_debits(start: StartGateway) -> None:
    gateway = start(server="workers = 2", budgets=ROOMY, drain="60s")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(stream_head(ALICE, "events=2000;pace=0.02"))
        assert b" 200 " in client.recv(65536)
        time.sleep(0.3)
        gateway.child.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert gateway.child.poll() is None
        gateway.child.send_signal(signal.SIGINT)
        assert gateway.child.wait(20) == 0
    entry = gateway.access_log()[-1]
    assert (entry["reason"], entry["usage_source"]) == ("shutdown", "counted")


def test_ctrl_c_of_the_whole_group_ends_cleanly(start: StartGateway) -> None:
    gateway = start(server="workers = 2", budgets=ROOMY)
    pids = [worker["pid"] for worker in workers(gateway)]
    for pid in [*pids, gateway.child.pid]:
        os.kill(pid, signal.SIGINT)
    assert gateway.child.wait(20) == 0
    for pid in pids:
        assert not os.path.exists(f"/proc/{pid}")
    assert "ended (" not in gateway.log.read_text()


def test_workers_of_a_killed_supervisor_drain_and_end(start: StartGateway) -> None:
    gateway = start(server="workers = 2", budgets=ROOMY)
    pids = [worker["pid"] for worker in workers(gateway)]
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(stream_head(ALICE, "events=40;pace=0.02"))
        assert b" 200 " in client.recv(65536)
        gateway.child.kill()
        gateway.child.wait(20)
        assert b"[DONE]" in read_all(client)
    wait_for(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "workers end")


def test_a_worker_ended_by_hand_drains_and_is_replaced(start: StartGateway) -> None:
    gateway = start(server="workers = 2", budgets=ROOMY)
    first = {worker["number"]: worker["pid"] for worker in workers(gateway)}
    send(gateway, 20)
    for pid in first.values():
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: total(gateway, "worker_restarts_total") == 2, "restarts")
    gateway.wait_until_ready()
    assert total(gateway, "requests_total") == 20
    send(gateway, 20)
    assert total(gateway, "requests_total") == 40


def serve(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`fastgw serve` to its own end."""
    (folder / "gateway.toml").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "fastgw", "serve", "--config", "gateway.toml", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


MINIMAL = """
[server]
listen = "127.0.0.1:{port}"
workers = 2
[admin]
listen = ""
[store]
url = "{store}"
[[upstreams]]
name = "stub"
base_url = "http://127.0.0.1:9"
[[routes]]
path_prefix = "/openai"
upstream = "stub"
[access_log]
path = ""
"""


def test_workers_that_cannot_start_end_in_exit_code_3(tmp_path: Path) -> None:
    (tmp_path / "budgets.db").mkdir()  # no file, so the store cannot be opened
    text = MINIMAL.format(port=free_port(), store=f"sqlite:{tmp_path}/budgets.db")
    ended = serve(tmp_path, text)
    assert ended.returncode == 3, ended.stderr
    assert "cannot start: SQLite" in ended.stderr
    assert "no worker can start: 5 attempts in a row failed" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_in_use_is_said_before_any_worker_starts(
    start: StartGateway, tmp_path: Path
) -> None:
    gateway = start(server="workers = 2", budgets=ROOMY)
    ended = serve(tmp_path, MINIMAL.format(port=gateway.port, store="sqlite:other.db"))
    assert ended.returncode == 1, ended.stderr
    assert "in use" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert chat(gateway, ALICE)[0] == 200


def test_addresses_of_all_sorts_are_shared(start: StartGateway, tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "fastgw.sock"
    gateway = start(
        budgets=ROOMY,
        server="workers = 2",
        listen=f'["127.0.0.1:{port}", "[::1]:{port}", "127.0.0.1:0", "unix:{path}"]',
    )
    listen = gateway.api("/api/status")["listen"]
    assert len(listen) == 4
    assert f"unix:{path}" in listen
    for address in listen:
        family, target = socket.AF_UNIX, str(path)
        where: Any = target
        if not address.startswith("unix:"):
            host, _, number = address.rpartition(":")
            family = socket.AF_INET6 if "[" in host else socket.AF_INET
            where = (host.strip("[]"), int(number))
        for _ in range(6):
            with socket.socket(family) as client:
                client.settimeout(20)
                client.connect(where)
                client.sendall(stream_head(ALICE, "events=1"))
                assert b"[DONE]" in read_all(client), address
    assert gateway.used("alice") == 24 * 10 + 24
