"""What the stub provider says in Anthropic's and Gemini's formats; `answers` has OpenAI's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgw.demo.behaviour import Behaviour

Events = list[tuple[str, dict[str, Any] | None]]
"""Events of a stream: type ("" for none) and data."""

_GEMINI = re.compile(rb"/models/([^/:]+):(generateContent|streamGenerateContent|countTokens)$")
_OPERATIONS = {
    b"/messages": "messages",
    b"/messages/count_tokens": "messages/count_tokens",
}
STREAMS_BY_PATH = "streamGenerateContent"
ARRAY = "array"
"""A stream of Gemini without `alt=sse`: the events of `array`."""
ALWAYS_REPORT = frozenset({"messages", "generateContent", STREAMS_BY_PATH, ARRAY, "responses"})
"""Operations whose streams report without being asked."""
REPORTS_NOTHING = frozenset({"models", "anthropic/models", "gemini/models", "countTokens",
                             "messages/count_tokens"})  # fmt: skip
MODELS = ("gpt-3.5-turbo", "gpt-4o", "gpt-4o-mini")


def find(target: bytes, head: bytes) -> tuple[str, str]:
    """Operation and model of a target in these formats; "" for what is not there. `head`: the
    request head in lower case."""
    path, _, query = target.partition(b"?")
    if found := _GEMINI.search(path):
        operation = found[2].decode()
        if operation == STREAMS_BY_PATH and b"alt=sse" not in query:
            operation = ARRAY
        return operation, found[1].decode()
    if path.endswith(b"/models"):
        if b"\r\nanthropic-version:" in head:
            return "anthropic/models", ""
        return ("gemini/models" if b"\r\nx-goog-api-key:" in head else ""), ""
    for end, name in _OPERATIONS.items():
        if path.endswith(end):
            return name, ""
    return "", ""


def body(
    operation: str, model: str, behaviour: Behaviour, words: Sequence[str]
) -> dict[str, Any] | None:
    """The buffered answer; None for an operation of another format."""
    text = "".join(words)
    if operation == "messages":
        return {**_message(model, text, behaviour), "usage": _anthropic_usage(behaviour)}
    if operation == "messages/count_tokens":
        return {"input_tokens": behaviour.prompt}
    if operation == "anthropic/models":
        listed = [
            {
                "type": "model",
                "id": name,
                "display_name": name,
                "created_at": "2026-01-01T00:00:00Z",
            }
            for name in MODELS
        ]
        return {"data": listed, "has_more": False, "first_id": MODELS[0], "last_id": MODELS[-1]}
    if operation == "gemini/models":
        return {"models": [{"name": f"models/{name}", "displayName": name} for name in MODELS]}
    if operation == "countTokens":
        return {"totalTokens": behaviour.prompt}
    if operation == "generateContent":
        return _candidate(model, text, behaviour, "STOP", behaviour.output)
    return None


def events(operation: str, model: str, behaviour: Behaviour, words: Sequence[str]) -> Events | None:
    """The events of a stream; None for an operation of another format."""
    if operation == "messages":
        return _message_events(model, behaviour, words)
    if operation in (STREAMS_BY_PATH, ARRAY):
        last = len(words) - 1
        return [
            (
                "",
                _candidate(
                    model,
                    word,
                    behaviour,
                    "STOP" if at == last else "",
                    behaviour.output if at == last else min(at + 1, behaviour.output),
                ),
            )
            for at, word in enumerate(words)
        ]
    return None


def _anthropic_usage(behaviour: Behaviour) -> dict[str, Any] | None:
    """Cached tokens stand beside the input, of which `prompt` is the sum."""
    if behaviour.usage == "never":
        return None
    return {
        "input_tokens": behaviour.prompt - behaviour.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": behaviour.cached,
        "output_tokens": behaviour.output,
    }


def _message(model: str, text: str, behaviour: Behaviour) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "text", "text": text}
    if behaviour.tools:
        block = {"type": "tool_use", "id": "toolu_stub", "name": "get_weather",
                 "input": {"city": "Paris"}}  # fmt: skip
    return {
        "id": "msg_stub",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block],
        "stop_reason": "tool_use" if behaviour.tools else "end_turn",
        "stop_sequence": None,
    }


def _message_events(model: str, behaviour: Behaviour, words: Sequence[str]) -> Events:
    usage = _anthropic_usage(behaviour)
    start = _message(model, "", behaviour) | {"content": [], "stop_reason": None}
    if usage is not None:
        start["usage"] = usage | {"output_tokens": 1}
    block: dict[str, Any] = {"type": "text", "text": ""}
    deltas: list[dict[str, Any]] = [{"type": "text_delta", "text": word} for word in words]
    if behaviour.tools:
        block = {"type": "tool_use", "id": "toolu_stub", "name": "get_weather", "input": {}}
        deltas = [
            {"type": "input_json_delta", "partial_json": part} for part in ('{"city":', '"Paris"}')
        ]
    found: Events = [
        ("message_start", {"type": "message_start", "message": start}),
        (
            "content_block_start",
            {"type": "content_block_start", "index": 0, "content_block": block},
        ),
        ("ping", {"type": "ping"}),
    ]
    found += [
        ("content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta})
        for delta in deltas
    ]
    end: dict[str, Any] = {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use" if behaviour.tools else "end_turn"},
    }
    if usage is not None:
        end["usage"] = {"output_tokens": behaviour.output}
    return [
        *found,
        ("content_block_stop", {"type": "content_block_stop", "index": 0}),
        ("message_delta", end),
        ("message_stop", {"type": "message_stop"}),
    ]


def _candidate(
    model: str, text: str, behaviour: Behaviour, finish: str, made: int
) -> dict[str, Any]:
    """An answer of Gemini: thoughts stand beside the candidates, of which `made` is the sum."""
    part: dict[str, Any] = {"text": text}
    if behaviour.tools:
        part = {"functionCall": {"name": "get_weather", "args": {"city": "Paris"}}}
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [part]}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    thoughts = min(behaviour.reasoning, made)
    answer: dict[str, Any] = {"candidates": [candidate]}
    if behaviour.usage != "never":
        answer["usageMetadata"] = {
            "promptTokenCount": behaviour.prompt,
            "cachedContentTokenCount": behaviour.cached,
            "candidatesTokenCount": made - thoughts,
            "thoughtsTokenCount": thoughts,
            "totalTokenCount": behaviour.prompt + made,
        }
    return answer | {"modelVersion": model, "responseId": "stub"}


def array(found: Events) -> tuple[bytes, ...]:
    """A stream of Gemini as the JSON array that it is without `alt=sse`."""
    last = len(found) - 1
    return tuple(
        (b",\r\n" if at else b"[") + orjson.dumps(value) + (b"]" if at == last else b"\n")
        for at, (_, value) in enumerate(found)
    )
