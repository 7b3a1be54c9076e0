"""Cohere's own format, v2 and v1.

Usage stands in `usage` (v2), in a stream in `message-end`; of v1 and of embed in `meta`. It says
two things: `tokens` that the model read and wrote, and `billed_units`, which leave out what Cohere
adds to a prompt. Budgets count `tokens`, and `billed_units` where there are none.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from fastgw.compiled import interpreted
from fastgw.model import Usage
from fastgw.usage.api import Api, member_pattern, number, numbers, strings, text, without_data

_PATH = re.compile(r"(?:^|/v[12])/(chat|embed)$", re.IGNORECASE)
_OPERATIONS = {"chat": "chat", "embed": "embeddings"}
_EVENTS = frozenset(
    {
        "message-start",
        "content-start",
        "content-delta",
        "content-end",
        "tool-plan-delta",
        "tool-call-start",
        "tool-call-delta",
        "tool-call-end",
        "citation-start",
        "citation-end",
        "message-end",
    }
)
_WRITTEN = frozenset({"text", "thinking", "tool_plan", "arguments", "name"})
_DATA = frozenset({"image_url", "images"})

_USAGE = member_pattern("usage|meta")


@interpreted
class Cohere(Api):
    """See the module."""

    name = "cohere"
    shape = "cohere"
    LIMITS: ClassVar = {"chat": ("max_tokens",)}
    CHOICES = ()

    USAGE = _USAGE[0]
    USAGE_OBJECT = _USAGE[1]
    MARK = b'_tokens"'

    def operation(self, below: str) -> str:
        """See Api."""
        found = _PATH.search(below)
        return _OPERATIONS[found[1].lower()] if found else ""

    def prompt(self, message: dict[str, Any]) -> dict[str, Any]:
        """See Api."""
        get = message.get
        return {
            "messages": without_data(get("messages") or get("chat_history"), _DATA),
            "system": get("preamble"),
            "input": [get("message"), get("documents"), get("texts"), get("inputs")],
            "tools": get("tools"),
        }

    def owns(self, message: dict[str, Any]) -> bool:
        """See Api."""
        usage = message.get("usage", message.get("meta"))
        return (
            text(message.get("type")) in _EVENTS
            or isinstance(message.get("event_type"), str)
            or (isinstance(usage, dict) and ("billed_units" in usage or "tokens" in usage))
        )

    def reads(self, usage: dict[str, Any]) -> bool:
        """See Api."""
        return "billed_units" in usage or "tokens" in usage

    def usage_object(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See Api."""
        inner: Any = message
        if message.get("type") == "message-end":
            inner = message.get("delta")
        elif message.get("event_type") == "stream-end":
            inner = message.get("response")
        elif "type" in message or "event_type" in message:
            return None
        if not isinstance(inner, dict):
            return None
        usage = inner.get("usage", inner.get("meta"))
        return usage if isinstance(usage, dict) else None

    def normal_form(self, usage: dict[str, Any]) -> Usage | None:
        """See Api."""
        for name in ("tokens", "billed_units"):
            counts = usage.get(name)
            if not isinstance(counts, dict):
                continue
            given, made = numbers(counts, "input_tokens", "output_tokens")
            if given is not None or made is not None:
                cached = number(usage.get("cached_tokens")) or 0
                return Usage(given or 0, made or 0, cached, source="reported")
        return None

    def texts(self, message: dict[str, Any]) -> list[str]:
        """See Api."""
        kind = message.get("type")
        if isinstance(kind, str):
            return strings(message.get("delta"), _WRITTEN) if kind in _EVENTS else []
        if message.get("event_type") == "text-generation" or "event_type" not in message:
            inner = message.get("message")
            return [text(message.get("text")), *strings(inner, _WRITTEN)]
        return []


COHERE = Cohere()
