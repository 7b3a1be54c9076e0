"""Every case of the tables against a real gateway before a provider that records each byte."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.adversity import framing_cases, request_cases
from tests.adversity.recorder import Script, fill, given_up, staged
from tests.adversity.request_cases import HOST, JSON, KEY, Case, Seen, chunked, head, sized
from tests.processes import ALICE, BOB, UPSTREAM_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.adversity.recorder import Message, Stage

CASES = request_cases.CASES + framing_cases.CASES
LOCATIONS = (
    'locations = ["header:authorization:Bearer", "header:x-api-key", "query:api_key", '
    '"cookie:gateway_key"]'
)
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t\x20-\x7e\x80-\xff]*")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("requests")
    with staged(folder, server='max_request_body = "1MiB"', auth=LOCATIONS) as stage:
        yield stage


def assert_canonical(message: Message) -> None:
    """One request in one form: lines that every parser reads alike, one framing."""
    raw_head, _, raw_body = message.raw.partition(b"\r\n\r\n")
    line, *lines = raw_head.split(b"\r\n")
    assert line == b"%b %b HTTP/1.1" % (message.method, message.target)
    for each in lines:
        assert _FIELD.fullmatch(each), each
    names = [each.partition(b":")[0].lower() for each in lines]
    assert names.count(b"host") == names.count(b"authorization") == 1
    framing = [name for name in names if name in (b"content-length", b"transfer-encoding")]
    assert len(framing) <= 1
    if not message.complete:
        return
    if framing == [b"transfer-encoding"]:
        payload = b""
        while not raw_body.startswith(b"0\r\n"):
            size = re.match(rb"([1-9a-f][0-9a-f]*)\r\n", raw_body)
            assert size is not None, raw_body[:50]
            end = size.end() + int(size[1], 16)
            payload += raw_body[size.end() : end]
            assert raw_body[end : end + 2] == b"\r\n"
            raw_body = raw_body[end + 2 :]
        assert raw_body == b"0\r\n\r\n"  # and no trailer
        raw_body = payload
    assert raw_body == message.body
    assert message.trailers == []


def assert_seen(stage: Stage, message: Message, seen: Seen, name: str) -> None:
    """The provider saw this request and nothing of the client's beside it."""
    assert_canonical(message)
    assert (message.method, message.target) == (seen.method, seen.target)
    assert (message.version, message.complete) == (b"1.1", seen.complete)
    own = (
        (b"host", b"127.0.0.1:%d" % stage.recorder.port),
        (b"authorization", b"Bearer " + UPSTREAM_KEY.encode()),
        (b"x-request-id", (name + seen.suffix).encode()),
    )
    assert sorted(message.fields) == sorted((*own, *seen.fields))
    if seen.complete:
        assert message.body == seen.body


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_request(stage: Stage, case: Case) -> None:
    recorder = stage.recorder
    name = stage.name("case")
    mark = len(recorder.messages)
    after: list[str] = []
    with stage.client() as client:
        client.send(fill(case.data, name))
        for expected in case.statuses:
            answer = client.answer(case.method)
            allowed = expected if isinstance(expected, tuple) else (expected,)
            assert answer.status in allowed, answer
            assert answer.complete
            assert answer.interims == []
            assert ALICE.encode() not in answer.body
            if answer.status == 200 and case.method != b"HEAD":
                assert orjson.loads(answer.body)["echo"].startswith(name)
        if case.code and case.method != b"HEAD":
            assert orjson.loads(answer.body)["error"]["code"] == case.code
        assert answer.closes is case.closes
        if case.closes:
            assert client.rest() == b""
            assert not client.reset
        else:
            after.append(stage.good(client))
    after.append(stage.good_elsewhere())
    messages = recorder.messages[mark:]
    assert [each.id for each in messages] == [name + seen.suffix for seen in case.seen] + after
    for message, seen in zip(messages, case.seen, strict=False):
        assert_seen(stage, message, seen, name)
        if not seen.complete:
            given_up(message.link)


def test_cases_are_many_and_have_names_of_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))
    assert len(names) > 300


def test_answers_to_pipelined_requests_are_each_their_own(stage: Stage) -> None:
    names = [stage.name("pipe") for _ in range(50)]
    with stage.client() as client:
        client.send(b"".join(fill(head(), name) for name in names))
        for name in names:
            assert orjson.loads(client.answer().body)["echo"] == name


SMUGGLED = (
    b"@KEY@\r\nContent-Length: 0",
    b"@KEY@\r\nTransfer-Encoding: chunked",
    b"@KEY@\nTransfer-Encoding: chunked",
    b"@KEY@\rTransfer-Encoding: chunked",
    b"@KEY@\r\n\tfolded",
    b"@KEY@\r\nHost: other",
    b"@KEY@\r\nX-Api-Key: sk-other",
    b"@KEY@\r\nAuthorization: Bearer @KEY@",
    b"@KEY@\x00",
    b"",
    b"sk-wrong",
)


@pytest.mark.parametrize("value", SMUGGLED)
def test_a_credential_on_the_short_way_is_judged_as_on_the_long_one(
    stage: Stage, value: bytes
) -> None:
    """A worker knows heads of this shape by several keys; then one comes that is none of it."""
    recorder = stage.recorder
    rest = b"Host: gateway\r\nContent-Type: application/json\r\nX-Request-Id: same-shape\r\n"
    head = b"POST /openai/chat/completions HTTP/1.1\r\n%bAuthorization: Bearer %b\r\n" % (
        rest,
        b"%b",
    )
    ask = head + b"Content-Length: %d\r\n\r\n%b" % (len(JSON), JSON)
    with stage.client() as client:
        for key in (ALICE, BOB, ALICE, BOB):
            client.send(ask % key.encode())
            assert client.answer().status == 200
    mark = len(recorder.messages)
    with stage.client() as client:
        client.send(ask % value.replace(b"@KEY@", ALICE.encode()))
        answer = client.answer()
        unknown = value in (b"", b"sk-wrong") or b"X-Api-Key" in value
        assert answer.status == (401 if unknown else 400), answer
    assert recorder.messages[mark:] == []
    with stage.client() as client:
        client.send(ask % BOB.encode())
        assert client.answer().status == 200
    (message,) = recorder.messages[mark:]
    assert_canonical(message)
    assert message.body == JSON


def test_100_continue_comes_once_and_only_to_those_who_wait(stage: Stage) -> None:
    for data in (sized(b"Expect: 100-continue"), chunked(b"", b"Expect: 100-continue")):
        first, end, body = data.partition(b"\r\n\r\n")
        if b"chunked" in first:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(JSON), JSON)
        with stage.client() as client:
            client.send(fill(first + end, name := stage.name("wait")))
            assert client.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert not stage.seen(name)
            client.send(body)
            answer = client.answer()
            assert (answer.status, answer.interims) == (200, [])
            stage.good(client)
        (seen,) = stage.seen(name)
        assert_canonical(seen)
        assert seen.field(b"expect") == b""
        assert seen.body == JSON


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((KEY, KEY + b"x"), 401),
        ((b"/openai/", b"/nowhere/"), 404),
        ((b"/openai/", b"/openai/../"), 400),
    ],
)
def test_no_invitation_for_the_body_of_a_refused_request(
    stage: Stage, change: tuple[bytes, bytes], status: int
) -> None:
    data = sized(b"Expect: 100-continue")[: -len(JSON)].replace(*change)
    with stage.client() as client:
        client.send(fill(data, stage.name("wait")))
        answer = client.answer()
        assert (answer.status, answer.interims) == (status, [])
        assert answer.closes  # else what comes next might be the body, or not
        client.send(JSON + fill(head(), "hidden"))
        assert client.rest() == b""
    stage.good_elsewhere()
    assert not stage.seen("hidden")


PART = sized(body=b" " * 5000)[:-4000]
REFUSED = {
    "no Host": (head(host=b""), 400),
    "bare LF": (head(b"X: a\nb"), 400),
    "length and coding": (sized(b"Transfer-Encoding: chunked"), 400),
    "two lengths": (sized(b"Content-Length: 0"), 400),
    "unknown coding": (head(b"Transfer-Encoding: gzip"), 501),
    "two Authorizations": (head(KEY), 400),
    "CONNECT": (head(line=b"CONNECT gateway:443 HTTP/1.1"), 501),
    "version": (head(line=b"GET /openai/models HTTP/1.2"), 505),
    "long target": (head(line=b"GET /" + b"x" * 17_000 + b" HTTP/1.1"), 414),
    "large head": (head(b"X: " + b"y" * 70_000), 431),
    "large body": (head(b"Content-Length: 1048577"), 413),
    "bad chunk": (chunked(b"zz\r\n"), 400),
    "bad chunk of an upload": (chunked(b"1\r\nab\r\n", path=b"/openai/files"), 400),
    "Expect": (sized(b"Expect: x"), 417),
    "no key, half a body": (PART.replace(KEY + b"\r\n", b""), 401),
    "no route, half a body": (PART.replace(b"/openai/", b"/nowhere/"), 404),
    "no request at all": (b"\x16\x03\x01\x02\x00", 400),
}


@pytest.mark.parametrize("when", ["at once", "later", "much later"])
@pytest.mark.parametrize("what", REFUSED)
def test_after_a_refusal_nothing_is_a_request(stage: Stage, what: str, when: str) -> None:
    """A sound request behind one that was refused with a close: whoever wrote it may have meant it
    as a part of the first. It gets no answer and never reaches the provider."""
    data, status = REFUSED[what]
    hidden = fill(head() + sized(), name := stage.name("hidden"))
    with stage.client() as client:
        client.send(fill(data, stage.name("case")) + (hidden if when == "at once" else b""))
        if when == "later":
            client.send(hidden)
        answer = client.answer(b"POST")
        assert (answer.status, answer.complete, answer.closes) == (status, True, True)
        client.send(hidden)
        assert client.rest() == b""  # the end of the answers was said, and nothing came after it
        client.send(hidden)
        stage.good_elsewhere()  # by now it would be there
    stage.good_elsewhere()
    assert stage.seen(name) == []


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_early_answer_reaches_the_client_and_ends_the_connection(
    stage: Stage, framing: str
) -> None:
    name = stage.name("early")
    answer_bytes = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 4\r\n\r\nlong"
    stage.recorder.scripts[name] = Script((answer_bytes,), early=True)
    path = b"/openai/files"
    if framing == "length":
        data = sized(body=b"x" * 100_000, path=path)
    else:
        data = chunked(b"186a0\r\n" + b"x" * 100_000, path=path)
    with stage.client() as client:
        client.send(fill(data, name)[:-50_000])
        answer = client.answer(b"POST")
        assert (answer.status, answer.body, answer.complete) == (413, b"long", True)
        assert answer.closes
        client.send(b"x" * 50_000 + fill(head(), "hidden"))
        assert client.rest() == b""
    stage.good_elsewhere()
    (seen,) = stage.seen(name)
    given_up(seen.link)
    assert seen.link.messages[-1] is seen
    assert not stage.seen("hidden")


@pytest.mark.parametrize(
    "data",
    [
        *(head(), sized(), chunked(b"1b\r\n" + JSON + b"\r\n0\r\n\r\n")),
        chunked(b"1b\r\n" + JSON + b"\r\n0\r\nX: 1\r\n\r\n"),
        sized(b"Expect: 100-continue"),
    ],
)
def test_a_request_that_ends_before_its_end_is_never_sent(stage: Stage, data: bytes) -> None:
    """RFC 9112, 8: a request cut short is no request."""
    name = stage.name("short")
    for missing in range(1, len(JSON) + 20):
        with stage.client() as client:
            client.send(fill(data, name)[:-missing])
        with stage.client() as client:  # a FIN alone, and time to take an answer
            client.send(fill(data, name)[:-missing])
            client.finish()
            assert b"HTTP/1.1 2" not in client.rest()
    stage.good_elsewhere()
    assert stage.seen(name) == []


# The same request in any pieces --------------------------------------------------------------

BODY = b'{"model":"m","messages":[{"role":"user","content":"\xc3\xa4\\r\\n\\r\\n"}],"stream":false}'
SDK_HEAD = b"\r\n".join(
    (
        b"POST /openai/v1/chat/completions HTTP/1.1",
        HOST,
        b"Accept-Encoding: gzip, deflate",
        b"Connection: keep-alive",
        b"Accept: application/json",
        b"Content-Type: application/json",
        b"User-Agent: OpenAI/Python 1.99.0",
        b"X-Stainless-Lang: python",
        b"X-Stainless-Retry-Count: 0",
        KEY,
        b"X-Request-Id: @ID@",
        b"",
    )
)
SDK = SDK_HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
IN_CHUNKS = SDK_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
IN_CHUNKS += b"20;x=1\r\n%b\r\n" % BODY[:32]
IN_CHUNKS += b"%X\r\n%b\r\n0\r\nHost: evil\r\n\r\n" % (len(BODY) - 32, BODY[32:])


@pytest.fixture(params=["sized", "chunked", "empty line first"])
def shape(request: pytest.FixtureRequest) -> bytes:
    return {"sized": SDK, "chunked": IN_CHUNKS, "empty line first": b"\r\n" + SDK}[request.param]


def raws(stage: Stage, name: str) -> list[bytes]:
    return [each.raw for each in stage.seen(name)]


def expected(stage: Stage, name: str) -> bytes:
    """What the provider gets, worked out by hand."""
    return b"\r\n".join(
        (
            b"POST /v1/chat/completions HTTP/1.1",
            b"host: 127.0.0.1:%d" % stage.recorder.port,
            b"authorization: Bearer " + UPSTREAM_KEY.encode(),
            b"Accept: application/json",
            b"Content-Type: application/json",
            b"User-Agent: OpenAI/Python 1.99.0",
            b"X-Stainless-Lang: python",
            b"X-Stainless-Retry-Count: 0",
            b"accept-encoding: identity",
            b"x-request-id: " + name.encode(),
            b"content-length: %d" % len(BODY),
            b"",
            BODY,
        )
    )


def test_coalesced_requests_give_the_same_upstream_bytes(stage: Stage, shape: bytes) -> None:
    name = stage.name("same")
    with stage.client() as client:
        client.send(fill(shape, name) * 20)
        for _ in range(20):
            assert client.answer(b"POST").status == 200
    assert raws(stage, name) == [expected(stage, name)] * 20


def test_single_bytes_give_the_same_upstream_bytes(stage: Stage, shape: bytes) -> None:
    name = stage.name("same")
    with stage.client() as client:
        for byte in fill(shape, name):
            client.send(bytes((byte,)))
        assert client.answer(b"POST").status == 200
        stage.good(client)
    assert raws(stage, name) == [expected(stage, name)]


def test_a_cut_anywhere_gives_the_same_upstream_bytes(stage: Stage, shape: bytes) -> None:
    name = stage.name("same")
    data = fill(shape, name)
    wanted = expected(stage, name)
    failed = []
    with stage.client() as other:
        for at in range(1, len(data)):
            with stage.client() as client:
                client.send(data[:at])
                # An answer to another client shows that the gateway has read the first part.
                other.send(head(key=b""))
                assert other.answer().status == 401
                client.send(data[at:] + data)
                statuses = [client.answer(b"POST").status for _ in range(2)]
                if statuses != [200, 200]:
                    failed.append((at, statuses))
    assert not failed
    assert set(raws(stage, name)) == {wanted}
    assert len(raws(stage, name)) == 2 * (len(data) - 1)


def test_the_provider_saw_nothing_but_sound_requests(stage: Stage) -> None:
    """The last test: over the whole table, what reached the provider was requests alone."""
    stage.good_elsewhere()
    for link in stage.recorder.links:
        assert link.error == ""
        assert link.rest == b"" or not link.messages[-1].complete
        for message in link.messages:
            assert_canonical(message)
            assert message.field(b"authorization") == b"Bearer " + UPSTREAM_KEY.encode()
            assert not message.target.startswith(b"/v1/hidden")
            assert message.id.startswith(("case-", "next-", "pipe-", "wait-", "early-", "same-"))
