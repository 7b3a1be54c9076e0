"""The channel between a supervisor and a worker: whole frames, in order, and the end is noticed."""

from __future__ import annotations

import asyncio
import pickle
import socket
from dataclasses import fields
from typing import Any

import orjson
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from fastgw.config.tables import Config, Key
from fastgw.control import Ask, Channel, Packed, Reload, Start, Stop


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


def test_a_configuration_is_the_same_at_the_other_end() -> None:
    """A setting of keys that is not packed would be lost to workers."""
    settings: dict[str, Any] = {
        "name": "alice",
        "digest": b"x" * 32,
        "previous_digest": b"y" * 32,
        "metadata": {"a": "b"},
        "allowed_models": ("gpt-*",),
        "allowed_ips": ("10.0.0.0/8",),
        "not_before": 1.5,
        "expires_at": 2.5,
        "disabled": True,
    }
    assert set(settings) == {field.name for field in fields(Key)}
    keys = (Key(**settings), *(Key(name=str(each)) for each in range(2500)))
    config = Config(keys=keys, digest="z")
    packed = Packed.of(config)
    assert len(packed.keys) == 3
    assert pickle.loads(pickle.dumps(packed)).config_again() == config


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
            Start("1", 2, 3, Packed.of(config), ("127.0.0.1:1",), (7,)),
            Reload(4, Packed.of(config)),
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
