"""What the stub provider says: OpenAI's shapes here, others in `formats`; deterministic, made once
for each behaviour."""

from __future__ import annotations

from functools import lru_cache
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import orjson

from fastgw.demo import formats

if TYPE_CHECKING:
    from fastgw.demo.behaviour import Behaviour

_WORDS = ("Hello!", "How", "can", "I", "help", "you", "with", "that", "today?")
_CREATED = 1_700_000_000


def words(number: int) -> list[str]:
    """`number` words, each with the blank that parts it from the one before."""
    found = list(islice(cycle(_WORDS), number))
    return [word if at == 0 else f" {word}" for at, word in enumerate(found)]


def usage(behaviour: Behaviour) -> dict[str, Any]:
    """The usage object of chat and completions."""
    return {
        "prompt_tokens": behaviour.prompt,
        "completion_tokens": behaviour.output,
        "total_tokens": behaviour.prompt + behaviour.output,
        "prompt_tokens_details": {"cached_tokens": behaviour.cached},
        "completion_tokens_details": {"reasoning_tokens": behaviour.reasoning},
    }


def _responses_usage(behaviour: Behaviour) -> dict[str, Any]:
    return {
        "input_tokens": behaviour.prompt,
        "input_tokens_details": {"cached_tokens": behaviour.cached},
        "output_tokens": behaviour.output,
        "output_tokens_details": {"reasoning_tokens": behaviour.reasoning},
        "total_tokens": behaviour.prompt + behaviour.output,
    }


def _tool_call() -> dict[str, Any]:
    return {
        "index": 0,
        "id": "call_stub",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
    }


def _response(model: str, behaviour: Behaviour, status: str) -> dict[str, Any]:
    """The object of the responses API."""
    finished = status == "completed"
    message = {
        "id": "msg_stub",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [
            {"type": "output_text", "text": "".join(words(behaviour.events)), "annotations": []}
        ],
    }
    return {
        "id": "resp_stub",
        "object": "response",
        "created_at": _CREATED,
        "status": status,
        "model": model,
        "output": [message] if finished else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": _responses_usage(behaviour) if finished and behaviour.usage != "never" else None,
    }


@lru_cache(maxsize=256)
def body(operation: str, model: str, behaviour: Behaviour) -> bytes:
    """The buffered answer."""
    answer: dict[str, Any]
    other = formats.body(operation, model, behaviour, words(behaviour.events))
    if other is not None:
        answer = other
    elif operation == "embeddings":
        answer = {
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 1.0]}],
            "model": model,
            "usage": {"prompt_tokens": behaviour.prompt, "total_tokens": behaviour.prompt},
        }
    elif operation == "responses":
        answer = _response(model, behaviour, "completed")
    elif operation == "models":
        answer = {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": _CREATED, "owned_by": "stub"}
                for name in formats.MODELS
            ],
        }
    else:
        text = "".join(words(behaviour.events))
        choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
        if operation == "completions":
            choice["text"] = text
        elif behaviour.tools:
            call = _tool_call()
            del call["index"]
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": [call]}
            choice["finish_reason"] = "tool_calls"
        else:
            choice["message"] = {"role": "assistant", "content": text}
        answer = {
            "id": "chatcmpl-stub",
            "object": "text_completion" if operation == "completions" else "chat.completion",
            "created": _CREATED,
            "model": model,
            "choices": [choice],
            "usage": usage(behaviour),
        }
    if behaviour.usage == "never" and operation != "responses":
        answer.pop("usage", None)
    if behaviour.pad:
        answer["pad"] = "x" * behaviour.pad
    return orjson.dumps(answer)


@lru_cache(maxsize=256)
def events(operation: str, model: str, behaviour: Behaviour, asked: bool) -> tuple[bytes, ...]:
    """The events of a stream, each with the blank line that ends it."""
    end = b"\r\n\r\n" if behaviour.crlf else b"\n\n"
    found = formats.events(operation, model, behaviour, words(behaviour.events))
    if found is None:
        found = (
            _responses_events(model, behaviour)
            if operation == "responses"
            else _choice_events(operation, model, behaviour, asked)
        )
    if operation == formats.ARRAY:
        return formats.array(found)
    lines = []
    for kind, value in found:
        if behaviour.pad and value is not None:
            value["obfuscation"] = "x" * behaviour.pad
        data = b"data: " + (orjson.dumps(value) if value is not None else b"[DONE]")
        if kind:
            data = b"event: " + kind.encode() + end[: len(end) // 2] + data
        lines.append(data + end)
    return tuple(lines)


def _responses_events(model: str, behaviour: Behaviour) -> list[tuple[str, dict[str, Any] | None]]:
    found: list[tuple[str, dict[str, Any] | None]] = []

    def add(kind: str, **more: Any) -> None:
        found.append((kind, {"type": kind, "sequence_number": len(found), **more}))

    place = {"item_id": "msg_stub", "output_index": 0, "content_index": 0}
    add("response.created", response=_response(model, behaviour, "in_progress"))
    for word in words(behaviour.events):
        add("response.output_text.delta", delta=word, logprobs=[], **place)
    add("response.output_text.done", text="".join(words(behaviour.events)), logprobs=[], **place)
    add("response.completed", response=_response(model, behaviour, "completed"))
    return found


def _choice_events(
    operation: str, model: str, behaviour: Behaviour, asked: bool
) -> list[tuple[str, dict[str, Any] | None]]:
    chat = operation == "chat"
    base: dict[str, Any] = {
        "id": "chatcmpl-stub",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": _CREATED,
        "model": model,
    }
    reports = behaviour.usage == "always" or (behaviour.usage == "asked" and asked)
    null: dict[str, Any] = {"usage": None} if asked and reports else {}

    def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        part = {"delta": delta} if chat else {"text": delta.get("content") or ""}
        return {**base, "choices": [{"index": 0, **part, "finish_reason": finish}], **null}

    found: list[dict[str, Any]] = []
    if behaviour.tools:
        call = _tool_call()
        arguments = call["function"]["arguments"]
        call["function"] = {"name": "get_weather", "arguments": ""}
        found.append(choice({"role": "assistant", "content": None, "tool_calls": [call]}))
        found += [
            choice({"tool_calls": [{"index": 0, "function": {"arguments": part}}]})
            for part in (arguments[:8], arguments[8:])
        ]
    else:
        found += [
            choice({"role": "assistant", "content": word} if at == 0 else {"content": word})
            for at, word in enumerate(words(behaviour.events))
        ]
    last = choice({}, "tool_calls" if behaviour.tools else "stop")
    if behaviour.usage == "finish":
        last["usage"] = usage(behaviour)
    found.append(last)
    if reports:
        found.append({**base, "choices": [], "usage": usage(behaviour)})
    if behaviour.null_after:
        found.append({**base, "choices": [], "usage": None})
    out: list[tuple[str, dict[str, Any] | None]] = [("", event) for event in found]
    if behaviour.done:
        out.append(("", None))
    return out
