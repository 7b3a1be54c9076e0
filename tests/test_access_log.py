"""The access log: whole lines, in order, rotated without loss, bounded when the disk stands."""

from __future__ import annotations

import asyncio
import errno
import os
from threading import Thread
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastgw import access_log
from fastgw.access_log import AccessLog

if TYPE_CHECKING:
    from pathlib import Path


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_every_entry_is_one_line_in_order(tmp_path: Path) -> None:
    path = tmp_path / "access.log"

    async def main() -> None:
        log = AccessLog(str(path))
        log.start()
        for number in range(1000):
            log.write(orjson.dumps({"n": number, "path": '/a"b\nc\u2028\x00'}))
        await log.close()
        assert log.dropped == 0

    asyncio.run(main())
    assert [line["n"] for line in lines(path)] == list(range(1000))
    assert path.read_bytes().count(b"\n") == 1000
    assert path.stat().st_mode & 0o007 == 0


def test_reopen_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "access.log"

    async def main() -> None:
        log = AccessLog(str(path))
        log.start()
        log.write(orjson.dumps({"n": 1}))
        await asyncio.sleep(3 * access_log.INTERVAL)
        path.rename(tmp_path / "access.log.1")
        log.reopen()
        await asyncio.sleep(3 * access_log.INTERVAL)
        log.write(orjson.dumps({"n": 2}))
        await log.close()

    asyncio.run(main())
    assert lines(tmp_path / "access.log.1") == [{"n": 1}]
    assert lines(path) == [{"n": 2}]


def test_a_file_that_cannot_be_opened_again_keeps_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()

    async def main() -> None:
        log = AccessLog(str(folder / "access.log"))
        log.start()
        folder.rename(tmp_path / "moved")
        log.reopen()
        await asyncio.sleep(3 * access_log.INTERVAL)
        log.write(orjson.dumps({"n": 1}))
        await log.close()

    asyncio.run(main())
    assert lines(tmp_path / "moved" / "access.log") == [{"n": 1}]
    assert "cannot reopen" in caplog.text


def test_a_full_disk_costs_the_lines_that_it_did_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "access.log"
    write, room = os.write, 250

    def limited(file: int, data: bytes) -> int:
        if file != log._file or path.stat().st_size + len(data) <= room:
            return write(file, data)
        if path.stat().st_size >= room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: room - path.stat().st_size])

    async def main() -> None:
        nonlocal room
        log.start()
        for size, numbers in ((250, range(10)), (10_000, range(10, 20))):
            room = size
            for number in numbers:
                log.write(b'{"n":%d,"filler":"%b"}' % (number, b"x" * 80))
            await asyncio.sleep(3 * access_log.INTERVAL)
        await log.close()
        assert log.dropped == 8

    log = AccessLog(str(path))
    monkeypatch.setattr(os, "write", limited)
    asyncio.run(main())
    *first, cut = path.read_bytes().splitlines()[:3]
    assert [orjson.loads(line)["n"] for line in first] == [0, 1]
    assert len(cut) < len(first[0])
    assert [line["n"] for line in map(orjson.loads, path.read_bytes().splitlines()[3:])] == [
        *range(10, 20)
    ]


@pytest.mark.parametrize("rotated", [False, True])
def test_no_line_is_empty_after_a_disk_was_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotated: bool
) -> None:
    """Neither where nothing of a line was written, nor in a new file."""
    path = tmp_path / "access.log"
    write, room = os.write, 10_000

    def limited(file: int, data: bytes) -> int:
        nonlocal room
        if file != log._file:
            return write(file, data)
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        size = write(file, data[:room])
        room -= size
        return size

    async def main() -> None:
        nonlocal room
        log.start()
        for number, size in ((1, 10_000), (2, 5 if rotated else 0), (3, 0), (4, 10_000)):
            room = size
            if number == 4 and rotated:
                path.rename(tmp_path / "access.log.1")
                log.reopen()
            log.write(b'{"n":%d}' % number)
            await asyncio.sleep(3 * access_log.INTERVAL)
        await log.close()
        assert log.dropped == 2

    log = AccessLog(str(path))
    monkeypatch.setattr(os, "write", limited)
    asyncio.run(main())
    assert lines(path) == ([{"n": 4}] if rotated else [{"n": 1}, {"n": 4}])


def test_a_reader_that_stopped_costs_lines_not_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "MAX_PENDING", 200_000)
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    async def main() -> None:
        log = AccessLog(str(path))
        log.start()
        for number in range(5000):
            log.write(orjson.dumps({"n": number, "filler": "x" * 90}))
            if number % 500 == 0:
                await asyncio.sleep(access_log.INTERVAL / 4)
        assert log.dropped > 1000
        assert sum(map(len, log._lines)) <= 200_000

        async def drain() -> bytes:
            data = b""
            while True:
                try:
                    part = os.read(reader, 1 << 20)
                except BlockingIOError:
                    await asyncio.sleep(0.001)
                    continue
                if not part:  # closed
                    return data
                data += part

        closing = asyncio.ensure_future(log.close())
        written = [orjson.loads(line)["n"] for line in (await drain()).splitlines()]
        await closing
        assert len(written) == 5000 - log.dropped
        assert written == sorted(written)

    asyncio.run(main())
    os.close(reader)


def test_a_full_disk_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        log = AccessLog("/dev/full")
        log.start()
        log.write(orjson.dumps({"n": 1}))
        await log.close()
        assert log.dropped == 1

    asyncio.run(main())
    assert "cannot write" in caplog.text


def test_off_writes_nothing() -> None:
    async def main() -> None:
        log = AccessLog("")
        assert not log.enabled
        log.start()
        await log.close()

    asyncio.run(main())


def test_lines_of_several_writers_on_one_pipe_stay_whole() -> None:
    reading, writing = os.pipe()
    entries = {
        name: [
            orjson.dumps({"by": name, "n": number, "text": name * (number % 700)})
            for number in range(2000)
        ]
        for name in "abc"
    }

    def write(name: str) -> None:
        access_log._write_all(writing, b"\n".join(entries[name]) + b"\n")

    writers = [Thread(target=write, args=(name,)) for name in entries]
    for each in writers:
        each.start()
    found = b""
    wanted = sum(len(line) + 1 for lines in entries.values() for line in lines)
    while len(found) < wanted:
        found += os.read(reading, 65536)
    for each in writers:
        each.join()
    os.close(reading)
    os.close(writing)
    came = found.splitlines()
    for name, lines in entries.items():
        assert [line for line in came if line.startswith(b'{"by":"%b"' % name.encode())] == lines
    assert len(came) == 6000


def test_a_line_longer_than_a_pipe_takes_at_once_is_written(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    data = b"a" * 10 + b"\n" + b"b" * 9000 + b"\n" + b"c\n"
    access_log._write_all(writing, data)
    assert os.read(reading, 65536) == data
    os.close(reading)
    os.close(writing)
