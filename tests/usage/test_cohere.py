"""Cohere: tokens that the model read and wrote, not the units of the bill."""

from __future__ import annotations

from typing import Any

import pytest

from fastgw.model import Usage
from fastgw.usage.cohere import COHERE
from tests.usage.answers import answer, lines, sse, watch

USAGE = {
    "billed_units": {"input_tokens": 7, "output_tokens": 4},
    "tokens": {"input_tokens": 69, "output_tokens": 5},
    "cached_tokens": 2,
}
REPORTED = Usage(69, 5, 2, source="reported")


def delta(text: str) -> tuple[str, Any]:
    return ("content-delta", {"type": "content-delta", "index": 0,
                              "delta": {"message": {"content": {"text": text}}}})  # fmt: skip


def end(usage: Any) -> tuple[str, Any]:
    return ("message-end", {"type": "message-end", "delta": {"usage": usage}})


def test_v2() -> None:
    assert watch(COHERE, sse, delta("Hi"), end(USAGE)).usage == REPORTED
    body = {"id": "1", "message": {"content": [{"type": "text", "text": "Hi"}]}, "usage": USAGE}
    assert answer(COHERE, body).usage == REPORTED


def test_billed_units_where_there_are_no_tokens() -> None:
    assert watch(COHERE, sse, end({"billed_units": USAGE["billed_units"]})).usage[:2] == (7, 4)
    body = {"embeddings": {"float": [[0.5]]}, "meta": {"billed_units": {"input_tokens": 3}}}
    assert answer(COHERE, body).usage == Usage(3, 0, source="reported")


def test_v1() -> None:
    text = {"event_type": "text-generation", "text": "Hi"}
    done = {"event_type": "stream-end", "response": {"meta": USAGE, "text": "Hi"}}
    assert watch(COHERE, lines, text, done).usage == REPORTED
    assert answer(COHERE, {"text": "Hi", "meta": USAGE}).usage == REPORTED


def test_decoys_are_not_believed() -> None:
    decoy = ("x", {"type": "some-new-event", "usage": USAGE, "delta": {"usage": USAGE}})
    found = watch(COHERE, sse, decoy, delta("12345678"), decoy)
    assert found.usage == Usage(7, 2, source="counted")


@pytest.mark.parametrize(
    ("below", "operation"),
    [("/chat", "chat"), ("/v2/chat", "chat"), ("/embed", "embeddings"), ("/rerank", ""),
     ("/api/chat", ""), ("/chat/completions", "")],
)  # fmt: skip
def test_paths(below: str, operation: str) -> None:
    assert COHERE.operation(below) == operation


def test_all_of_a_prompt_is_counted() -> None:
    found = str(COHERE.prompt({"message": "Hello", "preamble": "Be", "chat_history": ["Hi"]}))
    assert all(word in found for word in ("Hello", "Be", "Hi"))
