"""watsonx' own format: `/text/generation` and `/text/generation_stream`; its chat is OpenAI's.

Counts stand in each of `results`: the input in the first event, 0 after that, the output as a
running number.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

from fastgw.compiled import interpreted
from fastgw.model import Usage
from fastgw.usage.api import Api, number, numbers, text

_NAMES = ("input_token_count", "generated_token_count")


@interpreted
class Watsonx(Api):
    """See the module."""

    name = "watsonx"
    OPERATIONS: ClassVar = {
        "/text/generation_stream": "text_completion",
        "/text/generation": "text_completion",
    }
    LIMITS: ClassVar = {"text_completion": ("parameters.max_new_tokens",)}
    CHOICES = ()

    USAGE = re.compile(rb'"(?:input|generated)_token_count"\s*:\s*\d')
    MARK = b'_token_count"'

    def path_streams(self, below: str) -> bool | None:
        """See Api."""
        return True if below.lower().endswith("/text/generation_stream") else None

    def owns(self, message: dict[str, Any]) -> bool:
        """See Api."""
        return any("generated_text" in each for each in _results(message))

    def reads(self, usage: dict[str, Any]) -> bool:
        """See Api."""
        return not usage.keys().isdisjoint(_NAMES)

    def usage_object(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """See Api."""
        results = _results(message)
        usage = {name: sum(number(each.get(name)) or 0 for each in results) for name in _NAMES}
        return {name: count for name, count in usage.items() if count} or None

    def normal_form(self, usage: dict[str, Any]) -> Usage | None:
        """See Api."""
        given, made = numbers(usage, *_NAMES)
        if given is None and made is None:
            return None
        return Usage(given or 0, made or 0, source="reported")

    def texts(self, message: dict[str, Any]) -> list[str]:
        """See Api."""
        return [text(each.get("generated_text")) for each in _results(message)]

    def model(self, message: dict[str, Any]) -> str:
        """See Api."""
        return text(message.get("model_id"))

    def prompt(self, message: dict[str, Any]) -> dict[str, Any]:
        """See Api."""
        return {"prompt": message.get("input")}


def _results(message: dict[str, Any]) -> list[dict[str, Any]]:
    results = message.get("results")
    if not isinstance(results, list):
        return []
    return [each for each in results if isinstance(each, dict)]


WATSONX = Watsonx()
