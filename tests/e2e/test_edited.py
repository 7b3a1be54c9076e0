"""Answers that are read before they are shown, where each chunk of them comes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from fastgw.http1.body import LAST_CHUNK, chunk
from tests.e2e.test_money import ROOMY, raw_provider
from tests.processes import ALICE, request

if TYPE_CHECKING:
    from tests.e2e.conftest import StartGateway

CAROL = "sk-carol-0123456789abcdef"
MODELS = orjson.dumps({"object": "list", "data": [{"id": "gpt-4o"}, {"id": "o9-secret"}]})
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


def in_chunks(status: bytes, media: bytes, body: bytes, size: int) -> list[bytes]:
    """An answer whose head and chunks are pieces of their own."""
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [chunk(body[at : at + size]) for at in range(0, len(body), size)]
    return [head % (status, media), *pieces, LAST_CHUNK]


def test_no_part_of_a_list_of_models_passes_unread(start: StartGateway) -> None:
    answer = in_chunks(b"200 OK", b"application/json", MODELS, 20)
    with raw_provider(lambda asked, number: answer) as port:
        gateway = start(
            base_url=f"http://127.0.0.1:{port}/v1",
            more=f'[[keys]]\nname = "carol"\nkey = "{CAROL}"\nallowed_models = ["gpt-4o*"]\n',
        )
        credential = {"Authorization": f"Bearer {CAROL}"}
        status, fields, body = request(gateway.port, "GET", "/openai/models", None, credential)
    assert status == 200
    assert orjson.loads(body)["data"] == [{"id": "gpt-4o"}]
    assert fields["content-length"] == str(len(body))


def test_an_error_about_what_we_asked_for_is_not_shown(start: StartGateway) -> None:
    error = b'{"error":{"message":"unknown field: stream_options","type":"invalid_request_error"}}'

    def answer(asked: bytes, number: int) -> list[bytes]:
        if b"stream_options" in asked:
            return in_chunks(b"400 Bad Request", b"application/json", error, 25)
        return in_chunks(b"200 OK", b"text/event-stream", EVENT + DONE, len(EVENT))

    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"Hello"}]}'
    fields = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"}
    with raw_provider(answer) as port:
        gateway = start(base_url=f"http://127.0.0.1:{port}/v1", budgets=ROOMY)
        for _ in range(2):
            status, _, said = request(gateway.port, "POST", "/openai", body, fields)
            assert (status, said) == (200, EVENT + DONE)
