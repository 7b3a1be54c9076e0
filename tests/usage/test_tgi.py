"""Text Generation Inference: details of the last event."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fastgw.model import Usage
from fastgw.usage.answer import read_answer
from fastgw.usage.tgi import TGI_API
from tests.usage.answers import PROMPT, answer, sse, watch


def token(text: str, **more: Any) -> dict[str, Any]:
    return {"token": {"id": 1, "text": text}, "generated_text": None, "details": None, **more}


def test_a_stream() -> None:
    details = {"finish_reason": "length", "generated_tokens": 5, "input_length": 9}
    last = token("!", generated_text="Hello!" * 50, details=details)
    assert watch(TGI_API, sse, token("Hello"), last).usage == Usage(9, 5, source="reported")
    found = watch(TGI_API, sse, token("12345678"), token("12345678"))
    assert found.usage == Usage(PROMPT, 4, source="counted")


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (
            {"generated_tokens": 5, "prefill": [{"id": 1}, {"id": 2}]},
            Usage(2, 5, source="reported"),
        ),
        ({"generated_tokens": 5, "prefill": []}, Usage(PROMPT, 5, source="counted")),
        (None, Usage(PROMPT, 2, source="counted")),
    ],
)
def test_buffered(details: Any, expected: Usage) -> None:
    body = {"generated_text": "12345678", "details": details}
    assert answer(TGI_API, body).usage == expected
    listed = read_answer(TGI_API, orjson.dumps([body]), True, lambda: PROMPT)
    assert listed.usage == expected


def test_paths() -> None:
    assert TGI_API.operation("/generate") == "text_completion"
    assert TGI_API.path_streams("/generate") is None
    assert TGI_API.path_streams("/generate_stream") is True
