"""Gemini's own format: generateContent and streamGenerateContent, at Google and at Vertex.

Usage stands in `usageMetadata` of every event, cumulative, final in the last. Cached tokens are
part of the prompt; thoughts stand beside the candidates, results of server tools
(`toolUsePrompt…`) beside the prompt. Without `alt=sse` a stream is a JSON array. `usage` of the
interactions API has names of its own.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from fastgw.compiled import interpreted
from fastgw.model import Usage
from fastgw.usage.api import Api, member_pattern, numbers, text, without_data
from fastgw.usage.payload import written

_PATH = re.compile(r"/(?:models|tunedmodels|endpoints)/([^/:]+):([a-z]+)$", re.IGNORECASE)
_METHODS = {
    "generatecontent": "generate_content",
    "streamgeneratecontent": "generate_content",
    "embedcontent": "embeddings",
    "batchembedcontents": "embeddings",
    "counttokens": "count_tokens",
    "computetokens": "count_tokens",
    "batchgeneratecontent": "batch",
    "asyncbatchembedcontent": "batch",
}
_DATA = frozenset({"inlineData", "inline_data", "fileData", "file_data"})
_NAMES = (
    "promptTokenCount",
    "toolUsePromptTokenCount",
    "candidatesTokenCount",
    "thoughtsTokenCount",
    "cachedContentTokenCount",
    "totalTokenCount",
)
_INTERACTION = (
    "total_input_tokens",
    "total_tool_use_tokens",
    "total_output_tokens",
    "total_thought_tokens",
    "total_cached_tokens",
    "total_tokens",
)

_USAGE = member_pattern("usageMetadata|usage_metadata|usage")


@interpreted
class Gemini(Api):
    """See the module."""

    name = "gemini"
    shape = "gemini"
    credential = "x-goog-api-key: "
    OPERATIONS: ClassVar = {"/interactions": "generate_content"}
    LIMITS: ClassVar = {
        "generate_content": tuple(
            f"{outer}.{inner}"
            for outer in ("generation_config", "generationConfig")
            for inner in ("max_output_tokens", "maxOutputTokens")
        )
    }
    CHOICES = tuple(
        f"{outer}.{inner}"
        for outer in ("generation_config", "generationConfig")
        for inner in ("candidate_count", "candidateCount")
    )

    USAGE = _USAGE[0]
    USAGE_OBJECT = _USAGE[1]

    PATH_MODEL = _PATH

    def operation(self, below: str) -> str:
        """See Api: the method after the colon."""
        found = _PATH.search(below)
        return _METHODS.get(found[2].lower(), "") if found else super().operation(below)

    def path_streams(self, below: str) -> bool | None:
        """See Api."""
        found = _PATH.search(below)
        return None if found is None else found[2].lower().startswith("stream")

    def prompt(self, message: dict[str, Any]) -> dict[str, Any]:
        """See Api."""
        get = message.get
        return {
            "messages": without_data(get("contents") or get("content"), _DATA),
            "input": [get("requests"), get("input")],
            "system": get("systemInstruction") or get("system_instruction"),
            "tools": get("tools"),
        }

    def owns(self, message: dict[str, Any]) -> bool:
        """See Api."""
        return (
            "usageMetadata" in message
            or "candidates" in message
            or "promptFeedback" in message
            or "interaction" in message
            or message.get("object") == "interaction"
            or (isinstance(inner := message.get("response"), dict) and "usageMetadata" in inner)
        )

    def reads(self, usage: dict[str, Any]) -> bool:
        """See Api."""
        return not usage.keys().isdisjoint(_NAMES) or not usage.keys().isdisjoint(_INTERACTION[:5])

    def usage_object(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See Api."""
        inner = message.get("response")  # as Code Assist wraps it
        if isinstance(inner, dict) and "usageMetadata" in inner:
            message = inner
        usage = message.get("usageMetadata", message.get("usage_metadata"))
        if usage is None:
            interaction = message.get("interaction", message)
            if isinstance(interaction, dict) and (
                interaction is not message or message.get("object") == "interaction"
            ):
                usage = interaction.get("usage")
        return usage if isinstance(usage, dict) else None

    def normal_form(self, usage: dict[str, Any]) -> Usage | None:
        """See Api."""
        names = _NAMES if usage.keys().isdisjoint(_INTERACTION[:5]) else _INTERACTION
        given, tools, made, thoughts, cached, total = numbers(usage, *names)
        if given is None and made is None and thoughts is None and total is None:
            return None
        if given is None:
            given = max(0, (total or 0) - (made or 0) - (thoughts or 0) - (tools or 0))
        given += tools or 0
        output = (made or 0) + (thoughts or 0)
        if total is not None and total > given + output:
            output = total - given
        return Usage(given, output, cached or 0, 0, thoughts or 0, "reported")

    def texts(self, message: dict[str, Any]) -> list[str]:
        """See Api."""
        found: list[str] = []
        candidates = message.get("candidates")
        for candidate in candidates if isinstance(candidates, list) else ():
            content = candidate.get("content") if isinstance(candidate, dict) else None
            parts = content.get("parts") if isinstance(content, dict) else None
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict):
                    _part(part, found)
        delta = message.get("delta")  # of an interaction
        if isinstance(delta, dict):
            _part(delta, found)
        return found

    def model(self, message: dict[str, Any]) -> str:
        """See Api."""
        return text(message.get("modelVersion")) or text(message.get("model"))


def _part(part: dict[str, Any], found: list[str]) -> None:
    """The text of a part that the model wrote: not what a server tool answered."""
    if isinstance(part.get("text"), str):
        found.append(part["text"])
    call = part.get("functionCall")
    if isinstance(call, dict):
        found.append(text(call.get("name")))
        found.append(written(call.get("args") or {}))
    code = part.get("executableCode")
    if isinstance(code, dict):
        found.append(text(code.get("code")))


GEMINI = Gemini()
