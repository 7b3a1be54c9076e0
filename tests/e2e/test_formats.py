"""Every format through the real process: a provider that answers with bytes of our choice."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastgw.usage.framing import MessageFramer
from tests.processes import ALICE, PER_USER, Gateway, request
from tests.usage.answers import array, aws, lines, sse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import StartGateway

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"
LINES = "application/x-ndjson"
MESSAGES = "application/vnd.amazon.eventstream"

GEMINI = {"promptTokenCount": 10, "candidatesTokenCount": 4, "thoughtsTokenCount": 5}
COHERE = {"usage": {"tokens": {"input_tokens": 10, "output_tokens": 9}}}
BEDROCK = {"inputTokens": 10, "outputTokens": 9, "totalTokens": 19}
OLLAMA = {"done": True, "prompt_eval_count": 10, "eval_count": 9}
TEXT = ("contentBlockDelta", {"delta": {"text": "Hi"}})

CASES: dict[str, tuple[str, str, str, bytes]] = {
    "ollama stream": ("ollama", "/api/chat", LINES,
                      lines({"message": {"content": "Hi"}, "done": False}, OLLAMA)),
    "ollama whole": ("ollama", "/api/generate", JSON, orjson.dumps(OLLAMA)),
    "ollama, openai": ("ollama", "/v1/chat/completions", JSON, orjson.dumps(
        {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 9}})),
    "cohere stream": ("cohere", "/v2/chat", EVENTS, sse({"type": "message-end", "delta": COHERE})),
    "cohere whole": ("cohere", "/v2/chat", JSON, orjson.dumps({"message": {}, **COHERE})),
    "converse stream": ("bedrock", "/model/a.b-v1%3A0/converse-stream", MESSAGES,
                        aws(TEXT, ("metadata", {"usage": BEDROCK}))),
    "converse": ("bedrock", "/model/a/converse", JSON,
                 orjson.dumps({"stopReason": "x", "usage": BEDROCK})),
    "gemini array": ("gemini", "/v1beta/models/g:streamGenerateContent", JSON,
                     array({"candidates": []}, {"usageMetadata": GEMINI})),
    "gemini events": ("gemini", "/v1beta/models/g:streamGenerateContent", EVENTS,
                      sse({"candidates": []}, {"usageMetadata": GEMINI})),
    "tgi stream": ("tgi", "/generate_stream", EVENTS, sse(
        {"token": {"text": "Hi"}, "details": {"generated_tokens": 9, "input_length": 10}})),
    "watsonx": ("watsonx", "/ml/v1/text/generation", JSON, orjson.dumps(
        {"results": [{"generated_text": "", "input_token_count": 10,
                      "generated_token_count": 9}]})),
    "mistral": ("mistral", "/v1/chat/completions", EVENTS, sse(
        {"choices": [{"delta": {}}], "usage": {"prompt_tokens": 10, "completion_tokens": 9}})),
}  # fmt: skip


class Replay(BaseHTTPRequestHandler):
    """Answers each POST with `media` and `data`, in `pieces`; `cut` ends it before its end."""

    protocol_version = "HTTP/1.1"
    media = JSON
    data = b""
    pieces = 0
    cut = False

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", self.media)
        if not self.pieces:
            self.send_header("content-length", str(len(self.data)))
            self.end_headers()
            self.wfile.write(self.data)
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for at in range(0, len(self.data), self.pieces):
            piece = self.data[at : at + self.pieces]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        if self.cut:
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base
        """Say nothing."""


@pytest.fixture
def replay() -> Iterator[type[Replay]]:
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


def start_for(start: StartGateway, replay: Any, dialect: str) -> Gateway:
    return start(
        base_url=f"http://127.0.0.1:{replay.port}",
        budgets=PER_USER.format(limit=1_000_000),
        upstream=f'dialect = "{dialect}"\n',
    )


def ask(gateway: Gateway, path: str) -> tuple[int, bytes]:
    headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": JSON}
    status, _, answer = request(gateway.port, "POST", "/openai" + path, b'{"model":"m"}', headers)
    return status, answer


@pytest.mark.parametrize("name", CASES)
def test_what_is_reported_is_charged_and_nothing_is_changed(
    start: StartGateway, replay: type[Replay], name: str
) -> None:
    dialect, path, replay.media, replay.data = CASES[name]
    gateway = start_for(start, replay, dialect)
    for turn, replay.pieces in enumerate((0, 1, 7, 10_000), 1):
        assert ask(gateway, path) == (200, replay.data)
        assert gateway.used("alice") == 19 * turn
    assert {entry["usage_source"] for entry in gateway.access_log()} == {"reported"}


@pytest.mark.parametrize("name", ["ollama stream", "converse stream"])
def test_a_stream_that_the_provider_cuts_ends_in_an_event_of_its_dialect(
    start: StartGateway, replay: type[Replay], name: str
) -> None:
    dialect, path, replay.media, data = CASES[name]
    first = data[: data.index(b"\n") + 1] if dialect == "ollama" else aws(TEXT)
    replay.data, replay.pieces, replay.cut = first, len(first), True
    gateway = start_for(start, replay, dialect)

    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request(
        "POST", "/openai" + path, b"{}", {"Authorization": f"Bearer {ALICE}", "Content-Type": JSON}
    )
    answer = connection.getresponse()
    with pytest.raises(http.client.IncompleteRead) as broken:
        answer.read()
    connection.close()
    got = broken.value.partial
    assert got.startswith(first)
    last = got[len(first) :]
    if dialect == "ollama":
        assert orjson.loads(last) == {"error": "the provider ended the stream early"}
    else:
        assert b"internalServerException" in MessageFramer().feed(last)
    assert gateway.used("alice") > 0
    assert gateway.access_log()[-1]["usage_source"] == "counted"
