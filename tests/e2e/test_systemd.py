"""Under a service manager: sockets passed, readiness told, a watchdog fed while all is well."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.e2e.test_workers import MINIMAL, read_all, stream_head, wait_for, workers
from tests.processes import ALICE, PER_USER, ROOT, chat, free_port, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import StartGateway
    from tests.processes import Gateway, Provider

DEPLOY = ROOT / "deploy"
ROOMY = PER_USER.format(limit=1_000_000)
both = pytest.mark.parametrize("server", ["", "workers = 2"], ids=["one", "several"])


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)

    def listen(self) -> list[dict[str, str]]:
        """All messages so far."""
        while True:
            try:
                text = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))

    def has(self, name: str, value: str = "1") -> int:
        return sum(1 for message in self.listen() if message.get(name) == value)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify")
    if request.param == "abstract":
        address = f"@fastgw-test-{os.getpid()}-{tmp_path.name}"
    found = Manager(address)
    yield found
    found.close()


@both
def test_the_manager_hears_of_start_reload_and_end(
    manager: Manager, start: StartGateway, server: str
) -> None:
    gateway = start(server=server, budgets=ROOMY, env={"NOTIFY_SOCKET": manager.address})
    wait_for(lambda: manager.has("READY") == 1, "READY=1")
    assert manager.heard[-1]["STATUS"] == f"serving on 127.0.0.1:{gateway.port}"
    assert chat(gateway, ALICE)[0] == 200  # ready means served
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    gateway.child.send_signal(signal.SIGHUP)
    wait_for(lambda: manager.has("READY") == 2, "READY=1 again")
    reloading = next(each for each in manager.heard if each.get("RELOADING") == "1")
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert before <= int(reloading["MONOTONIC_USEC"]) <= after
    assert gateway.stop() == 0
    assert manager.has("STOPPING") == 1
    assert not manager.has("WATCHDOG")  # nobody asked for it


def test_the_watchdog_is_not_fed_while_a_worker_hangs(
    manager: Manager, start: StartGateway
) -> None:
    gateway = start(
        server="workers = 2",
        budgets=ROOMY,
        env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "1000000"},
    )
    wait_for(lambda: manager.has("WATCHDOG") > 3, "a fed watchdog")
    victim = workers(gateway)[0]["pid"]
    os.kill(victim, signal.SIGSTOP)
    try:
        time.sleep(1)  # two half-intervals: what was alive then does not count any more
        fed = manager.has("WATCHDOG")
        time.sleep(1)
        assert manager.has("WATCHDOG") == fed
        # the operator's port goes on, with what the worker said last
        assert request(gateway.admin_port, "GET", "/healthz/live")[0] == 200
        assert b"fastgw_workers" in request(gateway.admin_port, "GET", "/metrics")[2]
        assert len(workers(gateway)) == 2
    finally:
        os.kill(victim, signal.SIGCONT)
    fed = manager.has("WATCHDOG")
    wait_for(lambda: manager.has("WATCHDOG") > fed + 3, "a fed watchdog again")


def test_a_watchdog_for_another_process_is_not_ours(manager: Manager, start: StartGateway) -> None:
    env = {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1", "NOTIFY_SOCKET": manager.address}
    start(budgets=ROOMY, env=env)
    wait_for(lambda: manager.has("READY") == 1, "READY=1")
    time.sleep(0.5)
    assert not manager.has("WATCHDOG")


def test_one_worker_feeds_the_watchdog_itself(manager: Manager, start: StartGateway) -> None:
    env = {"WATCHDOG_USEC": "400000", "NOTIFY_SOCKET": manager.address}
    gateway = start(budgets=ROOMY, env=env)
    wait_for(lambda: manager.has("WATCHDOG") > 3, "a fed watchdog")
    os.kill(gateway.child.pid, signal.SIGSTOP)
    time.sleep(0.3)
    fed = manager.has("WATCHDOG")
    time.sleep(0.5)
    assert manager.has("WATCHDOG") == fed
    os.kill(gateway.child.pid, signal.SIGCONT)
    wait_for(lambda: manager.has("WATCHDOG") > fed, "a fed watchdog again")


def hand_over(arguments: list[str], sockets: list[socket.socket], names: str) -> list[str]:
    """A command that has these sockets as file descriptors 3 and on, as systemd passes them."""
    code = (
        "import os, sys\n"
        f"for at, number in enumerate({[sock.fileno() for sock in sockets]}):\n"
        "    os.dup2(number, 103 + at)\n"
        f"for at in range({len(sockets)}):\n"
        "    os.dup2(103 + at, 3 + at); os.close(103 + at)\n"
        f"os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='{len(sockets)}',"
        f" LISTEN_FDNAMES='{names}')\n"
        f"os.execv(sys.executable, [sys.executable, *{arguments!r}])\n"
    )
    return [sys.executable, "-c", code]


def listening(family: int, address: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind(address)  # type: ignore[arg-type]
    sock.listen(128)
    return sock


def configure(folder: Path, port: int, provider: int, server: str = "workers = 2") -> None:
    """gateway.toml in that folder."""
    text = MINIMAL.format(port=port, store=f"sqlite:{folder}/budgets.db")
    text = text.replace("workers = 2", server).replace(":9", f":{provider}/v1")
    (folder / "gateway.toml").write_text(text + f'[[keys]]\nname = "alice"\nkey = "{ALICE}"\n')


@both
def test_passed_sockets_win_over_listen(provider: Provider, tmp_path: Path, server: str) -> None:
    data = listening(socket.AF_INET, ("127.0.0.1", 0))
    unix = listening(socket.AF_UNIX, str(tmp_path / "data.sock"))
    admin = listening(socket.AF_INET, ("127.0.0.1", 0))
    admin_port = admin.getsockname()[1]
    configure(tmp_path, 1, provider.port, server)
    arguments = ["-m", "fastgw", "serve", "--config", "gateway.toml"]
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(
            hand_over(arguments, [data, admin, unix], "data:admin:more"),
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            pass_fds=[sock.fileno() for sock in (data, admin, unix)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        ready = (admin_port, "GET", "/healthz/ready")
        wait_for(lambda: child.poll() is not None or request(*ready)[0] == 200, "ready")
        assert child.poll() is None, (tmp_path / "log").read_text()
        for family, address in (
            (socket.AF_INET, data.getsockname()),
            (socket.AF_UNIX, str(tmp_path / "data.sock")),
        ):
            for _ in range(5):
                with socket.socket(family) as client:
                    client.settimeout(20)
                    client.connect(address)
                    client.sendall(stream_head(ALICE, "events=1"))
                    assert b"[DONE]" in read_all(client)
        child.terminate()
        assert child.wait(20) == 0
    finally:
        if child.poll() is None:
            child.kill()
            child.wait(20)
        for sock in (data, unix, admin):
            sock.close()
    assert (tmp_path / "data.sock").exists()  # not ours to remove


def test_a_passed_file_that_is_no_socket_is_said(tmp_path: Path) -> None:
    configure(tmp_path, free_port(), 9)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ended = subprocess.run(
        hand_over(["-m", "fastgw", "serve", "--config", "gateway.toml"], [datagram], ""),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        pass_fds=[datagram.fileno()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    datagram.close()
    assert ended.returncode == 1
    assert "file descriptor 3 of LISTEN_FDS is no listening stream socket" in ended.stderr
    assert "Traceback" not in ended.stderr


needs_activate = pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="no systemd-socket-activate"
)


@needs_activate
def test_systemd_socket_activate(provider: Provider, tmp_path: Path) -> None:
    port, admin_port = free_port(), free_port()
    configure(tmp_path, 1, provider.port)
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(
            [
                "systemd-socket-activate",
                *("-l", f"127.0.0.1:{port}", "-l", f"127.0.0.1:{admin_port}"),
                *("--fdname", "data:admin", "-E", f"PYTHONPATH={ROOT}"),
                *(sys.executable, "-m", "fastgw", "serve", "--config", "gateway.toml"),
            ],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
        )
    try:

        def answer() -> bytes:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                    client.sendall(stream_head(ALICE, "events=1"))
                    return read_all(client)
            except OSError:
                return b""  # it does not listen yet

        wait_for(lambda: b"[DONE]" in answer(), "an answer, the first connection starts it")
        assert request(admin_port, "GET", "/healthz/ready")[0] == 200
    finally:
        child.terminate()
        assert child.wait(20) == 0, (tmp_path / "log").read_text()


needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze"
)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )


@needs_analyze
def test_the_units_are_sound(tmp_path: Path) -> None:
    for name in ("fastgw.service", "fastgw.socket"):
        text = (DEPLOY / name).read_text().replace("/opt/fastgw/bin/fastgw", sys.executable)
        (tmp_path / name).write_text(text)
    found = analyze("verify", str(tmp_path / "fastgw.service"), str(tmp_path / "fastgw.socket"))
    assert (found.returncode, found.stdout) == (0, "")


@needs_analyze
def test_the_service_is_shut_in() -> None:
    found = analyze("security", "--offline=true", "--threshold=20", str(DEPLOY / "fastgw.service"))
    assert found.returncode == 0, found.stdout


@both
def test_the_credential_that_the_unit_loads_is_read(
    provider: Provider, tmp_path: Path, server: str
) -> None:
    """As systemd starts it: nothing but PATH and the folder of credentials in the environment, and
    the setting that the unit and its page name. A reload reads the file again."""
    unit = (DEPLOY / "fastgw.service").read_text()
    loaded = re.search(r"^LoadCredential=(\S+):/etc/fastgw/(\S+)$", unit, re.MULTILINE)
    setting = re.search(r"^#   api_key_file = (.+)$", unit, re.MULTILINE)
    assert loaded is not None
    assert setting is not None
    assert loaded[1] == loaded[2]
    assert setting[1] == f'"${{CREDENTIALS_DIRECTORY:-/etc/fastgw}}/{loaded[1]}"'
    page = " ".join((ROOT / "docs/operations.md").read_text().split())
    assert f"`api_key_file = {setting[1]}`" in page
    port = free_port()
    configure(tmp_path, port, provider.port, server)
    config = tmp_path / "gateway.toml"
    name = '[[upstreams]]\nname = "stub"\n'
    text = config.read_text()
    assert name in text
    config.write_text(text.replace(name, f"{name}api_key_file = {setting[1]}\n"))
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / loaded[1]).write_text("sk-of-the-unit\n")
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "CREDENTIALS_DIRECTORY": str(credentials),
    }
    arguments = [sys.executable, "-m", "fastgw", "check", "--config", "gateway.toml"]
    checked = subprocess.run(
        arguments, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=env
    )
    assert checked.returncode == 0, checked.stderr
    assert "sk-of" not in checked.stdout + checked.stderr
    arguments[3] = "serve"
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=tmp_path, env=env)

    def sends(credential: bytes) -> bool:
        assert child.poll() is None, (tmp_path / "log").read_text()
        body = orjson.dumps({"model": "m", "messages": []})
        try:
            if request(port, "POST", "/openai", body, {"x-api-key": ALICE})[0] != 200:
                return False
        except OSError:
            return False  # it does not listen yet
        return b"Bearer %b\r\n" % credential in provider.last()

    try:
        wait_for(lambda: sends(b"sk-of-the-unit"), "the credential at the provider")
        (credentials / loaded[1]).write_text("sk-of-later\n")
        child.send_signal(signal.SIGHUP)
        wait_for(lambda: sends(b"sk-of-later"), "the new credential at the provider")
        (credentials / loaded[1]).unlink()
        child.send_signal(signal.SIGHUP)
        wait_for(
            lambda: (
                "[[upstreams]] api_key_file: the file cannot be read: no such file"
                in (tmp_path / "log").read_text()
            ),
            "a reload that fails",
        )
        assert sends(b"sk-of-later")
        child.terminate()
        assert child.wait(20) == 0
    finally:
        if child.poll() is None:
            child.kill()
            child.wait(20)
    assert "sk-of" not in (tmp_path / "log").read_text()


MDWE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    raise SystemExit(77)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_it_serves_without_writable_code(provider: Provider, tmp_path: Path) -> None:
    """MemoryDenyWriteExecute=, by the kernel's own switch where it has one (Linux 6.3)."""
    port = free_port()
    configure(tmp_path, port, provider.port)
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-c", MDWE, "-m", "fastgw", "serve", "--config", "gateway.toml"],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:

        def served() -> bool:
            if child.poll() is not None:
                return True
            try:
                body = orjson.dumps({"model": "m", "messages": []})
                headers = {"Authorization": f"Bearer {ALICE}"}
                return request(port, "POST", "/openai", body, headers)[0] == 200
            except OSError:
                return False

        wait_for(served, "an answer")
        if child.poll() == 77:
            pytest.skip("this kernel cannot refuse writable code")
        assert child.poll() is None, (tmp_path / "log").read_text()
        child.terminate()
        assert child.wait(20) == 0
    finally:
        if child.poll() is None:
            child.kill()
            child.wait(20)


def gateway_threads(gateway: Gateway) -> int:
    return len(list(Path(f"/proc/{gateway.child.pid}/task").iterdir()))


def test_waiting_costs_nothing(start: StartGateway) -> None:
    gateway = start(server="workers = 2", budgets=ROOMY)
    time.sleep(1)
    pids = [gateway.child.pid, *(worker["pid"] for worker in workers(gateway))]

    def cpu() -> float:
        return sum(
            sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
            for pid in pids
        ) / os.sysconf("SC_CLK_TCK")

    before = cpu()
    time.sleep(3)
    assert cpu() - before < 0.6  # of nine seconds; a loop that polls takes them all
    assert gateway_threads(gateway) < 12
