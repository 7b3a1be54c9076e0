"""What reaches the provider and the client, byte by byte, whatever happens on either side."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.processes import (
    ALICE,
    BOB,
    PER_USER,
    UPSTREAM_KEY,
    Gateway,
    chat,
    free_port,
    request,
    settled,
)

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway
    from tests.processes import Provider


@pytest.fixture
def roomy(start: StartGateway) -> Gateway:
    return start(budgets=PER_USER.format(limit=1_000_000))


def raw(gateway: Gateway, data: bytes, pieces: int = 0) -> bytes:
    """Send bytes as they are, read until the gateway closes."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as sock:
        if pieces:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(data), pieces):
                sock.sendall(data[at : at + pieces])
        else:
            sock.sendall(data)
        out = b""
        while True:
            try:
                part = sock.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            out += part
        return out


def post(body: bytes, *fields: str, close: bool = True) -> bytes:
    lines = [
        "POST /openai/chat/completions HTTP/1.1",
        "Host: gateway",
        f"Authorization: Bearer {ALICE}",
        "Content-Type: application/json",
        *fields,
    ]
    if close:
        lines.append("Connection: close")
    if not any(field.lower().startswith("transfer-encoding") for field in fields):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


JSON = b'{"model":"m","messages":[{"role":"user","content":"Hello!"}]}'


def test_the_head_to_the_provider_is_built_not_copied(roomy: Gateway, provider: Provider) -> None:
    raw(
        roomy,
        post(
            JSON,
            "X-Api-Key: " + ALICE,
            "X-Custom: kept",
            "X-Hop: dropped",
            "Connection: X-Hop",
            "Keep-Alive: timeout=5",
            "Proxy-Authorization: Basic x",
            "X-Forwarded-For: 1.2.3.4",
            "Forwarded: for=1.2.3.4",
            "Accept-Encoding: gzip, br",
            "x-request-id: my-id-1",
        ),
    )
    head, _, body = provider.last().partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/chat/completions HTTP/1.1"
    fields = {line.partition(":")[0].lower(): line.partition(": ")[2] for line in lines[1:]}
    assert len(fields) == len(lines) - 1
    assert fields == {
        "host": f"127.0.0.1:{provider.port}",
        "authorization": f"Bearer {UPSTREAM_KEY}",
        "content-type": "application/json",
        "x-custom": "kept",
        "accept-encoding": "identity",
        "x-request-id": "my-id-1",
        "content-length": str(len(JSON)),
    }
    assert body == JSON


def test_the_answer_carries_the_request_id_and_no_provider_limits(roomy: Gateway) -> None:
    answer = raw(roomy, post(JSON, "x-request-id: my-id-2")).lower()
    assert answer.startswith(b"http/1.1 200 ok\r\n")
    assert b"\r\nx-request-id: my-id-2\r\nrequest-id: my-id-2\r\n" in answer
    assert b"x-ratelimit-limit-requests" not in answer
    assert b"\r\nx-ratelimit-limit: 1000000\r\n" in answer
    assert b"req_stub" not in answer
    assert UPSTREAM_KEY.encode() not in answer


@pytest.mark.parametrize("pieces", [0, 1, 7])
def test_chunked_bodies_in_any_pieces_reach_the_provider_as_one(
    roomy: Gateway, provider: Provider, pieces: int
) -> None:
    body = b"5\r\n" + JSON[:5] + b"\r\n%x;ext=1\r\n" % (len(JSON) - 5) + JSON[5:] + b"\r\n"
    body += b"0\r\nAuthorization: Bearer evil\r\n\r\n"
    answer = raw(roomy, post(body, "Transfer-Encoding: chunked"), pieces)
    assert answer.startswith(b"HTTP/1.1 200")
    last = provider.last()
    assert last.endswith(b"\r\n\r\n" + JSON)
    assert b"evil" not in last
    assert b"content-length: %d\r\n" % len(JSON) in last


def test_pipelined_requests_are_answered_in_order(roomy: Gateway) -> None:
    wanted = [b"stub;events=%d" % number for number in (3, 1, 5, 2)]
    bodies = [JSON.replace(b'"m"', b'"' + model + b'"') for model in wanted]
    data = b"".join(post(body, close=False) for body in bodies[:-1]) + post(bodies[-1])
    answer = raw(roomy, data)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    positions = [answer.index(b'"model":"' + model + b'"') for model in wanted]
    assert positions == sorted(positions)
    assert roomy.used("alice") == 4 * 10 + 3 + 1 + 5 + 2


def test_expect_100_continue(roomy: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", roomy.port), timeout=20) as sock:
        sock.sendall(post(b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 61"))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(JSON)
        assert sock.recv(100).startswith(b"HTTP/1.1 200")


def test_a_refused_request_is_not_invited_to_send_its_body(roomy: Gateway) -> None:
    data = post(b"", "Expect: 100-continue").replace(ALICE.encode(), b"sk-wrong")
    assert raw(roomy, data.replace(b"Length: 0", b"Length: 61")).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /openai/../x HTTP/1.1\r\nHost: a\r\n\r\n", b"400"),
        (b"GET /nowhere HTTP/1.1\r\nHost: a\r\nx-api-key: " + ALICE.encode() + b"\r\n\r\n", b"404"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (b"GET /x\nHost: a\n\n", b"400"),
        (post(JSON, "Transfer-Encoding: chunked", "Content-Length: 5"), b"400"),
        (post(JSON, "Transfer-Encoding: gzip"), b"501"),
        (post(b"zz\r\n", "Transfer-Encoding: chunked"), b"400"),
        (
            post(b"", f"Content-Length: {64 * 1024 * 1024}").replace(b"Content-Length: 0\r\n", b""),
            b"413",
        ),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"414"),
        (b"GET /" + b"x" * 20_000, b"414"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000, b"431"),
        (post(b'{"model"'), b"400"),
        (post(b"[]"), b"400"),
        (post(b'{"model":5}'), b"400"),
        (post(JSON, "Content-Encoding: gzip"), b"415"),
    ],
)  # fmt: skip
def test_what_is_refused_never_reaches_the_provider(
    roomy: Gateway, provider: Provider, data: bytes, status: bytes
) -> None:
    if data.endswith(b"HTTP/1.1\r\nHost: a\r\nx-api-key: " + ALICE.encode() + b"\r\n\r\n"):
        data = data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    if b"/../" in data or b"/xx" in data:
        data = data.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    answer = raw(roomy, data)
    assert answer.split(b" ")[1] == status, answer[:300]
    assert provider.entries() == []
    assert chat(roomy, BOB)[0] == 200


def test_provider_faults(roomy: Gateway, provider: Provider) -> None:
    for stub, status, code in (
        ("fault=close", 502, "upstream_unavailable"),
        ("fault=garbage", 502, "upstream_unavailable"),
        ("fault=status:500", 500, "stub"),
        ("fault=status:429", 429, "stub"),
    ):
        got, _, body = chat(roomy, ALICE, stub=stub)
        assert (got, code in body.decode()) == (status, True), (stub, got, body)
    assert roomy.used("alice") == 0
    assert chat(roomy, ALICE)[0] == 200


def test_an_answer_cut_in_the_middle_never_looks_whole(roomy: Gateway) -> None:
    for stub in ("fault=cut:100", "fault=reset:100"):
        answer = raw(roomy, post(JSON, f"x-stub: {stub}"))
        head, _, body = answer.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        assert len(body) < length
    stream = JSON.replace(b'"m"', b'"m","stream":true')
    for stub in ("fault=cut:4", "fault=reset:4"):
        answer = raw(roomy, post(stream, f"x-stub: {stub};pace=0.001"))
        assert b"[DONE]" not in answer
        assert not answer.endswith(b"0\r\n\r\n")
        assert b'"error"' in answer
    settled(roomy)
    assert [row["reason"] for row in roomy.access_log()] == ["upstream_cut"] * 4
    assert all(row["usage_source"] == "counted" for row in roomy.access_log())
    assert roomy.used("alice") > 0


def test_an_error_event_in_a_stream_is_passed_on_and_noted(roomy: Gateway) -> None:
    stream = JSON.replace(b'"m"', b'"m","stream":true')
    answer = raw(roomy, post(stream, "x-stub: fault=error_event:3"))
    assert b"the stub was asked to fail" in answer
    assert answer.endswith(b"0\r\n\r\n")
    assert roomy.access_log()[-1]["reason"] == "upstream_error_event"


@pytest.mark.parametrize(
    "stub",
    [
        *("", "split=7", "crlf=1", "framing=close", "framing=length"),
        *("usage=finish", "usage=never", "done=0", "null_after=1"),
    ],
)
@pytest.mark.parametrize("asked", [False, True])
def test_streams_arrive_byte_for_byte_less_the_extra_event(
    roomy: Gateway, provider: Provider, stub: str, asked: bool
) -> None:
    options = b',"stream_options":{"include_usage":true}' if asked else b""
    body = JSON.replace(b'"m"', b'"m","stream":true' + options)
    fields = {
        "x-stub": stub,
        "Authorization": f"Bearer {ALICE}",
        "Content-Type": "application/json",
    }
    through = request(roomy.port, "POST", "/openai/chat/completions", body, fields)
    injected = body if asked else body[:1] + b'"stream_options":{"include_usage":true},' + body[1:]
    direct = request(provider.port, "POST", "/v1/chat/completions", injected, fields)
    expected = direct[2]
    if not asked:
        end = b"\r\n\r\n" if stub == "crlf=1" else b"\n\n"
        events = [each for each in expected.split(end) if each]
        kept = [each for each in events if not (b'"choices":[]' in each and b'"usage":{' in each)]
        expected = b"".join(each + end for each in kept)
    assert through[2] == expected
    line = roomy.access_log()[-1]
    assert line["usage_source"] == ("counted" if stub == "usage=never" else "reported")
    assert roomy.used("alice") == line["input_tokens"] + line["output_tokens"]
    if stub == "usage=never":
        text = sum(len(delta) for delta in re.findall(rb'"content":"([^"]*)"', direct[2]))
        assert line["output_tokens"] == -(-text // 4)
    else:
        assert roomy.used("alice") == 19


@pytest.mark.parametrize("stub", ["gzip=1", "framing=chunked", "framing=close", "split=11"])
def test_buffered_answers_in_every_framing(roomy: Gateway, provider: Provider, stub: str) -> None:
    fields = {
        "x-stub": stub,
        "Authorization": f"Bearer {ALICE}",
        "Content-Type": "application/json",
    }
    through = request(roomy.port, "POST", "/openai/chat/completions", JSON, fields)
    direct = request(provider.port, "POST", "/v1/chat/completions", JSON, fields)
    assert through[2] == direct[2]
    assert roomy.used("alice") == 19


def test_http_1_0_clients_get_no_chunks(roomy: Gateway) -> None:
    body = JSON.replace(b'"m"', b'"m","stream":true')
    answer = raw(roomy, post(body, close=False).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert b"transfer-encoding" not in answer.lower()
    assert answer.endswith(b"data: [DONE]\n\n")


def test_an_unreachable_provider_is_a_502(start: StartGateway) -> None:
    gateway = start(provider_port=free_port())
    status, _, body = chat(gateway, ALICE)
    assert (status, orjson.loads(body)["error"]["code"]) == (502, "upstream_unavailable")
    assert gateway.used("alice") == 0


def test_a_silent_provider_is_a_504(start: StartGateway) -> None:
    gateway = start(upstream='first_byte_timeout = "500ms"')
    status, _, body = chat(gateway, ALICE, stub="fault=never")
    assert (status, orjson.loads(body)["error"]["code"]) == (504, "upstream_timeout")


def test_other_bodies_are_passed_on_as_they_come(roomy: Gateway, provider: Provider) -> None:
    data = bytes(range(256)) * 4000
    fields = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/octet-stream"}
    status, _, _ = request(roomy.port, "POST", "/openai/files", data, fields)
    assert status == 404  # the stub's
    assert provider.last().endswith(b"\r\n\r\n" + data)


def test_a_slow_reader_pauses_the_provider_and_loses_nothing(roomy: Gateway) -> None:
    body = JSON.replace(b'"m"', b'"stub;events=5000;pad=4000","stream":true')
    assert chat(roomy, BOB, stub="usage=never")[0] == 200  # counted: its vocabulary is in memory
    before = memory(roomy)
    with socket.create_connection(("127.0.0.1", roomy.port), timeout=20) as sock:
        sock.sendall(post(body))
        out = sock.recv(4096)
        for _ in range(20):  # it reads nothing, and another client is served all the same
            assert chat(roomy, BOB)[0] == 200
            time.sleep(0.01)
        resident = memory(roomy)
        while part := sock.recv(65536):
            out += part
    assert len(out) > 20_000_000
    assert resident - before < 15_000_000  # the gateway held a bounded part of it
    assert out.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert roomy.used("alice") == 5010


def memory(gateway: Gateway) -> int:
    """Resident bytes of the process."""
    fields = Path(f"/proc/{gateway.child.pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
