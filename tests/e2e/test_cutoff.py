"""Streams that end where they cross a budget: real SDKs, every format, a real gateway."""

from __future__ import annotations

import http.client
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import orjson
import pytest
from google import genai

from fastgw.sse import payloads
from tests.processes import ALICE, Gateway, chat, request, settled
from tests.usage.answers import lines, sse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.conftest import StartGateway
    from tests.processes import Provider
    from tests.redis_server import RedisServer

BUDGET = """
[[budgets]]
name = "daily"
per = ["user_id"]
cutoff = "mid_stream"
limit = {limit}
{more}
"""
MESSAGES: Any = [{"role": "user", "content": "Hello!"}]
DELTA = 3
"""Tokens of a word of the stub at most, by any count."""
LONG = {"x-stub": "events=300;pace=0.002"}


def cutting(
    limit: Any = 100, more: str = "", dialect: str = "auto", **options: Any
) -> dict[str, Any]:
    return {
        "budgets": BUDGET.format(limit=limit, more=more),
        "upstream": f'dialect = "{dialect}"\n',
        **options,
    }


def assert_cut(gateway: Gateway, limit: int = 100, over: int = DELTA) -> None:
    """The last exchange was cut, and the account of Alice ended at its limit."""
    assert limit < gateway.used("alice", "daily") <= limit + over
    (entry,) = (each for each in gateway.access_log() if each["status"] == 200)
    assert (entry["reason"], entry["usage_source"]) == ("budget_cutoff", "counted")
    assert 'reason="budget_cutoff"' in gateway.metrics()


def assert_stopped(provider: Provider) -> None:
    entry = provider.entries()[-1]
    assert entry["end"] == "client_closed"
    assert entry["events"] < 200


@pytest.fixture
def client(start: StartGateway) -> Iterator[Callable[..., openai.OpenAI]]:
    made: list[openai.OpenAI] = []

    def make(gateway: Gateway) -> openai.OpenAI:
        made.append(
            openai.OpenAI(
                api_key=ALICE, base_url=f"{gateway.url}/openai", max_retries=0, timeout=20
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize("asked", [False, True])
def test_chat_of_the_openai_sdk_ends_cleanly_and_the_next_is_refused(
    start: StartGateway, provider: Provider, client: Callable[..., openai.OpenAI], asked: bool
) -> None:
    gateway = start(**cutting(dialect="openai"))
    sdk = client(gateway)
    more: Any = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(
        sdk.chat.completions.create(
            model="gpt-4o", messages=MESSAGES, stream=True, extra_headers=LONG, **more
        )
    )
    finished = [each for each in chunks if each.choices and each.choices[0].finish_reason]
    assert [each.choices[0].finish_reason for each in finished] == ["length"]
    told = [each.usage for each in chunks if each.usage is not None]
    assert len({each.id for each in chunks}) == 1
    assert_cut(gateway)
    assert_stopped(provider)
    if asked:
        assert told[0].total_tokens == gateway.used("alice", "daily")
        assert len(told) == 1
    else:
        assert not told
    with pytest.raises(openai.RateLimitError):
        sdk.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)


def test_responses_of_the_openai_sdk(
    start: StartGateway, provider: Provider, client: Callable[..., openai.OpenAI]
) -> None:
    gateway = start(**cutting(dialect="openai"))
    sdk = client(gateway)
    stream = sdk.responses.create(model="gpt-4o", input="Hello!", stream=True, extra_headers=LONG)
    events = list(stream)
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "incomplete"
    assert last.response.incomplete_details is not None
    assert last.response.incomplete_details.reason == "max_output_tokens"
    text = "".join(each.delta for each in events if each.type == "response.output_text.delta")
    assert last.response.output_text == text
    numbers = [each.sequence_number for each in events]
    assert numbers == list(range(len(events)))
    assert_cut(gateway)
    assert last.response.usage is not None
    assert last.response.usage.total_tokens == gateway.used("alice", "daily")
    assert_stopped(provider)
    with pytest.raises(openai.RateLimitError):
        sdk.responses.create(model="gpt-4o", input="Hello!", stream=True)


def test_messages_of_the_anthropic_sdk(start: StartGateway, provider: Provider) -> None:
    gateway = start(**cutting(dialect="anthropic"))
    with anthropic.Anthropic(
        api_key=ALICE, base_url=f"{gateway.url}/openai", max_retries=0, timeout=20
    ) as sdk:
        with sdk.messages.stream(
            model="claude", max_tokens=4096, messages=MESSAGES, extra_headers=LONG
        ) as stream:
            text = "".join(stream.text_stream)
            message = stream.get_final_message()
        assert message.stop_reason == "max_tokens"
        assert message.content[0].type == "text"
        assert message.content[0].text == text
        # Claude's tokens are more than those of the vocabulary they are counted by.
        assert_cut(gateway, over=2 * DELTA)
        used = message.usage.input_tokens + message.usage.output_tokens
        assert used == gateway.used("alice", "daily")
        assert_stopped(provider)
        with pytest.raises(anthropic.RateLimitError):
            sdk.messages.create(model="claude", max_tokens=9, messages=MESSAGES)


def test_gemini_of_its_sdk_and_as_an_array(start: StartGateway, provider: Provider) -> None:
    gateway = start(
        **cutting(dialect="gemini"),
        auth='locations = ["header:x-goog-api-key"]',
        base_url=f"http://127.0.0.1:{provider.port}",
    )
    url = f"{gateway.url}/openai"
    with genai.Client(api_key=ALICE, http_options={"base_url": url, "headers": LONG}) as sdk:
        chunks = list(sdk.models.generate_content_stream(model="gemini-x", contents="Hello!"))
    assert chunks[-1].candidates is not None
    assert str(chunks[-1].candidates[0].finish_reason).endswith("MAX_TOKENS")
    assert_cut(gateway)
    assert_stopped(provider)

    gateway = start(
        **cutting(dialect="gemini"),
        auth='locations = ["header:x-goog-api-key"]',
        base_url=f"http://127.0.0.1:{provider.port}",
    )
    body = orjson.dumps({"contents": [{"parts": [{"text": "Hello!"}]}]})
    status, _, answer = request(
        gateway.port, "POST", "/openai/v1beta/models/g:streamGenerateContent", body,
        {"x-goog-api-key": ALICE, "x-stub": "events=300"},
    )  # fmt: skip
    assert status == 200
    assert orjson.loads(answer)[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert_cut(gateway)


@pytest.mark.parametrize("stub", ["", ";split=7", ";crlf=1", ";framing=length", ";framing=close"])
def test_however_the_bytes_arrive_the_connection_stays_usable(
    start: StartGateway, stub: str
) -> None:
    gateway = start(**cutting())
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    body = orjson.dumps({"model": "m", "messages": MESSAGES, "stream": True})
    headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json",
               "x-stub": f"events=300{stub}"}  # fmt: skip
    connection.request("POST", "/openai/chat/completions", body, headers)
    answer = connection.getresponse().read()
    *_, last, done = payloads(answer)
    assert done == b"[DONE]"
    assert orjson.loads(last)["choices"][0]["finish_reason"] == "length"
    assert b"\n: budget_exceeded rate limit exceeded: budget 'daily' (alice) has used 10" in answer
    sock = connection.sock
    connection.request("POST", "/openai/chat/completions", body, headers)
    refused = connection.getresponse()
    assert refused.status == 429
    assert orjson.loads(refused.read())["error"]["code"] == "budget_exceeded"
    assert connection.sock is sock
    connection.close()
    assert_cut(gateway)


def test_what_stays_within_the_budget_is_not_touched(
    start: StartGateway, provider: Provider
) -> None:
    gateway = start(**cutting(1_000_000))
    plain = start(budgets=BUDGET.format(limit=1_000_000, more="").replace("mid_stream", "none"))
    for stub in ("events=300", "events=300;split=11"):
        asked: dict[str, Any] = {"stream_options": {"include_usage": True}}
        for options in ({}, asked):
            found = [
                chat(each, ALICE, stub=stub, stream=True, **options)[2] for each in (gateway, plain)
            ]
            assert found[0] == found[1]
            assert found[0].endswith(b"data: [DONE]\n\n")
    assert gateway.used("alice", "daily") == plain.used("alice", "daily") == 4 * 310
    assert {entry["reason"] for entry in gateway.access_log()} == {"ok"}


def test_two_streams_at_once_share_what_is_left(start: StartGateway) -> None:
    gateway = start(**cutting(200))
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(chat, gateway, ALICE, stub="events=400;pace=0.002", stream=True)
            for _ in range(2)
        ]
        answers = [run.result()[2] for run in runs]
    for answer in answers:
        assert b'"finish_reason":"length"' in answer
        assert answer.endswith(b"data: [DONE]\n\n")
    assert 200 < gateway.used("alice", "daily") <= 200 + 2 * DELTA


def test_two_hosts_share_what_is_left(redis_server: RedisServer, start: StartGateway) -> None:
    store = redis_server.url
    gateways = [start(**cutting(300), store=store) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(chat, gateway, ALICE, stub="events=600;pace=0.02", stream=True)
            for gateway in gateways
        ]
        answers = [run.result()[2] for run in runs]
    assert all(b'"finish_reason":"length"' in answer for answer in answers)
    for gateway in gateways:
        settled(gateway)
    # What one has made since the other last heard of it: a few events, never the rest.
    assert 300 < gateways[0].used("alice", "daily") <= 300 + 10 * DELTA


def test_dollars(start: StartGateway) -> None:
    gateway = start(**cutting('"0.0001"', 'unit = "usd"'))
    answer = chat(gateway, ALICE, stub="events=300;pace=0.002", stream=True)[2]
    assert b'"finish_reason":"length"' in answer
    # gpt-3.5-turbo: 1,500 nano-USD for a token of the answer
    assert_cut(gateway, 100_000, DELTA * 1_500)
    assert chat(gateway, ALICE)[0] == 429


def test_output_tokens(start: StartGateway) -> None:
    gateway = start(**cutting(50, 'unit = "output_tokens"'))
    answer = chat(gateway, ALICE, stub="events=300", stream=True)[2]
    assert b'"finish_reason":"length"' in answer
    assert_cut(gateway, 50)


def test_with_a_hard_cap_only_an_answer_without_a_limit_can_be_cut(start: StartGateway) -> None:
    gateway = start(**cutting(100, 'admission = "reserve"\nwait = "0s"'))
    # It says 40 and keeps to it by its own report, whatever we would count.
    answer = chat(gateway, ALICE, stub="events=20;completion=40", stream=True, max_tokens=40)[2]
    assert b'"finish_reason":"stop"' in answer
    assert gateway.used("alice", "daily") == 50
    assert gateway.access_log()[-1]["reason"] == "ok"
    answer = chat(gateway, ALICE, stub="events=300;pace=0.002", stream=True, max_tokens=30)[2]
    assert answer.endswith(b"data: [DONE]\n\n")

    gateway = start(**cutting(100, 'admission = "reserve"'))
    answer = chat(gateway, ALICE, stub="events=300;pace=0.002", stream=True)[2]
    assert b'"finish_reason":"length"' in answer
    assert_cut(gateway)


def test_a_client_that_leaves_is_charged_and_not_cut(start: StartGateway) -> None:
    gateway = start(**cutting(100))
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    body = orjson.dumps({"model": "m", "messages": MESSAGES, "stream": True})
    headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json",
               "x-stub": "events=60;pace=0.05"}  # fmt: skip
    connection.request("POST", "/openai/chat/completions", body, headers)
    connection.getresponse().read(300)
    connection.close()
    assert 9 < gateway.used("alice", "daily") < 100
    assert gateway.access_log()[-1]["reason"] == "client_disconnected"


class Replay(BaseHTTPRequestHandler):
    """Answers each POST with a stream of `media` and `data`."""

    protocol_version = "HTTP/1.1"
    media = ""
    data = b""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", self.media)
        self.send_header("content-length", str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base
        """Say nothing."""


EVENTS = "text/event-stream"
FORMATS: dict[str, tuple[str, str, str, bytes, bytes]] = {
    "ollama": ("ollama", "/api/chat", "application/x-ndjson", lines(
        *({"model": "m", "message": {"content": " four"}, "done": False} for _ in range(200))),
        b'"done":true,"done_reason":"length"'),
    "cohere": ("cohere", "/v2/chat", EVENTS, sse(
        ("message-start", {"type": "message-start"}),
        *(("content-delta", {"type": "content-delta", "index": 0, "delta": {
            "message": {"content": {"text": " four"}}}}) for _ in range(200))),
        b'"finish_reason":"MAX_TOKENS"'),
    "completions": ("openai", "/completions", EVENTS, sse(
        *({"id": "c", "choices": [{"index": 0, "text": " four"}]} for _ in range(200))),
        b'"finish_reason":"length"'),
    "tgi": ("tgi", "/generate_stream", EVENTS, sse(
        *({"token": {"text": " four"}} for _ in range(200))),
        b'"code":"budget_exceeded"'),
}  # fmt: skip


@pytest.fixture
def replay() -> Iterator[Any]:
    """The handler of a server that runs; `port` is its own."""

    class Handler(Replay):
        port = 0

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_ends_as_its_own_streams_do(
    start: StartGateway, replay: Any, name: str
) -> None:
    dialect, path, replay.media, replay.data, end = FORMATS[name]
    gateway = start(**cutting(dialect=dialect), base_url=f"http://127.0.0.1:{replay.port}")
    headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"}
    body = b'{"model":"m","stream":true}'
    status, _, answer = request(gateway.port, "POST", "/openai" + path, body, headers)
    assert status == 200
    assert end in answer
    assert answer.count(b" four") < 110
    assert_cut(gateway)


def test_a_compressed_stream_is_not_cut_and_is_charged(start: StartGateway) -> None:
    gateway = start(**cutting(100))
    status, _, _ = chat(gateway, ALICE, stub="events=300;gzip=1", stream=True)
    assert status == 200
    assert gateway.used("alice", "daily") == 310
    assert chat(gateway, ALICE)[0] == 429
