"""Writes that wait for the end of a turn of the loop: in order, none lost, none overtaken."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest
import uvloop

from fastgw.turn import DIRECT, LOOK, TOGETHER, Outlet, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class Wire:
    """A transport that says what was asked of it, and in which order."""

    def __init__(self, said: list[Any], name: str = "") -> None:
        self._said = said
        self._name = name

    def write(self, data: bytes) -> None:
        self._said.append((self._name, len(data) if len(data) > DIRECT else data))

    def __getattr__(self, name: str) -> Any:
        def asked(*_: Any) -> int:
            self._said.append((self._name, name))
            return 0

        return asked


def outlet(turn: Turn, said: list[Any], name: str = "") -> Outlet:
    return Outlet(cast("asyncio.BaseTransport", Wire(said, name)), turn)


def run(of: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(of())


def test_a_turn_with_one_write_does_not_wait() -> None:
    async def one() -> None:
        turn, said = Turn(), list[Any]()
        wire = outlet(turn, said)
        for number in range(10 * LOOK):
            wire.write(b"%d" % number)
            assert said[-1] == ("", b"%d" % number)
            await asyncio.sleep(0)
        assert not turn.busy

    run(one)


def test_writes_of_a_busy_turn_leave_together_and_in_order() -> None:
    async def many() -> None:
        turn, said = Turn(), list[Any]()
        wires = [outlet(turn, said, str(name)) for name in range(5)]
        for _ in range(LOOK):
            for wire in wires:
                wire.write(b"x")
            await asyncio.sleep(0)
        assert turn.busy
        said.clear()
        for wire in (*wires, wires[0]):
            wire.write(b"y")
        assert not said
        await asyncio.sleep(0)
        assert said == [(name, b"y") for name in "012340"]

    run(many)


def test_quiet_turns_end_the_waiting() -> None:
    async def quiet() -> None:
        turn, said = Turn(), list[Any]()
        wire = outlet(turn, said)
        turn.busy = True
        for _ in range(LOOK + 1):
            wire.write(b"x")
            assert turn.busy
            await asyncio.sleep(0)
        wire.write(b"last")
        assert (turn.busy, said[-1]) == (False, ("", b"last"))

    run(quiet)


@pytest.mark.parametrize(
    "what", ["close", "abort", "write_eof", "get_write_buffer_size", "pause_reading"]
)
def test_nothing_overtakes_what_was_written(what: str) -> None:
    async def end() -> None:
        turn, said = Turn(), list[Any]()
        turn.busy = True
        wire = outlet(turn, said)
        outlet(turn, said, "other").write(b"first")
        wire.write(b"x")
        getattr(wire, what)()
        await asyncio.sleep(0)
        assert [each for each in said if each[0] == ""] == (
            [("", what), ("", b"x")] if what == "pause_reading" else [("", b"x"), ("", what)]
        )
        assert ("other", b"first") in said

    run(end)


def test_a_large_write_does_not_wait_and_overtakes_nothing() -> None:
    async def large() -> None:
        turn, said = Turn(), list[Any]()
        turn.busy = True
        wire = outlet(turn, said)
        wire.write(b"small")
        wire.write(bytes(DIRECT + 1))
        assert said == [("", b"small"), ("", DIRECT + 1)]

    run(large)


def test_the_first_of_very_many_does_not_wait_for_all() -> None:
    async def crowd() -> None:
        turn, said = Turn(), list[Any]()
        turn.busy = True
        wire = outlet(turn, said)
        for number in range(LOOK + 1):
            for _ in range(TOGETHER):
                wire.write(b"x")
            assert len(said) == (number + 1) * TOGETHER
            await asyncio.sleep(0)
        assert turn.busy

    run(crowd)


def test_a_write_that_fails_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        turn, said = Turn(), list[Any]()
        turn.busy = True

        def bad(data: bytes) -> None:
            raise (RuntimeError if data == b"closed" else ValueError)(data)

        for data in (b"closed", b"wrong"):
            turn.writes.append((bad, data))
        outlet(turn, said).write(b"good")
        await asyncio.sleep(0)
        turn.flush()
        assert said == [("", b"good")]

    run(fail)
    assert [each.message for each in caplog.records] == ["a write failed"]


def test_a_write_that_calls_back_keeps_the_order() -> None:
    async def back() -> None:
        turn, said = Turn(), list[Any]()
        turn.busy = True
        first, second = outlet(turn, said, "1"), outlet(turn, said, "2")

        def full(data: bytes) -> None:  # as pause_writing is called within a write
            said.append(("0", data))
            second.write(b"more")
            second.close()
            first.write(b"late")

        turn.writes.append((full, b"x"))
        first.write(b"y")
        second.write(b"z")
        await asyncio.sleep(0)
        assert said == [
            ("0", b"x"), ("1", b"y"), ("2", b"z"), ("2", b"more"), ("2", "close"), ("1", b"late"),
        ]  # fmt: skip
        assert not turn.writes

    run(back)


def test_what_comes_after_is_called_once_a_turn() -> None:
    async def after() -> None:
        turn, said = Turn(), list[Any]()
        turn.busy = True
        turn.after = lambda: said.append("after")
        for _ in range(3):
            outlet(turn, said).write(b"x")
        turn.flush()
        await asyncio.sleep(0)
        assert said == [("", b"x")] * 3 + ["after"]

    run(after)


def test_sockets_of_uvloop_get_all_that_was_written_before_a_close() -> None:
    """And one that is closed under its waiting writes takes no other with it."""

    async def sockets() -> bytes:
        turn = Turn()
        turn.busy = True
        loop = asyncio.get_running_loop()
        pairs = [socket.socketpair() for _ in range(3)]
        outlets, plain = [], []
        for ours, _ in pairs:
            transport, _protocol = await loop.create_connection(asyncio.Protocol, sock=ours)
            plain.append(transport)
            outlets.append(Outlet(transport, turn))
        for wire in outlets:
            wire.write(b"one,")
            wire.write(b"two")
        plain[1].abort()
        outlets[2].close()
        await asyncio.sleep(0)
        outlets[0].close()
        found = b""
        for _, theirs in pairs:
            theirs.setblocking(False)
            with theirs:
                while data := await loop.sock_recv(theirs, 100):
                    found += data
            found += b";"
        return found

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(sockets()) == b"one,two;;one,two;"
