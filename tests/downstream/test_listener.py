"""Listening sockets as an operator names them, and what stands behind them."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme

from fastgw.config.tables import Server
from fastgw.downstream.listener import bind, name_of, serve, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Greets(asyncio.Protocol):
    """Says hello to whom the listener lets in."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", pytest.param("[::1]", marks=needs_ipv6),
             pytest.param("[::]", marks=needs_ipv6)],
)  # fmt: skip
def test_a_name_binds_and_reads_back_as_it_would_be_written(host: str) -> None:
    with bind(f"{host}:0") as sock:
        name = name_of(sock)
        assert name == f"{host}:{sock.getsockname()[1]}"
        assert not sock.getblocking()
        with pytest.raises(OSError):
            bind(name)  # taken: an error, not a second listener that gets half of the clients
    with bind(name) as sock:
        assert name_of(sock) == name


@needs_ipv6
@pytest.mark.parametrize(("host", "both"), [("[::]", True), ("[::1]", False)])
def test_the_v6_wildcard_takes_ipv4_clients_too(host: str, both: bool) -> None:
    with bind(f"{host}:0") as sock, socket.socket() as client:
        address = ("127.0.0.1", sock.getsockname()[1])
        if both:
            client.connect(address)
        else:
            with pytest.raises(ConnectionRefusedError):
                client.connect(address)


def test_a_unix_path_of_a_dead_process_is_taken_over_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    name = f"unix:{path}"
    with bind(name) as sock:
        assert name_of(sock) == name
        with pytest.raises(OSError):
            bind(name)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))  # still the first one's
    assert path.exists()
    with bind(name), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    path.unlink()
    path.write_text("not ours to delete")
    with pytest.raises(OSError):
        bind(name)
    assert path.read_text() == "not ours to delete"


def test_a_failed_bind_says_where_and_leaves_no_socket_open(tmp_path: Path) -> None:
    with bind("127.0.0.1:0") as sock:
        before = os.listdir("/proc/self/fd")
        for name in (name_of(sock), f"unix:{tmp_path}/none/x.sock", f"unix:{tmp_path}"):
            with pytest.raises(OSError, match=re.escape(f"cannot listen on {name}: ")):
                bind(name)
        assert os.listdir("/proc/self/fd") == before


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server(authority: trustme.CA, tmp_path: Path) -> Server:
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return Server(tls_cert=str(cert), tls_key=str(key))


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def nothing(writer: asyncio.StreamWriter) -> None: ...


async def hears(
    sock: socket.socket,
    tls: ssl.SSLContext | None,
    client: ssl.SSLContext | None,
    look: Callable[[asyncio.StreamWriter], None] = nothing,
) -> bytes:
    """What a client of this listener hears; `look` sees its side of the connection."""
    listener = await serve(sock, Greets, tls, 5.0)
    try:
        async with asyncio.timeout(10):
            if sock.family == socket.AF_UNIX:
                reader, writer = await asyncio.open_unix_connection(sock.getsockname())
            else:
                reader, writer = await asyncio.open_connection(*sock.getsockname()[:2], ssl=client)
            look(writer)
            if client is None and tls is not None:
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            heard = await reader.read()
            writer.close()
            return heard
    finally:
        listener.close()
        await listener.wait_closed()


def test_plain_clients_are_served(tmp_path: Path) -> None:
    for name in ("127.0.0.1:0", f"unix:{tmp_path}/a.sock"):
        assert tls_context(Server()) is None
        assert asyncio.run(hears(bind(name), None, None)) == b"hello"


def test_tls_clients_are_served_in_http_1_1(authority: trustme.CA, server: Server) -> None:
    """A client that would rather speak h2 is told that only HTTP/1.1 is spoken (RFC 7301)."""
    client = trusting(authority)
    client.set_alpn_protocols(["h2", "http/1.1"])

    def look(writer: asyncio.StreamWriter) -> None:
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"

    heard = asyncio.run(hears(bind("127.0.0.1:0"), tls_context(server), client, look))
    assert heard == b"hello"


def test_plain_bytes_never_reach_what_is_behind_tls(server: Server) -> None:
    heard = asyncio.run(hears(bind("127.0.0.1:0"), tls_context(server), None))
    assert b"hello" not in heard


def test_old_versions_of_tls_are_refused(server: Server) -> None:
    context = tls_context(server)
    assert context is not None
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_certificate_that_cannot_be_read_is_an_error(server: Server, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        tls_context(Server(tls_cert=str(tmp_path / "none.pem"), tls_key=server.tls_key))
    with pytest.raises(ssl.SSLError):
        tls_context(Server(tls_cert=server.tls_cert, tls_key=server.tls_cert))


def test_a_handshake_that_does_not_come_is_not_waited_for(server: Server) -> None:
    async def run() -> None:
        listener = await serve(bind("127.0.0.1:0"), Greets, tls_context(server), 0.05)
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
                assert await reader.read() == b""
                writer.close()
        finally:
            listener.close()

    asyncio.run(run())
