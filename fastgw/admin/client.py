"""Asks the admin port of a running gateway, for commands."""

from __future__ import annotations

import http.client
import socket
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from fastgw.config.tables import Admin

_TIMEOUT = 10.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)


def fetch(admin: Admin, path: str) -> Any:
    """GET `path` with the configured token; the JSON of a 200. Raises OSError otherwise, with a
    message that says what to do."""
    if not admin.listen or not admin.token:
        raise OSError("set [admin] listen and token: this is answered by the running gateway")
    connection: http.client.HTTPConnection
    if admin.listen.startswith("unix:"):
        connection = _UnixConnection(admin.listen.removeprefix("unix:"))
    else:
        host, _, port = admin.listen.rpartition(":")
        connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=_TIMEOUT)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {admin.token}"})
        answer = connection.getresponse()
        body = answer.read()
    except ConnectionRefusedError:
        raise OSError(f"no gateway answers on {admin.listen}; is it running?") from None
    finally:
        connection.close()
    if answer.status == 503:
        raise OSError(f"{admin.listen} answered 503: the store is away; its log says why")
    if answer.status != 200:
        raise OSError(f"{admin.listen} answered {answer.status}; is the token the same?")
    return orjson.loads(body)
