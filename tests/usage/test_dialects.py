"""Which format a path has in a dialect, and formats told apart by content alone."""

from __future__ import annotations

from typing import Any

import pytest

from fastgw.config.tables import Upstream, settings_of
from fastgw.model import Usage
from fastgw.usage.dialects import DIALECTS
from tests.usage.answers import PROMPT, answer, lines, sse, watch

AUTO = DIALECTS["auto"].any


def test_the_configuration_names_these_dialects() -> None:
    setting = settings_of(Upstream)["dialect"]
    assert set(setting.choices) == set(DIALECTS)
    assert not setting.later


@pytest.mark.parametrize(
    ("dialect", "below", "api", "operation"),
    [
        ("openai", "/chat/completions", "openai", "chat"),
        ("openai", "/messages", "anthropic", "chat"),
        ("azure", "/deployments/gpt/chat/completions", "openai", "chat"),
        ("anthropic", "/messages", "anthropic", "chat"),
        ("anthropic", "/chat/completions", "openai", "chat"),
        ("gemini", "/models/g:generateContent", "gemini", "generate_content"),
        ("gemini", "/openai/chat/completions", "openai", "chat"),
        ("ollama", "/api/chat", "ollama", "chat"),
        ("ollama", "/chat/completions", "openai", "chat"),
        ("cohere", "/chat", "cohere", "chat"),
        ("cohere", "/compatibility/v1/chat/completions", "openai", "chat"),
        ("bedrock", "/model/m/converse", "bedrock", "chat"),
        ("bedrock", "/openai/v1/responses", "openai", "responses"),
        ("tgi", "/generate", "tgi", "text_completion"),
        ("tgi", "/chat/completions", "openai", "chat"),
        ("mistral", "/chat/completions", "openai", "chat"),
        ("auto", "/chat/completions", "openai", "chat"),
        ("auto", "/messages", "anthropic", "chat"),
        ("auto", "/models/g:streamGenerateContent", "gemini", "generate_content"),
        ("auto", "/model/m/converse-stream", "bedrock", "chat"),
        ("auto", "/api/embeddings", "ollama", "embeddings"),
        ("auto", "/embeddings", "openai", "embeddings"),
        ("auto", "/api/generate", "ollama", "text_completion"),
        ("auto", "/generate", "tgi", "text_completion"),
        ("auto", "/generate_stream", "tgi", "text_completion"),
        ("auto", "/chat", "cohere", "chat"),
    ],
)
def test_paths(dialect: str, below: str, api: str, operation: str) -> None:
    found, name = DIALECTS[dialect].find(below)
    assert (found.name, name) == (api, operation)


@pytest.mark.parametrize(
    ("dialect", "below", "credential", "shape"),
    [
        ("openai", "/chat/completions", "authorization: Bearer ", "openai"),
        ("openai", "/messages", "authorization: Bearer ", "anthropic"),
        ("azure", "/deployments/d/chat/completions", "api-key: ", "openai"),
        ("anthropic", "/messages", "x-api-key: ", "anthropic"),
        ("anthropic", "/models", "x-api-key: ", "anthropic"),
        ("anthropic", "/chat/completions", "authorization: Bearer ", "openai"),
        ("gemini", "/models/g:generateContent", "x-goog-api-key: ", "gemini"),
        ("gemini", "/openai/chat/completions", "authorization: Bearer ", "openai"),
        ("bedrock", "/model/m/converse", "authorization: Bearer ", "bedrock"),
        ("auto", "/models", "authorization: Bearer ", "openai"),
        ("auto", "/messages", "x-api-key: ", "anthropic"),
    ],
)
def test_credentials_and_errors(dialect: str, below: str, credential: str, shape: str) -> None:
    known = DIALECTS[dialect]
    api, _ = known.find(below)
    assert (known.credential or api.credential) == credential
    assert api.shape == shape


OPENAI_USAGE: dict[str, Any] = {"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}
CHUNK = {"choices": [{"delta": {"content": "Hi"}}]}


COMPATIBLE: list[tuple[str, list[dict[str, Any]], tuple[int, ...]]] = [
    ("mistral", [CHUNK, {**CHUNK, "usage": OPENAI_USAGE}], (10, 4, 0, 0, 0)),
    ("groq", [CHUNK, {**CHUNK, "x_groq": {"usage": OPENAI_USAGE}}], (10, 4, 0, 0, 0)),
    ("groq", [{**CHUNK, "x_groq": {"usage": OPENAI_USAGE}, "usage": OPENAI_USAGE}],
     (10, 4, 0, 0, 0)),
    ("deepseek", [{**CHUNK, "usage": {**OPENAI_USAGE, "prompt_cache_hit_tokens": 6,
                                      "prompt_cache_miss_tokens": 4}}], (10, 4, 6, 0, 0)),
    ("xai", [{"choices": [], "usage": {
        "prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 31,
        "completion_tokens_details": {"reasoning_tokens": 20}}}], (10, 21, 0, 0, 20)),
    ("openrouter", [{**CHUNK, "usage": {**OPENAI_USAGE, "cost": 0.1,
        "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 3}}}],
     (10, 4, 2, 3, 0)),
    ("vllm", [{**CHUNK, "usage": {"prompt_tokens": 10, "completion_tokens": n}}
              for n in range(1, 5)], (10, 4, 0, 0, 0)),
    ("sglang", [CHUNK, {"choices": [], "usage": OPENAI_USAGE}], (10, 4, 0, 0, 0)),
    ("llamacpp", [CHUNK, {"choices": [], "usage": OPENAI_USAGE, "timings": {"prompt_n": 9}}],
     (10, 4, 0, 0, 0)),
    ("azure", [{"choices": [], "prompt_filter_results": []}, CHUNK,
               {"choices": [], "usage": OPENAI_USAGE}], (10, 4, 0, 0, 0)),
    ("gemini", [{**CHUNK, "usage": {"prompt_tokens": 10, "completion_tokens": 4,
                                    "total_tokens": 40}}], (10, 30, 0, 0, 0)),
    ("ollama", [CHUNK, {"choices": [], "usage": OPENAI_USAGE}], (10, 4, 0, 0, 0)),
    ("tgi", [CHUNK, {"choices": [], "usage": OPENAI_USAGE}], (10, 4, 0, 0, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "events", "expected"), COMPATIBLE)
def test_those_that_are_like_openai(
    name: str, events: list[Any], expected: tuple[int, ...]
) -> None:
    for api in (DIALECTS[name].find("/chat/completions")[0], DIALECTS[name].any, AUTO):
        found = watch(api, sse, *events, b"[DONE]").usage
        assert found[:5] == expected
        assert found.source == "reported"


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [], "usage": OPENAI_USAGE},
        {"object": "response", "usage": {"input_tokens": 10, "output_tokens": 4}},
        {"type": "message", "usage": {"input_tokens": 7, "output_tokens": 4,
                                      "cache_read_input_tokens": 3}},
        {"candidates": [], "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 4}},
        {"stopReason": "x", "usage": {"inputTokens": 10, "outputTokens": 4}},
        {"message": {}, "usage": {"tokens": {"input_tokens": 10, "output_tokens": 4}}},
        {"done": True, "response": "", "prompt_eval_count": 10, "eval_count": 4},
        {"generated_text": "", "details": {"generated_tokens": 4, "input_length": 10}},
        {"results": [{"generated_text": "", "generated_token_count": 4, "input_token_count": 10}]},
    ],
)  # fmt: skip
def test_formats_are_told_apart_by_content(body: dict[str, Any]) -> None:
    assert answer(AUTO, body).usage[:2] == (10, 4)
    assert watch(AUTO, lines, body).usage.source == "reported"


@pytest.mark.parametrize(
    "decoy",
    [
        {"type": "weird", "usage": {"input_tokens": 99}},
        {"type": "weird", "usage": OPENAI_USAGE},
        {"type": "weird.event", "message": {"usage": OPENAI_USAGE}},
        {"note": {"usageMetadata": {"promptTokenCount": 99}}},
        {"type": "content-delta", "delta": {"usage": {"tokens": {"input_tokens": 99}}}},
    ],
)
def test_decoys_are_not_believed(decoy: dict[str, Any]) -> None:
    assert watch(AUTO, sse, decoy, CHUNK).usage == Usage(PROMPT, 1, source="counted")


@pytest.mark.parametrize("odd", [[], {}, [{}], 1, None, 1.5, True])
def test_a_type_that_is_no_text_says_nothing(odd: Any) -> None:
    block = {"type": odd, "text": "Hello"}
    message = {"type": odd, "event_type": odd, "object": odd, "content_block": block}
    answer = {"type": "message", "content": [block]}
    for whole in (message, {**message, "content": [block]}, answer):
        for api in {*DIALECTS["auto"].apis, AUTO}:
            assert api.usage_object(whole) is None
            assert not api.failed(whole)
            assert api.calls(whole) == 0
            assert isinstance(api.texts(whole), list)
            assert api.model(whole) == ""
