"""What systemd hands to a service and wants to hear: sockets, readiness, the watchdog.

The protocols of sd_listen_fds(3), sd_notify(3) and sd_watchdog_enabled(3); without systemd all of
it does nothing. The variables are taken out of the environment, so that no child answers for us.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from fastgw import clock

if TYPE_CHECKING:
    from collections.abc import MutableMapping

log = logging.getLogger(__name__)

FIRST_FD = 3
ADMIN = "admin"
"""FileDescriptorName= of the socket of the admin port; all others are the data port's."""


class Passed(NamedTuple):
    """The listening sockets that systemd opened for us."""

    data: tuple[socket.socket, ...]
    admin: socket.socket | None


def take_sockets(environ: MutableMapping[str, str] = os.environ) -> Passed:
    """The sockets that were passed to this process, none where they were meant for another.

    Raises OSError for one that is no listening stream socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if not count.isdigit() or pid != str(os.getpid()):
        return Passed((), None)
    data: list[socket.socket] = []
    admin: socket.socket | None = None
    for at in range(int(count)):
        number = FIRST_FD + at
        try:
            sock = socket.socket(fileno=number)
        except OSError as error:
            raise OSError(f"file descriptor {number} of LISTEN_FDS: {error.strerror}") from None
        sock.set_inheritable(False)
        stream = sock.type == socket.SOCK_STREAM
        if not stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(
                f"file descriptor {number} of LISTEN_FDS is no listening stream socket; "
                "use ListenStream= with Accept=no"
            )
        sock.setblocking(False)
        if at < len(names) and names[at] == ADMIN and admin is None:
            admin = sock
        else:
            data.append(sock)
    return Passed(tuple(data), admin)


class Notifier:
    """Tells the service manager how this process is. Without one it is silent."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        self._path = environ.pop("NOTIFY_SOCKET", "")
        self._socket: socket.socket | None = None
        self.watchdog = _watchdog(environ)
        """Seconds within which the service manager wants to hear of us; 0 = it does not."""

    def tell(self, *lines: str) -> None:
        """Send assignments such as READY=1. Never raises and never waits."""
        if not self._path:
            return
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
            self._socket.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            log.warning("cannot notify the service manager: %s", error.strerror)

    def ready(self, status: str) -> None:
        """Started, or done with a reload."""
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload began; `ready` ends it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={int(clock.monotonic() * 1e6)}")

    def stopping(self, status: str) -> None:
        """The end began."""
        self.tell("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """The watchdog's turn."""
        self.tell("WATCHDOG=1")

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _watchdog(environ: MutableMapping[str, str]) -> float:
    period, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if not period.isdigit() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(period) / 1e6
