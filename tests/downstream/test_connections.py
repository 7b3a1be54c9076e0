"""All client connections of a worker: how many there may be, and how they end with it."""

from __future__ import annotations

import asyncio

import pytest

from fastgw.downstream.connections import Connections
from tests.downstream.test_connection import GET, begun, connect, served


def test_draining_closes_the_idle_and_lets_the_busy_finish() -> None:
    connections = Connections()
    new, idle, busy = (connect(connections) for _ in range(3))
    idle.send(GET)
    idle.desk.answer()
    busy.send(GET)
    said = [busy.connection.closes_after_answer]
    connections.draining = True
    for each in (new, idle, busy):
        each.connection.drain()
    assert [each.line.over for each in (new, idle, busy)] == ["closed", "closed", ""]
    said.append(busy.connection.closes_after_answer)
    assert said == [False, True]  # RFC 9112, 9.6: the last answer says so
    busy.desk.answer()
    assert busy.line.over == "closed"
    assert connect(connections).line.over == "aborted"


def test_a_full_house_gives_up_one_that_waits_and_none_that_works() -> None:
    connections = Connections()
    first, second = (connect(connections, max_connections=2) for _ in range(2))
    for each in (first, second):
        each.send(GET)
    assert connect(connections, max_connections=2).line.over == "aborted"
    assert connections.refused == 1
    first.desk.answer()
    first.sweep(100.0)  # it waits for a second now
    third = connect(connections, max_connections=2)
    assert [each.line.over for each in (first, second, third)] == ["aborted", "", ""]
    assert connections.all == {second.connection, third.connection}


def test_drain_cuts_what_does_not_end() -> None:
    async def run() -> None:
        async with served() as (reader, writer, desk):
            writer.write(GET)
            asked = await begun(desk)
            asked.connection.write(b"half of it")
            assert await reader.read(10) == b"half of it"
            await asked.connection._connections.drain(0.01)
            assert asked.ended == "shutdown"
            with pytest.raises(ConnectionResetError):
                await reader.read()

    asyncio.run(run())


def test_who_pipelines_and_reads_slowly_gets_its_answer_whole_though_we_stop() -> None:
    """What it has sent meanwhile is not read: closing over that would be a reset."""

    async def run() -> None:
        async with served() as (reader, writer, desk):
            writer.write(GET)
            asked = await begun(desk)
            connection = asked.connection
            connection.write(bytes(2**24))
            desk.answer()
            for piece in (GET, GET * 9):  # the first of them has the connection pause
                writer.write(piece)
                await asyncio.sleep(0.05)
            assert len(desk.asked) == 1
            connection.drain()
            assert len(await reader.read()) == 2**24

    asyncio.run(run())
