"""Anthropic's messages, as Anthropic, Bedrock and Vertex serve them and others imitate.

Usage stands in `usage` of a buffered answer; in a stream in `message_start.message.usage`, then in
`message_delta.usage`, which is cumulative and may leave fields out: the last value of each wins.
Cache reads and writes stand beside `input_tokens`. `iterations` (compaction, advisors) lists all
calls that the answer took, of which the top level leaves some out: their sum is what is billed.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from fastgw.compiled import interpreted
from fastgw.model import Usage
from fastgw.usage.api import Api, number, numbers, strings, text, without_data
from fastgw.usage.payload import written

_PATH = re.compile(
    r"(?:/publishers/anthropic/models/|/models/(?=[^/:]*claude))([^/:]+):(stream)?rawpredict",
    re.IGNORECASE,
)
"""Vertex: the model and whether it streams; those of other makers speak OpenAI's (see vertex)."""

_EVENTS = frozenset(
    {
        "message_start",
        "message_delta",
        "message_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "ping",
        "error",
        "message",
    }
)
_WRITTEN = frozenset({"text", "thinking", "partial_json"})
_DATA = frozenset({"data"})
_CALLS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_BLOCKS = _CALLS | {"text", "thinking"}


@interpreted
class Anthropic(Api):
    """See the module."""

    name = "anthropic"
    shape = "anthropic"
    credential = "x-api-key: "
    OPERATIONS: ClassVar = {
        "/messages/count_tokens": "count_tokens",
        "/messages/batches": "batch",
        "/messages": "chat",
    }
    LIMITS: ClassVar = {"chat": ("max_tokens",)}
    SHOWS_OLD_USAGE = ("/messages/batches/",)
    CHOICES = ()
    MARK = b'_tokens"'

    PATH_MODEL = _PATH

    def operation(self, below: str) -> str:
        """See Api; Vertex names the model in the path."""
        return super().operation(below) or ("chat" if _PATH.search(below) else "")

    def path_streams(self, below: str) -> bool | None:
        """See Api."""
        found = _PATH.search(below)
        return None if found is None else bool(found[2])

    def prompt(self, message: dict[str, Any]) -> dict[str, Any]:
        """See Api."""
        return message | {"messages": without_data(message.get("messages"), _DATA)}

    def owns(self, message: dict[str, Any]) -> bool:
        """See Api."""
        return text(message.get("type")) in _EVENTS and "choices" not in message

    def reads(self, usage: dict[str, Any]) -> bool:
        """See Api."""
        return "input_tokens" in usage and not (
            "input_tokens_details" in usage or "total_tokens" in usage
        )

    def usage_object(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See Api."""
        kind = message.get("type")
        if kind == "message_start":
            inner = message.get("message")
            usage = inner.get("usage") if isinstance(inner, dict) else None
        elif kind in ("message_delta", "message"):
            usage = message.get("usage")
        else:
            return None
        return usage if isinstance(usage, dict) else None

    def normal_form(self, usage: dict[str, Any]) -> Usage | None:
        """See Api."""
        found = _form(usage)
        rounds = usage.get("iterations")
        if not isinstance(rounds, list) or not rounds:
            return found
        parts = [_form(each) for each in rounds if isinstance(each, dict)]
        made = [part for part in parts if part is not None]
        if len(made) != len(rounds):
            return found
        whole = Usage(
            sum(part.input_tokens for part in made),
            sum(part.output_tokens for part in made),
            sum(part.cached_input_tokens for part in made),
            sum(part.cache_write_tokens for part in made),
            found.reasoning_tokens if found is not None else 0,
            "reported",
        )
        return whole if found is None or whole.total_tokens > found.total_tokens else found

    def texts(self, message: dict[str, Any]) -> list[str]:
        """See Api. Results of the server's own tools are not the model's text."""
        kind = message.get("type")
        if kind == "content_block_delta":
            return strings(message.get("delta"), _WRITTEN)
        if kind == "content_block_start":
            block = message.get("content_block")
            return _block(block) if isinstance(block, dict) else []
        content = message.get("content") if kind == "message" else None
        if not isinstance(content, list):
            return []
        return [part for block in content if isinstance(block, dict) for part in _block(block)]

    def calls(self, message: dict[str, Any]) -> int:
        """See Api."""
        content = message.get("content") if message.get("type") == "message" else None
        blocks = content if isinstance(content, list) else [message.get("content_block")]
        return sum(isinstance(each, dict) and text(each.get("type")) in _CALLS for each in blocks)

    def model(self, message: dict[str, Any]) -> str:
        """See Api."""
        inner = message.get("message")
        return text(message.get("model")) or (
            text(inner.get("model")) if isinstance(inner, dict) else ""
        )


def _form(usage: dict[str, Any]) -> Usage | None:
    given, made, read, created = numbers(
        usage,
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
    )
    if given is None and made is None:
        return None
    details = usage.get("output_tokens_details")
    thought = number(details.get("thinking_tokens")) if isinstance(details, dict) else None
    read, created = read or 0, created or 0
    return Usage((given or 0) + read + created, made or 0, read, created, thought or 0, "reported")


def _block(block: dict[str, Any]) -> list[str]:
    """The text of a content block that the model wrote."""
    if text(block.get("type")) not in _BLOCKS:
        return []
    found = strings(
        {name: block.get(name) for name in ("text", "thinking", "name")},
        frozenset({"text", "thinking", "name"}),
    )
    given = block.get("input")
    if given:
        found.append(written(given))
    return [part for part in found if part]


ANTHROPIC = Anthropic()
