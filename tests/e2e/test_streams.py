"""A thousand streams at once through one worker: every byte, every token."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from tests.processes import ALICE, BOB, PER_USER, request, settled

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway
    from tests.processes import Provider

STREAMS = 1000
EVENTS = 60
STUB = f"events={EVENTS};pace=0.02;pad=40"  # 50 events a second each
MESSAGE = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}


async def stream(
    port: int, path: str, key: str, turn: asyncio.Semaphore, message: dict[str, Any]
) -> bytes:
    """One streamed chat completion: the body with its chunks taken apart."""
    body = orjson.dumps(message)
    async with turn:  # so many connects at once, as a listen queue bears
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    lines = [f"POST {path} HTTP/1.1", "Host: a", f"Authorization: Bearer {key}", f"x-stub: {STUB}"]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    writer.write("\r\n".join(lines).encode() + body)
    try:
        data = await reader.readuntil(b"\r\n0\r\n\r\n")
    finally:
        writer.close()
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    out = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert rest == b"\r\n"
            return out
        out += rest[:length]
        assert rest[length : length + 2] == b"\r\n"
        rest = rest[length + 2 :]


@pytest.mark.slow
def test_a_thousand_streams(start: StartGateway, provider: Provider) -> None:
    gateway = start(budgets=PER_USER.format(limit=10_000_000))

    async def main() -> tuple[bytes, list[bytes]]:
        turn = asyncio.Semaphore(200)
        # straight from the provider, asked for its usage as the gateway asks
        asking = {**MESSAGE, "stream_options": {"include_usage": True}}
        direct = await stream(provider.port, "/v1/chat/completions", "x", turn, asking)
        return direct, await asyncio.gather(
            *(
                stream(gateway.port, "/openai", (ALICE, BOB)[number % 2], turn, MESSAGE)
                for number in range(STREAMS)
            )
        )

    direct, bodies = asyncio.run(main())
    events = direct.split(b"\n\n")
    extra = [event for event in events if b'"choices":[],"usage":{' in event]
    assert len(extra) == 1
    expected = b"\n\n".join(event for event in events if event not in extra)
    assert expected.count(b"data: ") >= EVENTS + 1
    wrong = [body for body in bodies if body != expected]
    assert not wrong, wrong[0]
    settled(gateway)
    each = 10 + EVENTS
    assert gateway.used("alice") == gateway.used("bob") == STREAMS // 2 * each
    metrics = gateway.metrics()
    assert f'usage_source_total{{source="reported"}} {float(STREAMS)}' in metrics
    assert all(entry["reason"] == "ok" for entry in gateway.access_log())
    assert len(gateway.access_log()) == STREAMS
    # nothing is left of them
    status = gateway.api("/api/status")
    assert (status["connections"], status["exchanges"]) == (0, 0)
    assert request(gateway.admin_port, "GET", "/healthz/ready")[0] == 200
