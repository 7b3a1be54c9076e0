"""Listening sockets of the data port: TCP, IPv6, unix; plain or TLS."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgw.config.tables import Server

BACKLOG = 4096


def bind(address: str, *, shared: bool = False) -> socket.socket:
    """A listening socket for "host:port", "[v6]:port" or "unix:/path". Raises OSError
    that says where, too.

    A unix path that a dead process left behind is taken over; one that answers is not. `shared`:
    other workers listen on the same port, the kernel deals new connections out among them.
    """
    try:
        if address.startswith("unix:"):
            return _bind_unix(address.removeprefix("unix:"))
        return _bind_tcp(address, shared, listens=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address}: {error.strerror}") from error


def _bind_tcp(address: str, shared: bool, *, listens: bool) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        sock.bind((host, int(port)))
        if listens:
            sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def reserve(address: str) -> socket.socket:
    """A socket that keeps a TCP port for workers that `bind` it as shared; it does not listen, so
    no connection is dealt to it. Port 0 picks a free one. Raises OSError where the port is taken:
    workers alone would join whoever of the same user shares it.
    """
    if not address.endswith(":0"):
        bind(address).close()
    return _bind_tcp(address, shared=True, listens=False)


def _bind_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            finally:
                probe.close()
        sock.bind(path)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def name_of(sock: socket.socket) -> str:
    """The address of a listening socket, as a setting would write it."""
    name = sock.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"


def tls_context(server: Server) -> ssl.SSLContext | None:
    """The TLS side of the data port, None for plain TCP. Raises OSError or ssl.SSLError."""
    if not server.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(server.tls_cert, server.tls_key)
    return context


async def serve(
    sock: socket.socket,
    factory: Callable[[], asyncio.Protocol],
    tls: ssl.SSLContext | None,
    handshake_timeout: float,
) -> asyncio.Server:
    """Accept connections on `sock`; each gets a protocol of `factory`, over TLS once its handshake
    is done, within `handshake_timeout` seconds."""
    loop = asyncio.get_running_loop()
    within = handshake_timeout if tls is not None else None
    if sock.family == socket.AF_UNIX:
        return await loop.create_unix_server(
            factory, sock=sock, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=within
        )
    return await loop.create_server(
        factory, sock=sock, ssl=tls, backlog=BACKLOG, ssl_handshake_timeout=within
    )
