"""Bedrock: converse, and invoke with the format of whatever model it is.

Streams are AWS event streams (`framing.MessageFramer`). Usage of converse stands in `usage`, in a
stream in the `metadata` event; cache reads and writes stand beside `inputTokens`. The last event of
an invoke stream has `amazon-bedrock-invocationMetrics`; what the model's own format reports is more
exact where it is there.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from fastgw.compiled import interpreted
from fastgw.model import Usage
from fastgw.usage.anthropic import ANTHROPIC
from fastgw.usage.api import UNKNOWN, Api, member_pattern, number, numbers, strings, without_data
from fastgw.usage.openai import OPENAI
from fastgw.usage.payload import written

_PATH = re.compile(
    r"/model/([^/]+)/(converse|invoke|count-tokens)(-stream|-with-response-stream)?$",
    re.IGNORECASE,
)
_OPERATIONS = {"converse": "chat", "invoke": "text_completion", "count-tokens": "count_tokens"}
_METRICS = "amazon-bedrock-invocationMetrics"
_EVENTS = frozenset(
    {
        "messageStart",
        "contentBlockStart",
        "contentBlockDelta",
        "contentBlockStop",
        "messageStop",
        "metadata",
    }
)
_DATA = frozenset({"bytes", "data", "s3Location"})
_OWN = (
    ("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens"),
    ("inputTokenCount", "outputTokenCount", "cacheReadInputTokenCount",
     "cacheWriteInputTokenCount"),
    ("prompt_token_count", "generation_token_count", "", ""),  # Llama
    ("inputTextTokenCount", "outputTextTokenCount", "", ""),  # Titan
)  # fmt: skip
"""Names of input, output, cache read and cache write."""
_INPUTS = frozenset({"input_tokens", "prompt_tokens"})
_OTHERS = _INPUTS | {"output_tokens", "completion_tokens"}
"""Names of Anthropic's and OpenAI's: a report may have the output alone."""
_WRITTEN = frozenset({"text", "input", "name", "generation", "outputText", "completion"})


@interpreted
class Bedrock(Api):
    """See the module."""

    name = "bedrock"
    shape = "bedrock"
    OPERATIONS: ClassVar = {"/async-invoke": "batch"}
    LIMITS: ClassVar = {
        "chat": ("inferenceConfig.maxTokens",),
        # Which one a model takes is not known here, so none is ever added.
        "text_completion": (
            "max_tokens", "max_gen_len", "max_tokens_to_sample", "max_completion_tokens",
            "textGenerationConfig.maxTokenCount", "inferenceConfig.maxTokens",
            "inferenceConfig.max_new_tokens", "",
        ),
    }  # fmt: skip
    MODELS = frozenset({"/foundation-models"})

    USAGE = re.compile(
        member_pattern(f"usage|{_METRICS}")[0].pattern + rb'|"prompt_token_count"\s*:\s*\d'
    )

    PATH_MODEL = _PATH

    def operation(self, below: str) -> str:
        """See Api."""
        found = _PATH.search(below)
        return _OPERATIONS[found[2].lower()] if found else super().operation(below)

    def path_streams(self, below: str) -> bool | None:
        """See Api."""
        found = _PATH.search(below)
        return None if found is None else bool(found[3])

    def prompt(self, message: dict[str, Any]) -> dict[str, Any]:
        """See Api."""
        get = message.get
        config = get("toolConfig")
        return {
            "messages": without_data(get("messages"), _DATA),
            "system": get("system"),
            "input": [get("inputText"), get("input"), get("texts")],
            "prompt": get("prompt"),
            "tools": config.get("tools") if isinstance(config, dict) else get("tools"),
        }

    def owns(self, message: dict[str, Any]) -> bool:
        """See Api."""
        return (
            _METRICS in message
            or "stopReason" in message
            or "inputTextTokenCount" in message
            or "prompt_token_count" in message
            or (len(message) == 1 and not _EVENTS.isdisjoint(message))
            or self._exception(message)
        )

    def reads(self, usage: dict[str, Any]) -> bool:
        """See Api."""
        return any(not usage.keys().isdisjoint(names[:2]) for names in _OWN)

    def usage_object(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See Api."""
        usage: Any = message.get(_METRICS)
        if usage is None and len(message) == 1 and isinstance(message.get("metadata"), dict):
            usage = message["metadata"].get("usage")
        elif usage is None and "stopReason" in message:
            usage = message.get("usage")
        elif usage is None and (
            "prompt_token_count" in message or "inputTextTokenCount" in message
        ):
            usage = _flat(message)
        elif usage is None:
            owner = ANTHROPIC if ANTHROPIC.owns(message) else OPENAI
            return owner.usage_object(message)
        return usage if isinstance(usage, dict) else None

    def normal_form(self, usage: dict[str, Any]) -> Usage | None:
        """See Api."""
        # Where a model tells of its output alone, the input stands in the metrics.
        told = _INPUTS if self.reads(usage) else _OTHERS
        if not told.isdisjoint(usage):
            found = (ANTHROPIC if ANTHROPIC.reads(usage) else OPENAI).normal_form(usage)
            if found is not None and _INPUTS.isdisjoint(usage) and not found.input_tokens:
                return found._replace(input_tokens=UNKNOWN)
            return found
        for names in _OWN:
            given, made, read, created = numbers(usage, *names)
            if given is None and made is None:
                continue
            if read is None and names[0] == "inputTokens":
                read, created = numbers(usage, "cacheReadInputTokenCount",
                                        "cacheWriteInputTokenCount")  # fmt: skip
            given, made, read, created = given or 0, made or 0, read or 0, created or 0
            total = number(usage.get("totalTokens"))
            if total is None or total != given + made:  # else they are part of the input
                given += read + created
            if total is not None and total > given + made:
                made = total - given
            return Usage(given, made, read, created, 0, "reported")
        return None

    def texts(self, message: dict[str, Any]) -> list[str]:
        """See Api."""
        if "contentBlockDelta" in message or "contentBlockStart" in message:
            return strings(message, _WRITTEN)
        output = message.get("output")
        inner = output.get("message") if isinstance(output, dict) else None
        content = inner.get("content") if isinstance(inner, dict) else None
        if isinstance(content, list):
            calls = [
                written(block["toolUse"].get("input"))
                for block in content
                if isinstance(block, dict) and isinstance(block.get("toolUse"), dict)
            ]
            return strings(content, frozenset({"text", "name"})) + calls
        if ANTHROPIC.owns(message):
            return ANTHROPIC.texts(message)
        if "choices" in message:
            return OPENAI.texts(message)
        return strings(message, _WRITTEN)

    def model(self, message: dict[str, Any]) -> str:
        """See Api."""
        return ANTHROPIC.model(message)

    def failed(self, message: dict[str, Any]) -> bool:
        """See Api."""
        return self._exception(message) or super().failed(message)

    def _exception(self, message: dict[str, Any]) -> bool:
        return len(message) == 1 and next(iter(message)).lower().endswith("exception")


def _flat(message: dict[str, Any]) -> dict[str, Any]:
    """The counts that stand beside the text."""
    names = [name for group in _OWN for name in group if name]
    usage = {name: message[name] for name in names if name in message}
    results = message.get("results")
    made = message.get("totalOutputTextTokenCount")
    if made is None and isinstance(results, list):
        made = sum(
            number(each.get("tokenCount")) or 0 for each in results if isinstance(each, dict)
        )
    if made is not None:
        usage["outputTextTokenCount"] = made
    return usage


BEDROCK = Bedrock()
