"""Large buffered answers: the provider's report at the top counts, whatever stands deeper. And
answers whose media type says what they are not."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastgw.model import Usage
from fastgw.usage.answer import KEEP_BODY, PARSE_WHOLE, EventMeter, JsonMeter
from fastgw.usage.dialects import DIALECTS
from fastgw.usage.meter import KEEP_LONG
from fastgw.usage.openai import OPENAI
from tests.usage.answers import PROMPT

if TYPE_CHECKING:
    from fastgw.usage.meter import Metered

DECOY = {
    "model": "cheap",
    "modelVersion": "cheap",
    "type": "message",
    "usage": {
        "input_tokens": 1, "output_tokens": 1, "inputTokens": 1, "outputTokens": 1,
        "prompt_tokens": 1, "completion_tokens": 1, "tokens": {"input_tokens": 1},
    },
    "usageMetadata": {"promptTokenCount": 1, "totalTokenCount": 1},
    "prompt_eval_count": 1,
    "eval_count": 1,
    "meta": {"tokens": {"input_tokens": 1, "output_tokens": 1}},
    "details": {"generated_tokens": 1},
    "choices": [],
}  # fmt: skip
"""What a tool's arguments may hold: a report in every format."""

TEXT, TOOL, NUMBERS = "the text", "the tool", "the numbers"

ANSWERS: dict[str, tuple[str, dict[str, Any], str, Usage]] = {
    "openai": (
        "/chat/completions",
        {
            "model": "gpt",
            "choices": [{"message": {"content": TEXT, "tool": TOOL}, "logprobs": NUMBERS}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300},
        },
        "gpt",
        Usage(100, 200, source="reported"),
    ),
    "groq": (
        "/chat/completions",
        {
            "model": "groq/compound",
            "choices": [{"message": {"content": TEXT}, "tool": TOOL, "logprobs": NUMBERS}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300},
            "usage_breakdown": {"models": [DECOY, DECOY]},
        },
        "groq/compound",
        Usage(100, 200, source="reported"),
    ),
    "xai": (
        "/responses",
        {
            "object": "response",
            "model": "grok",
            "output": [{"content": [{"text": TEXT, "logprobs": NUMBERS}], "x": TOOL}],
            "tools": [TOOL],
            "usage": {"input_tokens": 100, "output_tokens": 200, "total_tokens": 300},
            "user": None,
            "metadata": {"model": "mine"},
        },
        "grok",
        Usage(100, 200, source="reported"),
    ),
    "anthropic": (
        "/messages",
        {
            "model": "claude",
            "type": "message",
            "content": [{"type": "text", "text": TEXT}, {"input": TOOL, "x": NUMBERS}, TOOL],
            "usage": {"input_tokens": 60, "cache_read_input_tokens": 40, "output_tokens": 200},
        },
        "claude",
        Usage(100, 200, 40, source="reported"),
    ),
    "gemini": (
        "/models/pro:generateContent",
        {
            "candidates": [{"content": {"parts": [{"text": TEXT}, NUMBERS, {"args": TOOL}]}}],
            "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 200},
            "modelVersion": "pro",
        },
        "pro",
        Usage(100, 200, source="reported"),
    ),
    "bedrock": (
        "/model/m/converse",
        {
            "output": {"message": {"content": [{"text": TEXT}, NUMBERS, {"toolUse": TOOL}]}},
            "stopReason": "tool_use",
            "usage": {"inputTokens": 100, "outputTokens": 200, "totalTokens": 300},
        },
        "",
        Usage(100, 200, source="reported"),
    ),
    "cohere": (
        "/v2/chat",
        {
            "usage": {"tokens": {"input_tokens": 100, "output_tokens": 200}},
            "message": {"content": [{"text": TEXT}, NUMBERS], "citations": [TOOL]},
        },
        "",
        Usage(100, 200, source="reported"),
    ),
    "ollama": (
        "/api/chat",
        {
            "model": "llama",
            "message": {"content": TEXT, "tool_calls": [NUMBERS, {"arguments": TOOL}]},
            "done": True,
            "eval_count": 200,
        },
        "llama",
        Usage(PROMPT, 200, source="counted"),
    ),
    "tgi": (
        "/generate",
        {
            "generated_text": TEXT,
            "details": {"generated_tokens": 200, "input_length": 100, "x": TOOL, "n": NUMBERS},
        },
        "",
        Usage(100, 200, source="reported"),
    ),
    "watsonx": (
        "/text/generation",
        {
            "model_id": "granite",
            "results": [
                {"generated_text": TEXT, "generated_token_count": 200, "input_token_count": 100}
            ],
            "system": [TOOL, NUMBERS],
        },
        "granite",
        Usage(100, 200, source="reported"),
    ),
}


def read(
    dialect: str, path: str, body: bytes, *, complete: bool = True, step: int = 100_000
) -> Metered:
    api, operation = DIALECTS[dialect].find(path)
    assert operation
    meter = JsonMeter(api, echoes=operation in api.ECHOES, writes=operation in api.LIMITS)
    for at in range(0, len(body), step):
        meter.feed(body[at : at + step])
    return meter.finish(complete, lambda: PROMPT)


def filled(value: Any, size: int, numbers: int = 0) -> Any:
    """The answer with a text of `size` bytes, and so many numbers."""
    if isinstance(value, dict):
        return {name: filled(each, size, numbers) for name, each in value.items()}
    if isinstance(value, list):
        return [filled(each, size, numbers) for each in value]
    if value == TEXT:
        return "x " * (size // 2)
    if value == NUMBERS:
        return [number / 7 for number in range(numbers)]
    return DECOY if value == TOOL else value


@pytest.mark.parametrize("size", [100, PARSE_WHOLE, 3 * PARSE_WHOLE, KEEP_BODY, 3 * KEEP_BODY])
@pytest.mark.parametrize("dialect", ANSWERS)
def test_the_report_at_the_top_counts_at_every_size(dialect: str, size: int) -> None:
    path, form, model, usage = ANSWERS[dialect]
    for options in (0, orjson.OPT_INDENT_2):
        body = orjson.dumps(filled(form, size), option=options)
        for spelled in (dialect, "auto"):
            found = read(spelled, path, body)
            assert found[:3] == (usage, model, False)
        found = read(dialect, path, body[:-1] + b', "x": "\\ud800"}')  # refused by some readers
        assert found[:2] == (usage, model)


@pytest.mark.parametrize("dialect", sorted(ANSWERS.keys() - {"tgi", "watsonx"}))
def test_it_counts_in_what_is_too_much_to_read(dialect: str) -> None:
    """A report at one of its ends, that is: of the last two it is among the numbers."""
    path, form, model, usage = ANSWERS[dialect]
    whole = filled(form, 100, 60_000)
    body = orjson.dumps(whole)
    assert len(body) > KEEP_BODY
    assert read(dialect, path, body)[:2] == (usage, model)
    turned = orjson.dumps(dict(reversed(whole.items())))
    assert read(dialect, path, turned)[:2] == (usage, model)


@pytest.mark.parametrize("size", [100, 300_000, 3 * KEEP_BODY])
@pytest.mark.parametrize("numbers", [0, 60_000])
def test_of_a_cut_answer_no_decoy_is_believed_and_its_text_is_counted(
    size: int, numbers: int
) -> None:
    path, form, _, _ = ANSWERS["anthropic"]
    body = orjson.dumps(filled(form, size, numbers))
    end = body.rindex(b'"details"') - 1  # within the arguments, behind a usage
    cut = body[: body.rindex(b"}", 0, end) + 1]
    for at in (end, len(cut)):
        found = read("anthropic", path, body[:at], complete=False)
        assert (found.usage.input_tokens, found.usage.source) == (PROMPT, "counted")
        assert found.usage.output_tokens == pytest.approx(size / 4, rel=0.5, abs=1500)


EMBEDDINGS = {
    "object": "list",
    "data": [
        {"object": "embedding", "index": index, "embedding": [n / 7 for n in range(1536)]}
        for index in range(40)
    ],
    "model": "embed",
}


def test_embeddings_have_no_output_whatever_their_size() -> None:
    usage = {"prompt_tokens": 50, "total_tokens": 50}
    for whole in ({"usage": usage, **EMBEDDINGS}, {**EMBEDDINGS, "usage": usage}):
        body = orjson.dumps(whole)
        assert len(body) > KEEP_BODY
        found = read("openai", "/embeddings", body)
        assert found[:2] == (Usage(50, 0, source="reported"), "embed")
        cut = read("openai", "/embeddings", body[:-100], complete=False).usage
        assert cut.output_tokens == 0
    values = {"embeddings": [{"values": [n / 7 for n in range(50_000)]}]}
    body = orjson.dumps(values, option=orjson.OPT_INDENT_2)
    found = read("gemini", "/models/embed:batchEmbedContents", body)
    assert found.usage == Usage(PROMPT, 0, source="counted")
    found = read("bedrock", "/model/embed/invoke", body)  # which may be any model's
    assert found.usage.input_tokens == PROMPT
    assert found.usage.output_tokens < 100


def test_a_cut_chat_with_an_image_is_charged_its_text() -> None:
    message = {"content": "x" * 4000, "images": [{"image_url": {"url": "A" * 1_000_000}}]}
    body = orjson.dumps({"choices": [{"message": message}]})
    found = read("openrouter", "/chat/completions", body[:-10], complete=False)
    assert found.usage == Usage(PROMPT, 1000, source="counted")


def test_events_and_lines_without_their_media_type() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 6}
    event = b"data: " + orjson.dumps({"choices": [{"delta": {"content": "x" * 500}}]}) + b"\n\n"
    last = b"data: " + orjson.dumps({"choices": [], "usage": usage}) + b"\n\n"
    for number in (3, 300, 3000):
        found = read("openai", "/chat/completions", event * number + last)
        assert found.usage == Usage(5, 6, source="reported")
    line = orjson.dumps({"message": {"content": "x" * 500}, "done": False}) + b"\n"
    end = orjson.dumps({"done": True, "prompt_eval_count": 5, "eval_count": 6}) + b"\n"
    for number in (3, 300, 3000):
        found = read("ollama", "/api/chat", line * number + end)
        assert found.usage == Usage(5, 6, source="reported")


USAGE = {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}


def streamed(
    body: bytes, cuts: list[int] | None = None, *, strip: bool = False
) -> tuple[bytes, Metered]:
    """What its media type calls an event stream."""
    meter = EventMeter(OPENAI, strip=strip)
    edges = [0, *(cuts or []), len(body)]
    out = b"".join(meter.feed(body[a:b]) for a, b in pairwise(edges)) + meter.rest()
    return out, meter.finish(True, lambda: PROMPT)


@pytest.mark.parametrize("strip", [False, True])
@pytest.mark.parametrize("size", [4, 20_000, 400_000])
@pytest.mark.parametrize("option", [0, orjson.OPT_INDENT_2, orjson.OPT_APPEND_NEWLINE])
def test_json_that_is_called_an_event_stream_is_read(option: int, size: int, strip: bool) -> None:
    choices = [{"message": {"content": "four" * (size // 4)}}]
    for more, usage in (
        ({"usage": USAGE}, Usage(10, 9, source="reported")),
        ({}, Usage(PROMPT, size // 4, source="counted")),
    ):
        body = orjson.dumps({"model": "m", "choices": choices, **more}, option=option)
        for cuts in ([], [*range(100, len(body), 9000)]):
            out, found = streamed(body, cuts, strip=strip)
            assert (out, found.model) == (body, "m")
            assert found.usage._replace(output_tokens=0) == usage._replace(output_tokens=0)
            assert found.usage.output_tokens == pytest.approx(usage.output_tokens, rel=0.05)


@pytest.mark.parametrize("end", [b"\n", b"\n\n"])
def test_json_lines_that_are_called_an_event_stream_are_read(end: bytes) -> None:
    line = orjson.dumps({"model": "m", "choices": [{"delta": {"content": "four"}}]}) + end
    last = orjson.dumps({"model": "m", "choices": [], "usage": USAGE}) + end
    for cuts in ([], [50], [len(line)], [5 * len(line)]):
        _, found = streamed(line * 9 + last, cuts)
        assert found[:2] == (Usage(10, 9, source="reported"), "m")
        _, found = streamed(line * 9, cuts)
        assert found.usage == Usage(PROMPT, 9, source="counted")
    body = line * 2 * (KEEP_LONG // len(line))
    _, found = streamed(body, [*range(0, len(body), 10 * len(line))])
    assert found.usage.source == "counted"
    # What was let go is not here to be read.
    assert found.usage.output_tokens in (body.count(b"four"), -(-len(body) // 4))


def test_what_is_no_event_stream_costs_its_bytes_and_comments_cost_nothing() -> None:
    assert streamed(b"upstream unavailable")[1].usage == Usage(PROMPT, 5, source="counted")
    assert streamed(b'{"error":{"message":"no"}}')[1][:3] == (Usage(), "", True)
    for quiet in (b"", b"\n", b": waiting\n\n", b"event: ping\n\n", b"\xef\xbb\xbfretry: 3\n\n"):
        for number in (1, 50_000):
            body = quiet * number
            _, found = streamed(body, [*range(1000, len(body), 1000)])
            assert found.usage == Usage(PROMPT, 0, source="counted")
    meter = EventMeter(OPENAI, counts=False)
    meter.feed(b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}}')
    assert meter.finish(True, lambda: PROMPT).usage == Usage(3, 4, source="reported")
