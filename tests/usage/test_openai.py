"""The normal form of usage, by what providers were seen to send."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.model import Usage
from fastgw.usage import openai
from fastgw.usage.api import MAX_COUNT
from fastgw.usage.openai import OPENAI

USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


def form(**usage: Any) -> tuple[int, int] | None:
    found = openai.normal_form(usage)
    return None if found is None else (found.input_tokens, found.output_tokens)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, (12, 3)),
        ({"input_tokens": 12, "output_tokens": 3, "total_tokens": 15}, (12, 3)),  # responses
        ({"prompt_tokens": 66, "completion_tokens": 6, "total_tokens": 100}, (66, 34)),  # Gemini
        ({"prompt_tokens": 8, "total_tokens": 8}, (8, 0)),  # embeddings
        ({"total_tokens": 8}, (8, 0)),  # Voyage
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (0, 0)),  # 0 is a value
        ({"prompt_tokens": 12, "completion_tokens": None, "total_tokens": 15}, (12, 3)),
        ({"prompt_tokens": None, "completion_tokens": 3, "total_tokens": 15}, (12, 3)),
        ({"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": None}, (12, 3)),
        ({"prompt_tokens": 12.0, "completion_tokens": 3.0}, (12, 3)),
        ({"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 2}, (12, 3)),
        ({"input_tokens": 12, "output_tokens": 3}, (12, 3)),
        ({"completion_tokens": 3, "total_tokens": 2}, (0, 3)),
        ({"prompt_tokens": True, "completion_tokens": "3"}, None),
        ({"prompt_tokens": None}, None),
        ({}, None),
    ],
)
def test_input_and_output(usage: dict[str, Any], expected: tuple[int, int] | None) -> None:
    assert form(**usage) == expected


@pytest.mark.parametrize(
    ("extra", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 4}}, 4),
        ({"input_tokens_details": {"cached_tokens": 4}}, 4),
        ({"prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 8}, 4),  # DeepSeek
        ({"prompt_tokens_details": {"cached_tokens": 0}, "prompt_cache_hit_tokens": 4}, 0),
        ({"prompt_tokens_details": None}, 0),
        ({"prompt_tokens_details": {"cached_tokens": None}}, 0),
        ({"prompt_tokens_details": [4]}, 0),
    ],
)
def test_cached_tokens_are_part_of_the_input(extra: dict[str, Any], cached: int) -> None:
    found = openai.normal_form(USAGE | extra)
    assert found is not None
    assert (found.input_tokens, found.output_tokens, found.cached_input_tokens) == (12, 3, cached)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"cache_read_input_tokens": 5, "cache_creation_input_tokens": 7}, (24, 3, 5, 7)),
        ({"cache_read_input_tokens": 5}, (17, 3, 5, 0)),
        ({"cache_read_input_tokens": 0, "cache_creation_input_tokens": 7}, (19, 3, 0, 7)),
        ({"cache_read_input_tokens": None, "cache_creation_input_tokens": None}, (12, 3, 0, 0)),
        ({"input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 2}}, (12, 3, 4, 2)),
    ],
)
def test_anthropic_caches_stand_beside_the_input_and_openais_within(
    extra: dict[str, Any], expected: tuple[int, int, int, int]
) -> None:
    assert (found := openai.normal_form({"input_tokens": 12, "output_tokens": 3} | extra))
    assert found[:4] == expected


@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens", "total_tokens"])
@pytest.mark.parametrize("value", [MAX_COUNT + 1, -1, 1.5, "12", True, float("nan")])
def test_beside_a_number_that_is_none_nothing_is_believed(name: str, value: Any) -> None:
    assert form(**{**USAGE, name: value}) is None
    assert form(**{**USAGE, name: MAX_COUNT}) is not None


def test_reasoning_is_part_of_the_output() -> None:
    found = openai.normal_form(USAGE | {"completion_tokens_details": {"reasoning_tokens": 2}})
    assert found is not None
    assert (found.output_tokens, found.reasoning_tokens, found.source) == (3, 2, "reported")
    beside = openai.normal_form(USAGE | {"reasoning_tokens": 2})
    assert beside is not None
    assert (beside.output_tokens, beside.reasoning_tokens) == (3, 2)


NUMBER = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(), st.sampled_from(["", "3", "x"])
)
NAMES = (
    "prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens",
    "cached_tokens", "reasoning_tokens", "prompt_cache_hit_tokens",
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(NAMES), NUMBER))
def test_never_negative_never_below_the_total_always_integers(usage: dict[str, Any]) -> None:
    found = openai.normal_form(usage)
    if found is not None:
        assert all(type(value) is int and value >= 0 for value in found[:5])
        total = usage.get("total_tokens")
        if type(total) is int:
            assert found.total_tokens >= total


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9))
def test_what_the_total_adds_is_output(given_: int, made: int, hidden: int) -> None:
    total = given_ + made + hidden
    assert form(prompt_tokens=given_, completion_tokens=made, total_tokens=total) == (
        given_,
        made + hidden,
    )


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"choices": [], "usage": USAGE}, True),
        ({"choices": [{"delta": {}}], "usage": USAGE}, True),  # Mistral, DeepSeek
        ({"choices": [{}], "x_groq": {"usage": USAGE}}, True),
        ({"choices": [{}], "usage": None, "x_groq": {"usage": USAGE}}, True),
        ({"type": "response.completed", "response": {"usage": USAGE}}, True),
        ({"type": "response.incomplete", "response": {"usage": USAGE}}, True),
        ({"type": "response.failed", "response": {"usage": USAGE}}, True),
        ({"type": "response.created", "response": {"usage": None}}, False),
        ({"type": "response.completed", "response": None}, False),
        ({"object": "response", "usage": USAGE}, True),
        ({"object": "list", "data": [], "usage": USAGE}, True),
        ({"type": "some.new_event", "usage": USAGE}, False),  # a decoy
        ({"type": "decoy", "usage": USAGE}, False),
        ({"choices": [], "usage": None}, False),
        ({"choices": [], "usage": 15}, False),
        ({"choices": []}, False),
    ],
)
def test_where_usage_stands(message: dict[str, Any], found: bool) -> None:
    assert openai.usage_object(message) == (USAGE if found else None)


@pytest.mark.parametrize(
    ("event", "extra"),
    [
        ({"choices": [], "usage": USAGE}, True),
        ({"choices": [{"delta": {}}], "usage": USAGE}, False),
        ({"choices": [], "usage": None}, False),  # Azure: prompt filter results
        ({"choices": [], "prompt_filter_results": [{}]}, False),
        ({"choices": None, "usage": USAGE}, False),
        ({"usage": USAGE}, False),
    ],
)
def test_only_the_event_that_was_added_for_us_is_dropped(
    event: dict[str, Any], extra: bool
) -> None:
    assert openai.is_usage_only(event) is extra


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"choices": [{"delta": {"role": "assistant", "content": "a"}}], "obfuscation": "x"}, "a"),
        ({"choices": [{"text": "a"}, {"text": "b"}]}, "ab"),
        ({"choices": [{"message": {"content": "a", "reasoning_content": "b"}}]}, "ab"),
        ({"choices": [{"delta": {"content": [{"type": "text", "text": "a"}, "x"]}}]}, "a"),
        ({"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{}"}}]}}]}, "{}"),
        ({"choices": [{"delta": {"tool_calls": None, "function_call": {"name": "a"}}}]}, "a"),
        ({"choices": [{"delta": {"refusal": "no", "content": None}}]}, "no"),
        ({"choices": [{"delta": None}, None, 5]}, ""),
        ({"type": "response.output_text.delta", "delta": "a", "obfuscation": "x"}, "a"),
        ({"type": "response.output_text.done", "text": "all of it again"}, ""),
        ({"type": "other.delta", "delta": "x"}, ""),
        ({"object": "response", "output": [{"summary": [{"text": "a"}, {"text": 1}, "x"]}]}, "a"),
        ({"object": "list", "output": [{"arguments": "x"}]}, ""),
        (
            {"object": "response", "output": [{"content": [{"text": "a"}]}, {"arguments": "b"}]},
            "ab",
        ),
    ],
)
def test_texts(message: dict[str, Any], text: str) -> None:
    assert "".join(openai.texts(message)) == text


def test_responses_is_never_asked_for_stream_options() -> None:
    assert {"chat", "text_completion"} == OPENAI.TAKES_STREAM_OPTIONS
    assert OPENAI.OPERATIONS["/responses"] == "responses"


@pytest.mark.parametrize(
    ("below", "operation"),
    [
        ("/chat/completions", "chat"),
        ("/Chat/Completions", "chat"),
        ("/deployments/gpt-4o/chat/completions", "chat"),  # Azure
        ("/completions", "text_completion"),
        ("/responses", "responses"),
        ("/responses/resp_1/cancel", ""),
        ("/embeddings", "embeddings"),
        ("/files", ""),
        ("", ""),
    ],
)
def test_operations(below: str, operation: str) -> None:
    assert OPENAI.operation(below) == operation


@pytest.mark.parametrize(
    ("message", "model"),
    [
        ({"model": "gpt-4o"}, "gpt-4o"),
        ({"type": "response.created", "response": {"model": "gpt-4o"}}, "gpt-4o"),
        ({"model": "own", "response": {"model": "other"}}, "own"),
        ({"model": "a\ud83d"}, "a?"),  # no log, store or header could carry it
        ({"model": 7}, ""),
        ({"response": ["gpt-4o"]}, ""),
        ({}, ""),
    ],
)
def test_the_model_that_answered(message: dict[str, Any], model: str) -> None:
    assert openai.model(message) == model


def test_reasoning_in_a_list_within_the_content_is_text() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}
    parts = [thinking, {"type": "text", "text": "yes"}, {"type": "reference", "text": 7}, None]
    assert OPENAI.texts({"choices": [{"delta": {"content": parts}}]}) == ["so", "yes"]


COUNTS = st.sampled_from([0, 1, 7, MAX_COUNT, MAX_COUNT + 1, -1, None, True, 7.0, 1.5, "7"])
DETAILS = st.none() | st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("cached_tokens", "cache_write_tokens", "reasoning_tokens"), COUNTS),
)


@given(
    st.fixed_dictionaries(
        {"prompt_tokens": COUNTS, "completion_tokens": COUNTS, "total_tokens": COUNTS},
        optional={"prompt_tokens_details": DETAILS, "completion_tokens_details": DETAILS},
    ),
    st.booleans(),
)
def test_the_usual_form_means_the_same_as_with_more_members(
    usage: dict[str, Any], sums: bool
) -> None:
    """Five members are read by a way of their own."""
    counts = usage["prompt_tokens"], usage["completion_tokens"]
    if sums and all(type(count) is int for count in counts):
        usage["total_tokens"] = sum(counts)
    found = openai.normal_form(usage)
    assert found == openai.normal_form(usage | {"more": 1, "and": 2})
    assert found is None or type(found) is Usage
