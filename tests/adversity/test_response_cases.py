"""Every case of the table: a provider that answers anything, a client that must not be deceived."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from tests.adversity.recorder import GOOD, Script, fill, given_up, staged
from tests.adversity.response_cases import CASES, Case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.adversity.recorder import Answer, Client, Stage

_CHAT = b'{"model":"m","messages":[]}'
_STREAM = b'{"model":"m","messages":[],"stream":true}'


def _ask(line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    lines = (
        line,
        b"Host: gateway",
        b"Authorization: Bearer @KEY@",
        b"X-Request-Id: @ID@",
        *fields,
        b"",
        body,
    )
    return b"\r\n".join(lines)


def _post(body: bytes) -> bytes:
    line = b"POST /openai/chat/completions HTTP/1.1"
    return _ask(line, b"Content-Length: %d" % len(body), body=body)


REQUESTS = {
    "GET": GOOD,
    "HEAD": _ask(b"HEAD /openai/models HTTP/1.1"),
    "UPGRADE": _ask(b"GET /openai/models HTTP/1.1", b"Connection: Upgrade", b"Upgrade: x"),
    "1.0": _ask(b"GET /openai/models HTTP/1.0"),
    "LIST": _ask(b"GET /small/models HTTP/1.1"),
    "BODYLESS": _ask(b"POST /openai/responses/r1/cancel HTTP/1.1"),
    "POST": _post(_CHAT),
    "STREAM": _post(_STREAM),
}


GUARDS = 'first_byte_timeout = "8s"\nidle_timeout = "8s"\nkeepalive_timeout = "90s"'
"""What must be refused at once is a 504 if it is waited for; what must be given up is kept for
longer than a test has patience."""
SMALL = """
[[routes]]
path_prefix = "/small"
upstream = "stub"
models = ["small"]
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("responses"), upstream=GUARDS, more=SMALL) as stage:
        yield stage


def assert_sees(case: Case, answer: Answer, client: Client) -> None:
    if case.sees == "refused":
        assert (answer.status, answer.complete) == (502, True), answer
        assert orjson.loads(answer.body)["error"]["code"] == "upstream_unavailable"
        assert b"poison" not in answer.body
        return
    assert answer.status == case.status, answer
    assert answer.complete is (case.sees == "whole"), answer
    if case.sees != "cut":  # there either end will do
        assert client.reset is (case.sees == "reset")
    assert b"poison" not in answer.body
    for name in (*case.absent, b"set-cookie"):
        assert name not in answer.fields
    if case.sees == "whole":
        assert answer.body == case.body
    else:
        assert b"[DONE]" not in answer.body


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_response(stage: Stage, case: Case) -> None:
    recorder = stage.recorder
    name = stage.name("case")
    recorder.scripts[name] = Script(case.steps)
    recorder.hold()
    stage.good_elsewhere()  # so that the case meets a kept connection
    with stage.client() as client:
        client.on_bytes = recorder.go
        client.send(fill(REQUESTS[case.request], name))
        answer = client.answer(case.request.encode() if case.request == "HEAD" else b"GET")
        assert answer.interims == []
        assert_sees(case, answer, client)
        messages = stage.seen(name)
        assert len(messages) in case.times
        if not case.kept:
            for message in messages:
                given_up(message.link)
        if case.sees in ("cut", "reset") or answer.closes:
            assert client.rest() == b""
        else:
            stage.good(client)
    stage.good_elsewhere()
    for message in messages:
        after = message.link.messages[message.link.messages.index(message) + 1 :]
        assert bool(after) is case.kept
        assert message.link.error == ""


def test_cases_are_many_and_have_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert len(names) > 200


def test_an_answer_to_nobody_is_never_given_to_the_next(stage: Stage) -> None:
    """Many clients at once on kept connections, one provider in four of which answers twice."""
    recorder = stage.recorder
    names = [stage.name("mixed") for _ in range(200)]
    twice = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}" * 2
    for name in names[::4]:
        recorder.scripts[name] = Script((twice,))
    clients = [stage.client() for _ in range(20)]
    try:
        for start in range(0, len(names), len(clients)):
            asked = list(zip(clients, names[start : start + len(clients)], strict=True))
            for client, name in asked:
                client.send(fill(GOOD, name))
            for client, name in asked:
                answer = client.answer()
                if name not in recorder.scripts:
                    assert orjson.loads(answer.body)["echo"] == name
    finally:
        for client in clients:
            client.__exit__()
