"""The channel between a supervisor and a worker: whole frames, in order, and the end is noticed."""

from __future__ import annotations

import asyncio
import pickle
import socket

import orjson
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from fastgw.config.tables import Config, Key
from fastgw.control import Ask, Channel, Reload, Start, Stop


@given(st.lists(st.binary(max_size=300), max_size=10), st.lists(st.integers(1, 50), max_size=60))
def test_frames_come_whole_however_they_are_cut(frames: list[bytes], cuts: list[int]) -> None:
    came: list[bytes] = []
    channel = Channel(came.append, lambda: None)
    data = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    for cut in cuts:
        channel.data_received(data[:cut])
        data = data[cut:]
    if data:
        channel.data_received(data)
    assert came == frames


def test_orders_and_words_cross_and_the_end_is_noticed() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        up: list[bytes] = []
        down: list[bytes] = []
        ended = asyncio.Event()
        top = Channel(up.append, ended.set)
        all_came = asyncio.Event()

        def order_came(frame: bytes) -> None:
            down.append(frame)
            if len(down) == 4:
                all_came.set()

        bottom = Channel(order_came, lambda: None)
        await top.open(ours)
        await bottom.open(theirs)
        config = Config(keys=(Key(name="alice", digest=b"x" * 32, metadata={"a": "b"}),))
        orders: list[Start | Reload | Ask | Stop] = [
            Start("1", 2, 3, config, ("127.0.0.1:1",), (7,)),
            Reload(4, config),
            Ask(1, True),
            Stop(False),
        ]
        for order in orders:
            top.order(order)
        async with asyncio.timeout(10):
            await all_came.wait()
        bottom.say("end", numbers={"x": [((), [1.5])]}, unsettled=False)
        bottom.close()  # what was said before still comes
        async with asyncio.timeout(10):
            await ended.wait()
        assert [pickle.loads(frame) for frame in down] == orders
        assert [orjson.loads(frame) for frame in up] == [
            {"say": "end", "numbers": {"x": [[[], [1.5]]]}, "unsettled": False}
        ]
        top.order(Stop(True))  # to nobody: no harm
        top.close()

    uvloop.run(main())
