"""Ollama's own format: `/api/chat`, `/api/generate`, `/api/embed`; it streams JSON lines unless
told otherwise.

The counts stand in the last line, beside its text. `prompt_eval_count` is left out where the prompt
was cached: then it is counted.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from fastgw.compiled import interpreted
from fastgw.model import Usage
from fastgw.usage.api import UNKNOWN, Api, numbers, strings, text
from fastgw.usage.payload import written

_NAMES = ("prompt_eval_count", "eval_count")
_COUNT = re.compile(rb'"((?:prompt_)?eval_count)"\s*:\s*(\d{1,13})')
_WRITTEN = frozenset({"content", "thinking", "name"})


@interpreted
class Ollama(Api):
    """See the module."""

    name = "ollama"
    shape = "ollama"
    OPERATIONS: ClassVar = {
        "/api/chat": "chat",
        "/api/generate": "text_completion",
        "/api/embed": "embeddings",
        "/api/embeddings": "embeddings",
    }
    LIMITS: ClassVar = {
        "chat": ("options.num_predict",),
        "text_completion": ("options.num_predict",),
    }
    STREAMS = frozenset({"chat", "text_completion"})
    MODELS = frozenset({"/api/tags", "/models"})
    CHOICES = ()

    USAGE = _COUNT
    MARK = b'eval_count"'

    def prompt(self, message: dict[str, Any]) -> dict[str, Any]:
        """See Api."""
        messages = message.get("messages")
        found = message | {"images": None}
        if isinstance(messages, list):
            found["messages"] = [
                _without_images(each) if isinstance(each, dict) and "images" in each else each
                for each in messages
            ]
        return found

    def owns(self, message: dict[str, Any]) -> bool:
        """See Api."""
        return not message.keys().isdisjoint(_NAMES) or (
            isinstance(message.get("done"), bool)
            and ("message" in message or "response" in message)
        )

    def reads(self, usage: dict[str, Any]) -> bool:
        """See Api."""
        return not usage.keys().isdisjoint(_NAMES)

    def usage_object(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See Api."""
        usage = {name: message[name] for name in _NAMES if message.get(name) is not None}
        return usage or None

    def normal_form(self, usage: dict[str, Any]) -> Usage | None:
        """See Api."""
        given, made = numbers(usage, *_NAMES)
        if given is None and made is None:
            return None
        return Usage(UNKNOWN if given is None else given, made or 0, source="reported")

    def texts(self, message: dict[str, Any]) -> list[str]:
        """See Api."""
        inner = message.get("message")
        if not isinstance(inner, dict):
            return [text(message.get("thinking")), text(message.get("response"))]
        found = strings(inner, _WRITTEN)
        calls = inner.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and function.get("arguments"):
                found.append(written(function["arguments"]))
        return found

    def usage_at_end(self, tail: bytes) -> dict[str, Any] | None:
        """See Api."""
        return {name.decode(): int(count) for name, count in _COUNT.findall(tail)} or None


def _without_images(message: dict[str, Any]) -> dict[str, Any]:
    images = message["images"]
    number = len(images) if isinstance(images, list) else 1
    return message | {"images": [{"type": "image"}] * number}


OLLAMA = Ollama()
