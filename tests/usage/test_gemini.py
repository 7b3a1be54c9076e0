"""Gemini: cumulative usage in every event, thoughts and tool results beside their groups."""

from __future__ import annotations

from typing import Any

import pytest

from fastgw.model import Usage
from fastgw.usage.gemini import GEMINI
from tests.usage.answers import PROMPT, answer, array, sse, watch


def event(text: str, **usage: int) -> dict[str, Any]:
    names = {
        "prompt": "promptTokenCount",
        "made": "candidatesTokenCount",
        "thoughts": "thoughtsTokenCount",
        "tools": "toolUsePromptTokenCount",
        "cached": "cachedContentTokenCount",
        "total": "totalTokenCount",
    }
    return {
        "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}}],
        "usageMetadata": {names[name]: count for name, count in usage.items()},
        "modelVersion": "gemini-x",
    }


@pytest.mark.parametrize("write", [sse, array])
def test_the_last_event_counts(write: Any) -> None:
    events = (
        event("He", prompt=10, total=10),
        event("llo", prompt=10, made=3, thoughts=5, total=18),
        event("!", prompt=10, made=4, thoughts=5, cached=2, tools=6, total=25),
    )
    assert watch(GEMINI, write, *events)[:3] == (
        Usage(16, 9, 2, 0, 5, "reported"),
        "gemini-x",
        False,
    )


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt": 10, "made": 4, "total": 14}, (10, 4)),
        ({"prompt": 10, "total": 10}, (10, 0)),
        ({"prompt": 10, "made": 4, "total": 30}, (10, 20)),  # the total tells of more
        ({"prompt": 10, "made": 4, "tools": 3, "total": 14}, (13, 4)),
        ({"made": 4, "total": 14}, (10, 4)),
    ],
)
def test_normal_form(usage: dict[str, int], expected: tuple[int, int]) -> None:
    found = answer(GEMINI, event("", **usage)).usage
    assert found[:2] == expected
    assert found.source == "reported"


def test_a_number_that_is_none_spoils_all() -> None:
    assert GEMINI.normal_form({"promptTokenCount": "10", "totalTokenCount": 14}) is None


@pytest.mark.parametrize("write", [sse, array])
def test_a_stream_that_is_cut_is_charged_to_its_last_report(write: Any) -> None:
    events = (event("Hello", prompt=10, made=2, total=12), {"candidates": [
        {"content": {"parts": [{"text": "12345678"}, {"functionCall": {"name": "abcd",
         "args": {}}}]}}]})  # fmt: skip
    assert watch(GEMINI, write, *events, complete=False).usage.input_tokens == 10
    assert watch(GEMINI, write, *events, complete=False).usage.output_tokens > 4
    assert watch(GEMINI, write, events[0], complete=False).usage == Usage(10, 2, source="reported")


def test_a_stream_as_an_array_may_hold_anything() -> None:
    tricky = 'quotes " and \\ and ]} and {[ and \\" — é'
    events = (event(tricky, prompt=1, made=1), {"a": [[{}], "]"]}, event("", prompt=1, made=2))
    assert watch(GEMINI, array, *events).usage == Usage(1, 2, source="reported")
    assert watch(GEMINI, array, event(tricky)["candidates"][0]).usage.source == "counted"


def test_an_answer_read_at_once_may_be_an_array_or_events() -> None:
    from fastgw.usage.answer import read_answer

    for body in (array(event("a", prompt=1, made=2)), sse(event("a", prompt=1, made=2))):
        found = read_answer(GEMINI, body, True, lambda: PROMPT)
        assert found.usage == Usage(1, 2, source="reported")


def test_interactions() -> None:
    usage = {
        "total_input_tokens": 7, "total_output_tokens": 20, "total_thought_tokens": 22,
        "total_cached_tokens": 3, "total_tool_use_tokens": 2, "total_tokens": 51,
    }  # fmt: skip
    done = {"event_type": "interaction.complete", "interaction": {"usage": usage}}
    assert watch(GEMINI, sse, done).usage == Usage(9, 42, 3, 0, 22, "reported")
    assert answer(GEMINI, {"object": "interaction", "usage": usage}).usage.output_tokens == 42
    assert watch(GEMINI, sse, {"event_type": "x", "usage": usage}).usage.source == "counted"


@pytest.mark.parametrize(
    ("below", "operation", "model", "streams"),
    [
        ("/models/gemini-x:generateContent", "generate_content", "gemini-x", False),
        ("/v1beta/models/gemini-x:streamGenerateContent", "generate_content", "gemini-x", True),
        ("/projects/p/locations/l/publishers/google/models/g:streamGenerateContent",
         "generate_content", "g", True),
        ("/tunedModels/t:generateContent", "generate_content", "t", False),
        ("/models/e:batchEmbedContents", "embeddings", "e", False),
        ("/models/g:countTokens", "count_tokens", "g", False),
        ("/models/g:batchGenerateContent", "batch", "g", False),
        ("/models/g:predict", "", "g", False),
        ("/interactions", "generate_content", "", None),
        ("/models/g", "", "", None),
    ],
)  # fmt: skip
def test_paths(below: str, operation: str, model: str, streams: bool | None) -> None:
    assert GEMINI.operation(below) == operation
    assert GEMINI.path_model(below) == model
    assert GEMINI.path_streams(below) is streams


def test_data_in_a_prompt_is_no_text() -> None:
    message = {
        "contents": [{"parts": [{"inlineData": {"data": "AAAA"}}, {"text": "Hello"}]}],
        "systemInstruction": {"parts": [{"text": "Be"}]},
    }
    found = str(GEMINI.prompt(message))
    assert "AAAA" not in found
    assert "Hello" in found
    assert "Be" in found


def test_an_element_of_an_array_that_is_cut_is_no_text() -> None:
    """Google writes arrays on many lines."""
    usage = {"promptTokenCount": 12, "candidatesTokenCount": 2, "totalTokenCount": 14}
    part = {"candidates": [{"content": {"parts": [{"text": "12345678"}]}}], "usageMetadata": usage}
    found = watch(GEMINI, array, part, part, complete=False, cut=20)
    assert found.usage == Usage(12, 2, source="reported")
