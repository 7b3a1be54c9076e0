"""The stub's book: what went to the socket, and what did not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import uvloop

from fastgw.demo.behaviour import Behaviour
from fastgw.demo.provider import StubProvider
from fastgw.demo.stub_log import StubLog, said_by_body, said_by_events

if TYPE_CHECKING:
    from pathlib import Path


def request(stub: str = "", **more: Any) -> bytes:
    message = {"messages": [{"role": "user", "content": "Hello!"}], "user": "alice"} | more
    body = orjson.dumps(message)
    return (
        "POST /v1/chat/completions HTTP/1.1\r\nx-request-id: r\r\n"
        f"x-stub: {stub}\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def lines(folder: Path, data: bytes, read: int = 1 << 30, wait: float = 0.0) -> list[Any]:
    """What is written down of requests whose client reads so many bytes, waits and goes."""
    path = folder / "stub.jsonl"

    async def ask() -> None:
        provider = StubProvider(books=StubLog(str(path)))
        await provider.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", provider.port, limit=1024)
        writer.write(data)
        left = read
        with contextlib.suppress(TimeoutError):  # the connection is kept
            async with asyncio.timeout(0.3):
                while left and (part := await reader.read(left)):
                    left -= len(part)
        await asyncio.sleep(wait)
        writer.transport.abort()
        await asyncio.sleep(0.05)
        await provider.close()

    uvloop.run(ask())
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


ASKS: dict[str, Any] = {"stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("stub", "more", "expected"),
    [
        ("", {}, (True, 10, 9, True, 42, "done")),
        ("", {"stream": True} | ASKS, (True, 10, 9, True, 42, "done")),
        ("", {"stream": True}, (False, 0, 0, True, 42, "done")),
        ("usage=never", {}, (False, 0, 0, True, 42, "done")),
        ("usage=finish;prompt=3", {"stream": True}, (True, 3, 9, True, 42, "done")),
        ("fault=cut:3", {"stream": True} | ASKS, (False, 10, 9, False, 14, "cut")),
        ("fault=cut:11", {"stream": True} | ASKS, (True, 10, 9, False, 42, "cut")),
        ("fault=cut:30", {}, (False, 10, 9, False, 42, "cut")),
        ("fault=status:500", {}, (False, 0, 0, True, 0, "status")),
        ("fault=never", {}, (False, 0, 0, False, 0, "never")),
        ("split=20", {"stream": True} | ASKS, (True, 10, 9, True, 42, "done")),
        ("gzip=1", {"stream": True} | ASKS, (True, 10, 9, True, 42, "done")),
        ("framing=close", {}, (True, 10, 9, True, 42, "done")),
    ],
)
def test_what_was_told(
    tmp_path: Path, stub: str, more: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    (line,) = lines(tmp_path, request(stub, **more))
    names = ("reported", "input_tokens", "output_tokens", "whole", "text_bytes", "end")
    assert tuple(line[name] for name in names) == expected
    assert (line["request_id"], line["account"]) == ("r", "alice")
    assert set(line["prompt_counted"]) == {9}  # by every rule


def test_a_report_that_nobody_takes_is_not_told(tmp_path: Path) -> None:
    """Events of 64 KB fill the socket: the last are not with the kernel as the client goes."""
    (line,) = lines(tmp_path, request("events=400;pad=65536", stream=True, **ASKS), read=1000)
    assert (line["reported"], line["whole"], line["end"]) == (False, False, "client_closed")
    assert line["output_tokens"] == 400


def test_a_slow_reader_is_waited_for(tmp_path: Path) -> None:
    several = request("events=40;pad=65536", stream=True, **ASKS) + request()
    first, second = lines(tmp_path, several)
    assert first["reported"]
    assert first["whole"]
    assert second["whole"]


def test_who_leaves_midway_leaves_what_was_written(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, request("pace=0.05", stream=True, **ASKS), read=0, wait=0.12)
    assert 0 < line["events"] < 9
    assert 0 < line["text_bytes"] < 42
    assert (line["whole"], line["reported"], line["end"]) == (False, False, "client_closed")


def test_a_stream_tells_as_it_goes() -> None:
    said = said_by_events("chat", "m", Behaviour(events=3), True)
    assert [each.text_bytes for each in said] == [0, 6, 10, 14, 14, 14, 14]
    assert [each.reported for each in said] == [False] * 5 + [True, True]
    assert [each.text_counted[0] for each in said] == [0, 2, 3, 4, 4, 4, 4]  # by bytes
    for operation, size in (("responses", 14), ("completions", 14), ("embeddings", 0)):
        told = said_by_body(operation, "m", Behaviour(events=3))
        assert (told.reported, told.text_bytes) == (True, size)
