"""Who is too slow, on either side: the very bytes that the client gets, and what the provider saw.

Nothing here is measured. A time-out that does not come is a test that gives up; one that comes
where it must not is an answer that is not the expected one. After each of them another connection
gets its own answer. Cases of a kind run side by side: each is a second or two of waiting.
"""

from __future__ import annotations

import asyncio
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastgw.config.tables import Server
from fastgw.flow_control import Sweeper
from tests.adversity.recorder import (
    CLOSE,
    GO,
    PAUSE,
    Client,
    Script,
    fill,
    given_up,
    staged,
    until,
)
from tests.adversity.request_cases import KEY, chunked, head, sized
from tests.adversity.response_cases import CHUNKED, DONE, EVENT, OK, SIZED, STREAM, chunk
from tests.downstream.test_connection import begun, served
from tests.processes import UPSTREAM_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tests.adversity.recorder import Message, Stage

SHORT = "500ms"
SERVER = "\n".join(
    f'{name} = "{SHORT}"'
    for name in ("header_timeout", "body_timeout", "idle_timeout", "send_timeout")
)
WAYS = """
[[upstreams]]
name = "hasty"
base_url = "http://127.0.0.1:@PORT@/v1"
api_key = "{key}"
first_byte_timeout = "{short}"
idle_timeout = "{short}"
[[upstreams]]
name = "brief"
base_url = "http://127.0.0.1:@PORT@/v1"
total_timeout = "{short}"
[[upstreams]]
name = "narrow"
base_url = "http://127.0.0.1:@PORT@/v1"
max_connections = 1
connect_timeout = "{short}"
[[upstreams]]
name = "full"
base_url = "http://127.0.0.1:{full}/v1"
connect_timeout = "{short}"
[[upstreams]]
name = "mute"
base_url = "https://127.0.0.1:{mute}/v1"
connect_timeout = "{short}"
"""
ROUTE = '[[routes]]\npath_prefix = "/{0}"\nupstream = "{0}"\n'
NAMES = ("hasty", "brief", "narrow", "full", "mute")
FILES = b"/openai/files"
GET = head(line=b"GET /hasty/models HTTP/1.1")
POST = sized(path=b"/hasty/chat/completions")
ASKED = b'{"model":"m","messages":[],"stream":true}'
STREAMED = sized(body=ASKED, path=b"/hasty/chat/completions")
CUT_SHORT = (
    b'data: {"error":{"message":"the provider fell silent","type":"server_error",'
    b'"param":null,"code":"upstream_timeout"}}\n\n'
)


@pytest.fixture(scope="module")
def full() -> Iterator[int]:
    """A port whose queue is full: who connects hears nothing at all."""
    waiting = [socket.socket() for _ in range(4)]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
    for each in waiting:
        each.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, full: int) -> Iterator[Stage]:
    # The kernel accepts for a listener that never does: no TLS ever comes.
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        ways = WAYS.format(short=SHORT, key=UPSTREAM_KEY, full=full, mute=port)
        folder: Path = tmp_path_factory.mktemp("timeouts")
        more = ways + "".join(map(ROUTE.format, NAMES))
        with staged(folder, server=SERVER, more=more) as stage:
            yield stage


def refusal(line: bytes, code: str, kind: str, text: str, name: bytes, *fields: bytes) -> bytes:
    """A refusal as it must be, to the byte."""
    body = orjson.dumps({"error": {"message": text, "type": kind, "param": None, "code": code}})
    lines = (
        b"HTTP/1.1 " + line,
        b"x-request-id: " + name,
        b"request-id: " + name,
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        *fields,
        b"",
        body,
    )
    return b"\r\n".join(lines)


def too_slow(data: bytes, text: str) -> None:
    """`data` is the 408 to a client that was too slow, and nothing else."""
    found = re.search(rb"\r\nx-request-id: (\S+)\r\n", data)
    assert found is not None, data
    kind, close = "invalid_request_error", b"connection: close"
    line = b"408 Request Timeout"
    assert data == refusal(line, "request_timeout", kind, text, found[1], close)


def gateway_timeout(client: Client, name: str) -> None:
    """The 504 to a request whose provider was too slow, and nothing else."""
    expected = refusal(
        b"504 Gateway Timeout",
        "upstream_timeout",
        "server_error",
        "the provider did not answer in time",
        name.encode(),
    )
    data = b""
    while len(data) < len(expected) and (part := client.receive()):
        data += part
    assert data == expected


def side_by_side(
    check: Callable[..., None], stage: Stage, cases: Iterable[tuple[Any, ...]]
) -> None:
    """Run all of them in threads; fail with all that is wrong."""
    with ThreadPoolExecutor(32) as pool:
        runs = [(case, pool.submit(check, stage, *case)) for case in cases]
    wrong = [f"{case}: {error!r}" for case, run in runs if (error := run.exception()) is not None]
    assert not wrong, "\n".join(wrong)


def is_asked(stage: Stage, name: str) -> None:
    until(lambda: bool(stage.seen(name)), "it is asked")


def only(stage: Stage, name: str) -> Message:
    """The provider saw this request once."""
    (message,) = stage.seen(name)
    return message


# The client ------------------------------------------------------------------------------------


def test_who_says_nothing_is_told_nothing(stage: Stage) -> None:
    with stage.client() as client:
        assert client.rest() == b""
        assert not client.reset
    stage.good_elsewhere()


def test_who_asks_no_more_is_told_nothing_more(stage: Stage) -> None:
    with stage.client() as client:
        stage.good(client)
        stage.good(client)
        assert client.rest() == b""
        assert not client.reset
    stage.good_elsewhere()


def test_half_a_head(stage: Stage) -> None:
    side_by_side(half_a_head, stage, product((1, 20, len(head()) - 1), (False, True)))


def half_a_head(stage: Stage, size: int, first: bool) -> None:
    name = stage.name("slow")
    with stage.client() as client:
        if first:
            stage.good(client)
        client.send(fill(head(), name)[:size])
        too_slow(client.rest(), "the request head took too long; send it at once")
        client.send(fill(head(), name)[size:] + fill(head(), name))
        assert client.rest() == b""
    stage.good_elsewhere()
    assert stage.seen(name) == []


def test_a_head_that_trickles_gets_no_more_time(stage: Stage) -> None:
    name = stage.name("slow")
    with stage.client() as client:
        data = trickle(client, fill(head(b"X: " + b"x" * 2000), name))
        too_slow(data, "the request head took too long; send it at once")
    stage.good_elsewhere()
    assert stage.seen(name) == []


def trickle(client: Client, data: bytes) -> bytes:
    """Send a byte at a time until an answer comes; the answer, to the end of the connection."""
    client._sock.settimeout(0.05)
    answer = b""
    for at in range(200):  # ten seconds of them
        client.send(data[at : at + 1])
        try:
            answer = client.receive()
            break
        except TimeoutError:
            pass
    assert answer, "it was given more time"
    client._sock.settimeout(30)
    return answer + client.rest()


TOO_SLOW = "the request body came too slowly; send it at once"
CHUNKED_BODY = b"1388\r\n" + b" " * 5000 + b"\r\n0\r\n\r\n"
BODIES = [
    sized(body=b" " * 5000),
    chunked(CHUNKED_BODY),
    sized(body=b" " * 5000, path=FILES),
    chunked(CHUNKED_BODY, path=FILES),
]


def test_half_a_body(stage: Stage) -> None:
    """4 KiB in a time are progress; a byte now and then is none."""
    side_by_side(half_a_body, stage, product(BODIES, ("silent", "trickles", "lacks a byte")))


def half_a_body(stage: Stage, data: bytes, how: str) -> None:
    name = stage.name("slow")
    first, end, body = fill(data, name).partition(b"\r\n\r\n")
    with stage.client() as client:
        if how == "trickles":
            client.send(first + end + body[:6])
            answer = trickle(client, body[6:])
        else:
            client.send(first + end + body[: 3 if how == "silent" else len(body) - 1])
            answer = client.rest()
        too_slow(answer, TOO_SLOW)
        client.send(body + fill(head(), name))
        assert client.rest() == b""
    stage.good_elsewhere()
    if FILES in data:
        message = only(stage, name)  # passed on as it came, and never ended
        assert not message.complete
        given_up(message.link)
        assert message.link.messages[-1] is message
    else:
        assert stage.seen(name) == []


def test_a_body_that_trickles_and_is_here_in_time_is_one(stage: Stage) -> None:
    name = stage.name("slow")
    with stage.client() as client:
        for byte in fill(sized(), name):
            client.send(bytes((byte,)))
        assert client.answer().status == 200
    assert only(stage, name).complete
    stage.good_elsewhere()


def test_an_upload_that_goes_on_is_not_cut(stage: Stage) -> None:
    """For longer than a head may take, which another client shows; then the rest of it at once."""
    name = stage.name("long")
    size = 4096 * 100
    first, end, _ = fill(sized(body=b"x" * size, path=FILES), name).partition(b"\r\n\r\n")
    with stage.client() as client, stage.client() as slow:
        client.send(first + end)
        slow.send(b"GET")
        slow._sock.settimeout(0.05)
        sent = 0
        for _ in range(90):
            client.send(b"x" * 4096)
            sent += 4096
            try:
                assert b" 408 " in slow.receive()
                break
            except TimeoutError:
                pass
        client.send(b"x" * (size - sent))
        assert client.answer(b"POST").status == 200
    assert len(only(stage, name).body) == size
    stage.good_elsewhere()


@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
@pytest.mark.parametrize("known", [True, False], ids=["sized", "until close"])
def test_who_takes_nothing_of_its_answer_is_cut_off(
    stage: Stage, known: bool, version: bytes
) -> None:
    """By a reset: for a client of 1.0 a FIN may be the end of the answer."""
    name = stage.name("deaf")
    size = 16 * 1024 * 1024
    length = b"Content-Length: %d\r\n\r\n" % size if known else b"\r\n"
    stage.recorder.scripts[name] = Script((OK + length + b"x" * size, CLOSE))
    with stage.client() as client:
        client.send(fill(head(), name).replace(b"HTTP/1.1", version))
        is_asked(stage, name)
        message = only(stage, name)
        given_up(message.link)
        stage.good_elsewhere()
        answer = client.answer()
        assert answer.status == 200
        assert not answer.complete
        assert client.reset
        assert len(answer.body) < size


def test_who_takes_less_than_comes_is_slow_and_not_stuck() -> None:
    """More waits for it than when its time began: what its kernel has acknowledged tells."""

    async def run() -> None:
        async with served() as (reader, writer, desk):
            writer.write(GET)
            asked, sweeper, now = await begun(desk), Sweeper(), 0.0
            sweeper.add(asked.connection)
            for takes in (2**22, 2**22, 0):
                asked.connection.write(bytes(2**23))
                taken = -1  # the kernels have what they take without the client
                while taken != (taken := asked.connection._progress()):  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
                sweeper.sweep(now + 1.0, [asked.connection])
                await reader.readexactly(takes)
                asked.connection.write(bytes(2**23))
                now += Server().send_timeout + 2.0
                sweeper.sweep(now, [asked.connection])
                await asyncio.sleep(0)
                assert asked.ended == ("" if takes else "client_disconnected")

    asyncio.run(run())


# The provider: before the answer ---------------------------------------------------------------

NOTHING_YET: dict[str, tuple[bytes | str, ...]] = {
    "silent": (PAUSE,),
    "half a status line": (b"HTTP/1.1 2", PAUSE),
    "half a head": (OK + b"Content-Length: 7\r\n", PAUSE),
    "100 and no more": (b"HTTP/1.1 100 Continue\r\n\r\n", PAUSE),
    "103 and no more": (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", PAUSE),
}


def test_no_answer(stage: Stage) -> None:
    """504 on a connection that goes on; the provider's is given up, and nothing is asked twice."""
    cases = list(product(NOTHING_YET, (GET, POST, STREAMED)))
    stage.recorder.hold()
    clients: list[Client] = []
    with ExitStack() as stack:  # connections to the provider, to be kept: one for each case
        for _ in cases:
            name = stage.name("next")
            stage.recorder.scripts[name] = Script((GO, SIZED))
            client = stack.enter_context(stage.client())
            client.send(fill(GET, name))
            is_asked(stage, name)
            clients.append(client)
        stage.recorder.go()
        for client in clients:
            assert client.answer().complete
    side_by_side(no_answer, stage, cases)


def no_answer(stage: Stage, what: str, data: bytes) -> None:
    name = stage.name("mute")
    stage.recorder.scripts[name] = Script(NOTHING_YET[what])
    with stage.client() as client:
        client.send(fill(data, name))
        gateway_timeout(client, name)
        stage.good(client)
    message = only(stage, name)
    given_up(message.link)
    assert message.link.messages[-1] is message
    assert message.link.messages[0] is not message  # it was a kept one
    stage.good_elsewhere()


def test_no_connection(stage: Stage) -> None:
    """Neither a TCP nor a TLS connection that does not come about is waited for."""
    side_by_side(no_connection, stage, product((b"/full/", b"/mute/"), (GET, POST)))


def no_connection(stage: Stage, way: bytes, asked: bytes) -> None:
    name = stage.name("away")
    data = asked.replace(b"/hasty/", way)
    with stage.client() as client:
        client.send(fill(data, name))
        gateway_timeout(client, name)
        stage.good(client)
    stage.good_elsewhere()
    assert stage.seen(name) == []


def test_no_connection_free(stage: Stage) -> None:
    first, second = stage.name("first"), stage.name("second")
    stage.recorder.hold()
    stage.recorder.scripts[first] = Script((GO, SIZED))
    data = head(line=b"GET /narrow/models HTTP/1.1")
    with stage.client() as busy, stage.client() as client:
        busy.send(fill(data, first))
        is_asked(stage, first)
        client.send(fill(data, second))
        answer = client.answer()
        assert (answer.status, answer.complete, answer.closes) == (503, True, False)
        assert orjson.loads(answer.body)["error"]["code"] == "overloaded"
        stage.good(client)
        stage.recorder.go()
        assert busy.answer().body == b'{"a":1}'
    stage.good_elsewhere()
    assert stage.seen(second) == []


# The provider: within the answer ---------------------------------------------------------------


def relayed(data: bytes, fields: tuple[bytes, ...], name: str) -> bytes:
    """The body in `data`, below a head that has these fields and those of the limits alone."""
    first, end, body = data.partition(b"\r\n\r\n")
    assert end, data
    line, *lines = first.split(b"\r\n")
    assert line == b"HTTP/1.1 200 OK"
    own = (b"x-request-id: " + name.encode(), b"request-id: " + name.encode())
    shown = [each for each in lines if not each.startswith(b"x-ratelimit-")]
    assert sorted(shown) == sorted((*own, *fields))
    return body


SSE = (
    b"Content-Type: text/event-stream",
    b"transfer-encoding: chunked",
    b"x-accel-buffering: no",
)
PART = (b"transfer-encoding: chunked",)
STALLS: dict[str, tuple[bytes, tuple[bytes | str, ...], tuple[bytes, ...], bytes]] = {
    "stream, between events": (STREAMED, (STREAM + chunk(EVENT),), SSE,
                               chunk(EVENT) + chunk(CUT_SHORT)),
    "stream, within an event": (STREAMED, (STREAM + chunk(EVENT + b"data: {"),), SSE,
                                chunk(EVENT) + chunk(CUT_SHORT)),  # the half was held back
    "stream of no meter": (GET, (STREAM + chunk(EVENT),), SSE, chunk(EVENT)),
    "stream, head alone": (STREAMED, (STREAM,), SSE, chunk(CUT_SHORT)),
    "stream, within a chunk": (STREAMED, (STREAM + chunk(EVENT) + b"ff\r\ndata",), SSE,
                               chunk(EVENT) + chunk(CUT_SHORT)),
    "stream, after its last event": (STREAMED, (STREAM + chunk(EVENT) + chunk(DONE),), SSE,
                                     chunk(EVENT + DONE) + chunk(CUT_SHORT)),
    "sized": (GET, (SIZED[:-3],), (b"content-length: 7",), b'{"a"'),
    "sized, to a POST": (POST, (SIZED[:-3],), (b"content-length: 7",), b'{"a"'),
    "sized, head alone": (GET, (SIZED[:-7],), (b"content-length: 7",), b""),
    "chunked": (GET, (CHUNKED + chunk(b"ab"),), PART, chunk(b"ab")),
    "chunked, half the last chunk": (GET, (CHUNKED + chunk(b"ab"), PAUSE, b"0\r\n"), PART,
                                     chunk(b"ab")),
    "until close": (GET, (OK + b"\r\nab",), PART, chunk(b"ab")),
}  # fmt: skip


def test_an_answer_that_stops(stage: Stage) -> None:
    """What came is out, to the byte, and an end that no parser takes for the end of it."""
    side_by_side(stops, stage, product(STALLS, ("to the byte", "by the judge")))


def stops(stage: Stage, what: str, how: str) -> None:
    data, steps, fields, body = STALLS[what]
    name = stage.name("stall")
    stage.recorder.scripts[name] = Script((*steps, PAUSE))
    with stage.client() as client:
        client.send(fill(data, name))
        if how == "by the judge":
            answer = client.answer(data.split(b" ", 1)[0])
            assert (answer.status, answer.complete) == (200, False)
        else:
            assert relayed(client.rest(), fields, name) == body
        assert not client.reset
    given_up(only(stage, name).link)
    stage.good_elsewhere()


def test_an_answer_to_1_0_that_stops_is_reset(stage: Stage) -> None:
    heads = (OK + b"\r\nab", CHUNKED + chunk(b"ab"), SIZED[:-3], STREAM + chunk(EVENT))
    side_by_side(stops_for_1_0, stage, ((each,) for each in heads))


def stops_for_1_0(stage: Stage, data: bytes) -> None:
    name = stage.name("stall")
    stage.recorder.scripts[name] = Script((data, PAUSE))
    with stage.client() as client:
        client.send(fill(GET.replace(b"HTTP/1.1", b"HTTP/1.0"), name))
        client.rest()
        assert client.reset
    given_up(only(stage, name).link)
    stage.good_elsewhere()


def test_an_answer_without_end_is_cut(stage: Stage) -> None:
    """It moves all the time: `total_timeout` is what ends it."""
    name = stage.name("long")
    more: list[bytes | str] = [chunk(EVENT), PAUSE]
    stage.recorder.scripts[name] = Script((STREAM, *more * 1000, CLOSE))
    with stage.client() as client:
        client.send(fill(STREAMED.replace(b"/hasty/", b"/brief/"), name))
        answer = client.answer(b"POST")
        assert (answer.status, answer.complete) == (200, False)
        assert answer.body == EVENT * answer.body.count(EVENT) + CUT_SHORT
    given_up(only(stage, name).link)
    stage.good_elsewhere()


def test_no_text_of_a_time_out_tells_a_secret(stage: Stage) -> None:
    """The last test: what the log says of all this holds neither key nor credential."""
    log = stage.gateway.log.read_bytes()
    assert UPSTREAM_KEY.encode() not in log
    assert fill(KEY, "").partition(b"Bearer ")[2] not in log
