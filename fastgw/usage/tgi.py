"""Text Generation Inference's own format: `/generate` and `/generate_stream`; its chat is OpenAI's.

Counts stand in `details`, in a stream of its last event, buffered where `parameters.details` asks
for them. The input is told as `input_length`, or by the list of its tokens.
"""

from __future__ import annotations

from typing import Any, ClassVar

from fastgw.compiled import interpreted
from fastgw.model import Usage
from fastgw.usage.api import UNKNOWN, Api, member_pattern, number, text

_USAGE = member_pattern("details")


@interpreted
class TGI(Api):
    """See the module."""

    name = "tgi"
    OPERATIONS: ClassVar = {"/generate_stream": "text_completion", "/generate": "text_completion"}
    LIMITS: ClassVar = {"text_completion": ("parameters.max_new_tokens",)}
    CHOICES = ("parameters.best_of",)

    USAGE = _USAGE[0]
    USAGE_OBJECT = _USAGE[1]
    MARK = b'_tokens"'

    def path_streams(self, below: str) -> bool | None:
        """See Api."""
        return True if below.lower().endswith("/generate_stream") else None

    def prompt(self, message: dict[str, Any]) -> dict[str, Any]:
        """See Api."""
        return {"prompt": message.get("inputs")}

    def owns(self, message: dict[str, Any]) -> bool:
        """See Api."""
        return "generated_text" in message or isinstance(message.get("token"), dict)

    def reads(self, usage: dict[str, Any]) -> bool:
        """See Api."""
        return "generated_tokens" in usage

    def usage_object(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See Api."""
        details = message.get("details")
        if not isinstance(details, dict):
            return None
        kept = ("generated_tokens", "input_length")
        usage = {name: details[name] for name in kept if details.get(name) is not None}
        prefill = details.get("prefill")
        if "input_length" not in usage and isinstance(prefill, list) and prefill:
            usage["input_length"] = len(prefill)
        return usage or None

    def normal_form(self, usage: dict[str, Any]) -> Usage | None:
        """See Api."""
        made = number(usage.get("generated_tokens"))
        given = number(usage.get("input_length"))
        if made is None:
            return None
        return Usage(UNKNOWN if given is None else given, made, source="reported")

    def texts(self, message: dict[str, Any]) -> list[str]:
        """See Api. The last event repeats the whole text."""
        token = message.get("token")
        if isinstance(token, dict):
            return [text(token.get("text"))]
        return [text(message.get("generated_text"))]


TGI_API = TGI()
