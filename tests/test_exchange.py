"""What an exchange tells the two connections that it stands between."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bench.micro.exchange import Bench, request, stream_pieces

if TYPE_CHECKING:
    import pytest


def test_a_client_that_was_full_before_the_provider_was_asked_pauses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of the answer before may be what fills it, when the next request waits for the store
    or for a connection."""

    async def main() -> None:
        bench = Bench()
        reading = []
        monkeypatch.setattr(bench.to_provider, "pause_reading", lambda: reading.append(False))
        monkeypatch.setattr(bench.to_provider, "resume_reading", lambda: reading.append(True))
        bench.client.data_received(request(stream=True))
        bench.client.pause_writing()
        assert not bench.to_provider.written.is_set(), "it waits for the store"
        await bench.to_provider.written.wait()
        head, *events = stream_pieces(3)
        bench.provider.data_received(head)
        assert reading == [False]
        bench.client.resume_writing()
        assert reading == [False, True]
        for piece in events:
            bench.provider.data_received(piece)
        assert bench.client.exchange is None
        assert reading == [False, True]
        await bench.close()

    asyncio.run(main())
