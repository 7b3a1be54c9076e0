"""The admin port over real sockets: who may see what, and what a bad client gets."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastgw.admin import server
from fastgw.admin.client import fetch
from fastgw.admin.server import AdminServer, Views
from fastgw.config.tables import Admin
from fastgw.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

TOKEN = "s3cret-token"


async def _metrics() -> bytes:
    return b"# HELP up x\n"


async def _status() -> dict[str, Any]:
    return {"version": "1"}


async def _budgets() -> list[dict[str, Any]]:
    return [{"budget": "daily", "used": 19}]


async def _broken() -> bytes:
    raise RuntimeError("no numbers today")


@asynccontextmanager
async def running(
    token: str = TOKEN, *, listen: str = "127.0.0.1:0", ready: bool = True, broken: bool = False
) -> AsyncIterator[AdminServer]:
    views = Views(
        metrics=_broken if broken else _metrics,
        ready=lambda: (ready, "ready" if ready else "draining"),
        status=_status,
        budgets=_budgets,
    )
    admin = AdminServer(listen, token, views)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def talk(admin: AdminServer, data: bytes) -> bytes:
    """Send bytes, end the sending side, return all that comes."""
    if admin.address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(admin.address[5:])
    else:
        host, _, port = admin.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *headers, "", ""]).encode()


AUTHORISED = f"Authorization: Bearer {TOKEN}"


@pytest.mark.parametrize(
    ("request_bytes", "status", "holds"),
    [
        (get("/metrics"), 200, b"# HELP up x\n"),
        (get("/metrics?name=x"), 200, b"# HELP up x\n"),
        (get("/healthz/live"), 200, b"live"),
        (get("/healthz/ready"), 200, b"ready"),
        (get("/api/status", AUTHORISED), 200, b'{"version":"1"}'),
        (get("/api/status", f"authorization:   bearer   {TOKEN}"), 200, b"version"),
        (get("/api/budgets", AUTHORISED), 200, b'"used":19'),
        (get("/api/budgets"), 401, b"invalid_token"),
        (get("/api/budgets", "Authorization: Bearer wrong"), 401, b"invalid_token"),
        (get("/api/budgets", f"Authorization: Basic {TOKEN}"), 401, b"invalid_token"),
        (get("/api/budgets", "Authorization: Bearer"), 401, b"invalid_token"),
        (get("/api/budgets", AUTHORISED, AUTHORISED), 401, b"invalid_token"),
        (get("/api/budgets", AUTHORISED, method="DELETE"), 405, b"method_not_allowed"),
        (get("/metrics", method="POST"), 405, b"method_not_allowed"),
        (get("/nothing"), 404, b"not_found"),
        (get("/metrics/"), 404, b"not_found"),
        (get("/metrics", "Content-Length: 3") + b"abc", 413, b"body_too_large"),
        (get("/metrics", "Content-Length: x"), 400, b"malformed_request"),
        (b"nonsense\r\n\r\n", 400, b"malformed_request"),
        (get("/metrics", "X: " + "y" * 200_000), 431, b"malformed_request"),
    ],
)
def test_answers(request_bytes: bytes, status: int, holds: bytes) -> None:
    async def main() -> None:
        async with running() as admin:
            answer = await talk(admin, request_bytes)
            assert answer.startswith(b"HTTP/1.1 %d" % status), answer
            assert holds in answer
            assert TOKEN.encode() not in answer
            assert b"cache-control: no-store" in answer

    asyncio.run(main())


def test_without_a_token_configured_the_api_is_off() -> None:
    async def main() -> None:
        async with running("") as admin:
            assert b"404" in await talk(admin, get("/api/budgets", "Authorization: Bearer "))
            assert b"200" in await talk(admin, get("/metrics"))

    asyncio.run(main())


def test_not_ready_is_503() -> None:
    async def main() -> None:
        async with running(ready=False) as admin:
            answer = await talk(admin, get("/healthz/ready"))
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"draining" in answer

    asyncio.run(main())


def test_a_view_that_fails_is_500_and_tells_only_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with running(broken=True) as admin:
            answer = await talk(admin, get("/metrics"))
            assert answer.startswith(b"HTTP/1.1 500")
            assert b"no numbers" not in answer

    asyncio.run(main())
    assert "no numbers today" in caplog.text


@pytest.mark.parametrize("path", ["/api/budgets", "/api/usage"])
def test_a_store_that_is_away_is_no_fault_of_ours(
    caplog: pytest.LogCaptureFixture, path: str
) -> None:
    async def away(*_: Any) -> list[dict[str, Any]]:
        raise StoreUnavailable("Redis: cannot connect")

    async def main() -> None:
        views = Views(_metrics, lambda: (True, "ready"), _status, away, away)
        admin = AdminServer("127.0.0.1:0", TOKEN, views)
        await admin.start()
        answer = await talk(admin, get(path, AUTHORISED))
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"store_unavailable" in answer
        assert b"retry-after: 1\r\n" in answer
        with pytest.raises(OSError, match="store is away"):
            await asyncio.to_thread(fetch, Admin(listen=admin.address, token=TOKEN), path)
        await admin.close()

    asyncio.run(main())
    assert [(each.getMessage(), each.exc_info) for each in caplog.records] == [
        (f"admin: {path}: store away: Redis: cannot connect", None)
    ] * 2


def test_keep_alive_pipelining_and_head() -> None:
    async def main() -> None:
        async with running() as admin:
            answer = await talk(
                admin, get("/metrics", method="HEAD") + get("/healthz/live") + get("/metrics")
            )
            assert answer.count(b"HTTP/1.1 200") == 3
            assert answer.count(b"# HELP up x") == 1

    asyncio.run(main())


def test_too_many_connections_are_closed_and_others_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)

    async def main() -> None:
        async with running() as admin:
            host, _, port = admin.address.rpartition(":")
            held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
            await asyncio.sleep(0.05)
            reader, writer = await asyncio.open_connection(host, int(port))
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
            held[0][1].write(get("/healthz/live"))
            assert b"live" in await asyncio.wait_for(held[0][0].readuntil(b"}"), 10)
            # it waits for a next request now, and gives way
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(get("/healthz/ready"))
            assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"}"), 10)
            assert await asyncio.wait_for(held[0][0].read(), 10) == b""
            for _, each in (*held, (reader, writer)):
                each.close()

    asyncio.run(main())


def test_a_head_that_never_ends_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_TIMEOUT", 0.2)

    async def main() -> None:
        async with running() as admin:
            host, _, port = admin.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"GET /metrics HT")
            assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()

    asyncio.run(main())


def test_a_unix_socket_is_private_and_replaced_when_stale(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"

    async def main() -> None:
        for _ in range(2):
            async with running(listen=f"unix:{path}") as admin:
                assert b"live" in await talk(admin, get("/healthz/live"))
                assert path.stat().st_mode & 0o777 == 0o600
        assert not path.exists()
        path.write_text("a file of somebody")
        with pytest.raises(OSError):
            async with running(listen=f"unix:{path}"):
                pass
        assert path.read_text() == "a file of somebody"

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_the_client_fetches(tmp_path: Path, kind: str) -> None:
    async def main() -> None:
        listen = "127.0.0.1:0" if kind == "tcp" else f"unix:{tmp_path}/admin.sock"
        async with running(listen=listen) as admin:

            def ask(token: str) -> Any:
                return fetch(Admin(listen=admin.address, token=token), "/api/budgets")

            assert await asyncio.to_thread(ask, TOKEN) == orjson.loads(
                b'[{"budget":"daily","used":19}]'
            )
            with pytest.raises(OSError, match="401") as failure:
                await asyncio.to_thread(ask, "wrong-token")
            assert "wrong-token" not in str(failure.value)
        with pytest.raises(OSError, match=r"running|No such file"):
            await asyncio.to_thread(ask, TOKEN)
        with pytest.raises(OSError, match=r"\[admin\]"):
            fetch(Admin(listen="", token=""), "/api/budgets")

    asyncio.run(main())
