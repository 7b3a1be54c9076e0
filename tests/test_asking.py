"""Large bodies: kept until the answer is over where there is room, else counted at once; whatever
ends the exchange, the books of the memory are even."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson
import pytest

from bench.micro.exchange import CONFIG, Bench, answer, stream_pieces
from fastgw.inspection import KEEP_PROMPT
from fastgw.usage.request import HUGE

if TYPE_CHECKING:
    from collections.abc import Coroutine

CROWDED = CONFIG + '[server]\nmax_body_memory = "64KiB"\n'
"""8 KiB for bodies that are kept: none is."""
STRICT = CONFIG.replace("[[keys]]", '[[keys]]\nallowed_models = ["gpt-*"]')
STREAM = stream_pieces(3)
UNREPORTED = [*STREAM[:4], b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"]
SILENT = answer().replace(b'"usage"', b'"absent"')


def large(size: int = 2 * KEEP_PROMPT, stream: bool = False) -> bytes:
    """A request with a prompt of so many bytes."""
    message = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": ("A few words. " * (size // 13 + 1))[:size]}],
        "stream": stream,
    }
    body = orjson.dumps(message)
    return (
        b"POST /openai/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer sk-alice-abc123def456\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )


def body_of(sent: bytes) -> bytes:
    return sent.partition(b"\r\n\r\n")[2]


def run(coroutine: Coroutine[object, object, None]) -> None:
    asyncio.run(coroutine)


async def ask(bench: Bench, data: bytes, pieces: int = 1) -> None:
    """Send a request in so many reads, and wait until the provider has it."""
    bench.to_provider.written.clear()
    each = -(-len(data) // pieces)
    for at in range(0, len(data), each):
        bench.client.data_received(data[at : at + each])
    await bench.to_provider.written.wait()


def books(bench: Bench) -> tuple[int, int]:
    return bench.engine.held, bench.engine.kept


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("size", [2 * KEEP_PROMPT, HUGE + 1000])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("end", ["reported", "silent", "failed", "left", "cut", "refused"])
def test_the_books_are_even_whatever_ends_the_exchange(
    end: str, stream: bool, size: int, pieces: int
) -> None:
    async def main() -> None:
        bench = Bench()
        await bench.exchange(large(100), [answer()])  # the accounts are known
        data = large(size, stream)
        await ask(bench, data, pieces)
        kept = bench.engine.kept
        assert len(body_of(data)) <= kept <= len(body_of(data)) + 60, "kept, and what was added"
        assert bench.engine.held >= kept
        assert body_of(bench.to_provider.last).endswith(body_of(data)[-1000:])
        if end == "reported":
            got = STREAM if stream else [answer()]
        elif end == "silent":
            got = UNREPORTED if stream else [SILENT]
        elif end == "cut":
            got = STREAM[:3] if stream else [answer()[:-30]]
        elif end == "refused":
            got = [b"HTTP/1.1 400 No\r\nContent-Length: 4\r\n\r\nnope"]
        else:
            got = []
        for piece in got:
            assert books(bench) == (bench.engine.held, kept)
            bench.provider.data_received(piece)
        if end in ("failed", "cut"):
            bench.provider.connection_lost(None)
        elif end == "left":
            bench.client.connection_lost(None)
        assert bench.client.exchange is None
        assert books(bench) == (0, 0)
        await bench.close()

    run(main())


def test_a_prompt_is_kept_for_its_count_until_its_stream_is_over() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.exchange(large(100), [answer()])
        await ask(bench, large(stream=True))
        for piece in UNREPORTED[:3]:
            bench.provider.data_received(piece)
        exchange = bench.client.exchange
        assert exchange is not None
        kept = bench.engine.kept
        assert kept
        exchange.overdue(0.0)  # as once a second: roughly
        assert books(bench) == (bench.engine.held, kept)
        bench.provider.data_received(UNREPORTED[3])
        bench.provider.data_received(UNREPORTED[4])
        assert books(bench) == (0, 0)
        await bench.close()

    run(main())


def test_without_room_a_prompt_is_counted_at_once_and_let_go() -> None:
    found = []

    async def main(config: str, size: int) -> None:
        bench = Bench(config)
        await bench.exchange(large(100), [answer()])
        await ask(bench, large(size))
        assert bool(bench.engine.kept) == (config is CONFIG)
        bench.provider.data_received(SILENT)
        assert books(bench) == (0, 0)
        await bench.close()
        (account,) = [
            each for each in bench.ledger.accounts() if each.limit.name == "per-user-daily"
        ]
        found.append(account.count.used)

    for size in (2 * KEEP_PROMPT, HUGE + 1000):
        for config in (CONFIG, CROWDED):
            run(main(config, size))
        assert found[-1] == found[-2]


def test_what_nobody_will_ask_for_is_not_kept() -> None:
    async def main() -> None:
        bench = Bench(STRICT.replace('upstream = "stub"', 'upstream = "stub"\nbudgets = false'))
        await ask(bench, large())
        assert books(bench) == (0, 0)
        bench.provider.data_received(SILENT)
        assert books(bench) == (0, 0)
        await bench.close()

    run(main())


def test_all_that_are_kept_stay_below_the_bound() -> None:
    async def main() -> None:
        bench = Bench()
        await bench.exchange(large(100), [answer()])
        bench.engine.max_kept = 3 * KEEP_PROMPT
        before = bench.engine.kept = bench.engine.held = 2 * KEEP_PROMPT  # another exchange's
        await ask(bench, large())
        assert books(bench) == (before, before)
        bench.provider.data_received(answer())
        assert books(bench) == (before, before)
        await ask(bench, large(KEEP_PROMPT - 100))
        assert books(bench) == (before, before), "of a small one nothing is counted"
        await bench.close()

    run(main())


@pytest.mark.parametrize("each", [2, 1000])
def test_a_body_in_small_pieces_is_held_at_what_they_take(
    each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is an object: 32 MiB in pieces of two bytes would be a GB."""

    async def main() -> None:
        bench = Bench(CROWDED)
        await bench.exchange(large(100), [answer()])
        monkeypatch.setattr(bench.to_client, "can_write_eof", lambda: False, raising=False)
        head, end, body = large(4000).partition(b"\r\n\r\n")
        bench.client.data_received(head + end)
        for at in range(0, len(body), each):
            bench.client.data_received(body[at : at + each])
        if each == 2:
            assert bench.to_client.last.startswith(b"HTTP/1.1 503 ")
        else:
            assert body_of(bench.to_provider.last) == body
            bench.provider.data_received(answer())
        assert books(bench) == (0, 0)
        await bench.close()

    run(main())
