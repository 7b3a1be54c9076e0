"""Connections and deadlines by themselves; topologies are in test_sentinel and test_cluster."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trustme
from redis.exceptions import ResponseError

from fastgw.config.redis_url import parse_redis_url
from fastgw.errors import StoreUnavailable
from fastgw.store.link import Call, Script, Wire, code, first, reason, single, within
from tests.redis_server import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.redis_server import RedisServer

ECHO = Script("return {unpack(KEYS)}")


def echo(prefix: str, lines: Sequence[int]) -> Call:
    return Call([f"{prefix}{line}" for line in lines], [])


def wire(server: RedisServer) -> Wire:
    url = parse_redis_url(server.url)
    return Wire(url, url.hosts[0])


def clients(server: RedisServer) -> int:
    """Connections that the server has, the one that asks among them."""
    return len(str(server.ask("CLIENT", "LIST")).splitlines())


def test_calls_at_the_same_time_each_get_their_own_answer(redis_server: RedisServer) -> None:
    async def main() -> None:
        link = single(parse_redis_url(redis_server.url), 5.0)

        async def ask(number: int) -> None:
            accounts = ["x"] * (number + 1)
            [(lines, values)] = await link.evaluate(
                ECHO, accounts, lambda lines: echo(f"{number}-", lines)
            )
            assert values == [f"{number}-{line}" for line in lines]
            assert len(values) == len(accounts)

        await asyncio.gather(*(ask(number) for number in range(20)))
        assert clients(redis_server) == 2  # the link, and who asks
        await link.close()

    asyncio.run(main())


def test_an_error_in_step_breaks_nothing(redis_server: RedisServer) -> None:
    async def main() -> None:
        one = wire(redis_server)
        replies = await one.exchange(("SET", "a", 1), ("LPUSH", "a", 1), ("GET", "a"))
        assert replies[0] == "OK"
        assert isinstance(replies[1], ResponseError)
        assert code(replies[1]) == "WRONGTYPE"
        assert replies[2] == "1"
        before = await one.exchange(("CLIENT", "ID"))
        assert await one.exchange(("CLIENT", "ID")) == before
        await one.drop()
        assert await one.exchange(("CLIENT", "ID")) != before
        await one.drop()

    asyncio.run(main())


def test_a_retired_wire_ends_the_exchange_under_way_and_is_closed(
    redis_server: RedisServer,
) -> None:
    async def main() -> None:
        one = wire(redis_server)
        await one.exchange(("PING",))
        redis_server.freeze()
        asked = asyncio.ensure_future(one.exchange(("ECHO", "x")))
        await asyncio.sleep(0)
        await one.retire()
        redis_server.thaw()
        assert await asked == ["x"]
        await asyncio.sleep(0)
        assert clients(redis_server) == 1  # who asks

    asyncio.run(main())


def test_a_server_that_accepts_and_says_nothing_costs_the_deadline() -> None:
    async def main() -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            link = single(parse_redis_url(f"redis://:x@127.0.0.1:{silent.getsockname()[1]}"), 0.2)
            for verb in (link.open(), link.evaluate(ECHO, ["x"], lambda lines: echo("", lines))):
                with pytest.raises(StoreUnavailable, match=r"longer than 0\.2 s"):
                    async with asyncio.timeout(10):
                        await verb
            await link.close()

    asyncio.run(main())


@pytest.mark.parametrize("rubbish", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*1\r\n$x\r\n", b""])
def test_a_server_that_speaks_something_else(rubbish: bytes) -> None:
    async def main() -> None:
        def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(rubbish)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        link = single(parse_redis_url(f"redis://:hunter2@127.0.0.1:{port}"), 5.0)
        with pytest.raises(StoreUnavailable) as failure:
            await link.open()
        assert "hunter2" not in repr(failure.value)
        await link.close()
        server.close()
        await server.wait_closed()

    asyncio.run(main())


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for 127.0.0.1, and the file of its authority."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return context, path


def test_tls_is_verified_and_has_its_deadline(
    redis_server: RedisServer, certificates: tuple[ssl.SSLContext, Path]
) -> None:
    context, authority = certificates

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection("127.0.0.1", redis_server.port)

        async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    target.write(data)
            target.close()

        await asyncio.gather(copy(reader, inner[1]), copy(inner[0], writer))

    async def main() -> None:
        server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]

        async def ask(host: str, options: str) -> str:
            url = f"rediss://:{PASSWORD}@{host}:{port}/0{options}"
            link = single(parse_redis_url(url), 1.0)
            try:
                await link.evaluate(ECHO, ["x"], lambda lines: echo("", lines))
            except StoreUnavailable as error:
                return repr(error)
            finally:
                await link.close()
            return "fine"

        trusted = f"?ssl_ca_certs={authority}"
        assert await ask("127.0.0.1", trusted) == "fine"
        assert "not trusted" in await ask("127.0.0.1", "")
        assert "for another name" in await ask("localhost", trusted)
        assert await ask("localhost", f"{trusted}&ssl_check_hostname=false") == "fine"
        assert await ask("localhost", "?ssl_cert_reqs=none") == "fine"
        assert "a file that the URL names" in await ask("127.0.0.1", "?ssl_ca_certs=/no/such")
        redis_server.freeze()
        async with asyncio.timeout(10):
            assert "longer than 1.0 s" in await ask("127.0.0.1", trusted)
        redis_server.thaw()
        server.close()
        await asyncio.sleep(0.1)

    asyncio.run(main())


def test_first_takes_who_succeeds_first_and_cancels_the_rest() -> None:
    cancelled = []

    async def fails() -> str:
        raise StoreUnavailable("no")

    async def works(name: str) -> str:
        await asyncio.sleep(0)
        return name

    async def never() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(1)
            raise
        return ""

    async def main() -> None:
        assert await first([fails(), never(), works("a"), works("b")]) == "a"
        assert cancelled == [1]
        with pytest.raises(StoreUnavailable, match="no"):
            await first([fails(), fails()])
        with pytest.raises(StoreUnavailable, match="longer"):
            await within(0.05, first([fails(), never()]))
        assert cancelled == [1, 1]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("READONLY You can't write against a read only replica.", "READONLY: "),
        ("ERR Error running script (call to f_1): @user_script:32: -OOM command", "OOM: "),
        ("ERR user_script:32: MISCONF Redis is configured to save script: 1", "MISCONF: "),
        ("ERR DB index is out of range", "the database of the URL does not exist"),
        ("ERR something else", "the server answered with an error"),
        ("READONLYX hunter2", "the server answered with an error"),
    ],
)
def test_reasons(text: str, words: str) -> None:
    assert reason(ResponseError(text)).startswith(words)
