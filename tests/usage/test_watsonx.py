"""watsonx: the input in the first event, the output as a running number."""

from __future__ import annotations

from typing import Any

from fastgw.model import Usage
from fastgw.usage.watsonx import WATSONX
from tests.usage.answers import answer, sse, watch


def event(text: str, given: int, made: int) -> dict[str, Any]:
    result = {"generated_text": text, "input_token_count": given, "generated_token_count": made}
    return {"model_id": "granite", "results": [result]}


def test_a_stream() -> None:
    events = (event("", 9, 0), event("Hel", 0, 1), event("lo", 0, 2))
    assert watch(WATSONX, sse, *events)[:2] == (Usage(9, 2, source="reported"), "granite")


def test_buffered() -> None:
    assert answer(WATSONX, event("Hello", 9, 2)).usage == Usage(9, 2, source="reported")


def test_paths() -> None:
    assert WATSONX.operation("/ml/v1/text/generation") == "text_completion"
    assert WATSONX.path_streams("/ml/v1/text/generation_stream") is True
