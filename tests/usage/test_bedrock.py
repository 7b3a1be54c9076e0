"""Bedrock: converse and invoke, buffered and as event streams of AWS."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from fastgw.model import Usage
from fastgw.usage.bedrock import BEDROCK
from fastgw.usage.framing import MessageFramer
from fastgw.usage.meter import StreamMeter
from tests.usage.answers import answer, aws, watch

USAGE = {"inputTokens": 10, "outputTokens": 4, "totalTokens": 14}


def delta(text: str) -> tuple[str, Any]:
    return ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}, "p": "abc"})


def chunk(value: Any) -> tuple[str, Any]:
    """An event of the model's own format, as invoke streams wrap it."""
    return ("chunk", {"bytes": base64.b64encode(orjson.dumps(value)).decode(), "p": "abc"})


def metrics(given: int, made: int, **more: int) -> dict[str, Any]:
    counts = {"inputTokenCount": given, "outputTokenCount": made, "firstByteLatency": 5}
    return {"amazon-bedrock-invocationMetrics": counts | more}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, (10, 4, 0, 0)),
        ({"cacheReadInputTokens": 0, "cacheWriteInputTokens": 0}, (10, 4, 0, 0)),
        ({"cacheReadInputTokens": 20, "cacheWriteInputTokens": 3, "totalTokens": 37},
         (33, 4, 20, 3)),
        ({"cacheReadInputTokenCount": 20, "totalTokens": 34}, (30, 4, 20, 0)),
        ({"cacheReadInputTokens": 5}, (10, 4, 5, 0)),  # by its total a part of the input
        ({"totalTokens": 20}, (10, 10, 0, 0)),
    ],
)  # fmt: skip
def test_converse(more: dict[str, int], expected: tuple[int, ...]) -> None:
    usage = USAGE | more
    body = {"output": {"message": {"content": []}}, "stopReason": "end_turn", "usage": usage}
    assert answer(BEDROCK, body).usage[:4] == expected
    found = watch(BEDROCK, aws, delta("Hi"), ("metadata", {"usage": usage, "metrics": {}}))
    assert found.usage[:4] == expected
    assert found.usage.source == "reported"


def test_a_stream_without_usage_is_counted() -> None:
    calls = ("contentBlockDelta", {"delta": {"toolUse": {"input": '{"a":1}x'}}})
    thinks = ("contentBlockDelta", {"delta": {"reasoningContent": {"text": "12345678"}}})
    found = watch(BEDROCK, aws, delta("12345678"), calls, thinks)
    assert found.usage == Usage(7, 6, source="counted")


def test_decoys_are_not_believed() -> None:
    decoy = ("someNewEvent", {"usage": {"inputTokens": 99, "outputTokens": 99}})
    found = watch(BEDROCK, aws, decoy, ("metadata", {"usage": USAGE}), decoy)
    assert found.usage == Usage(10, 4, source="reported")


def test_an_exception_in_a_stream_is_an_error() -> None:
    found = watch(BEDROCK, aws, delta("12345678"), ("throttlingException", {"message": "slow"}))
    assert found.error
    assert found.usage == Usage(7, 2, source="counted")


def test_a_broken_stream_is_charged_what_was_read() -> None:
    body = aws(delta("12345678"))
    broken = body[:-1] + bytes([body[-1] ^ 1])
    from fastgw.usage.framing import MessageFramer
    from fastgw.usage.meter import StreamMeter

    meter = StreamMeter(BEDROCK, framer=MessageFramer())
    assert meter.feed(body + broken + body) == body + broken + body
    found = meter.finish(False, lambda: 7).usage
    assert found.source == "counted"
    assert found.output_tokens >= 2


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        (
            [{"type": "message_start", "message": {"model": "claude", "usage":
              {"input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 1}}},
             {"type": "message_delta", "usage": {"output_tokens": 4}},
             {"type": "message_stop", **metrics(10, 4)}],
            (15, 4, 5, 0),
        ),
        ([{"outputText": "Hi"}, metrics(10, 4)], (10, 4, 0, 0)),
        ([metrics(10, 4, cacheReadInputTokenCount=5, cacheWriteInputTokenCount=2)], (17, 4, 5, 2)),
        ([{"generation": "Hi", "prompt_token_count": 10, "generation_token_count": 4}],
         (10, 4, 0, 0)),
        ([{"metadata": {"usage": USAGE}}, metrics(10, 4)], (10, 4, 0, 0)),
    ],
)  # fmt: skip
def test_invoke_streams(events: list[Any], expected: tuple[int, ...]) -> None:
    found = watch(BEDROCK, aws, *map(chunk, events))
    assert found.usage[:4] == expected
    assert found.usage.source == "reported"


def test_an_invoke_stream_whose_last_event_is_missing_is_charged_once() -> None:
    """The report of the output stands alone, before the metrics."""
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 10}}}
    text = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "12345678"}}
    last = {"type": "message_delta", "usage": {"output_tokens": 4}}
    events = [*map(chunk, (start, text, last))]
    for complete in (True, False):
        found = watch(BEDROCK, aws, *events, complete=complete)
        assert found.usage == Usage(10, 4, source="reported")
    assert watch(BEDROCK, aws, *events[:2], complete=False).usage == Usage(10, 2, source="counted")


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("start", "last"),
    [
        (
            {"type": "message_start", "message": {"model": "claude"}},
            {"type": "message_delta", "usage": {"output_tokens": 4}},
        ),
        (
            {"choices": [{"delta": {"content": "1234"}}]},
            {"choices": [], "usage": {"completion_tokens": 4}},
        ),
    ],
)
def test_where_a_model_tells_of_its_output_alone_the_input_is_charged(
    start: dict[str, Any], last: dict[str, Any], complete: bool
) -> None:
    """As the metrics have it; where there are none, counted."""
    events = [*map(chunk, (start, last, metrics(10, 4)))]
    found = watch(BEDROCK, aws, *events, complete=complete)
    assert found.usage == Usage(10, 4, source="reported")
    found = watch(BEDROCK, aws, *events[:2], complete=complete)
    assert found.usage == Usage(7, 4, source="counted")


@pytest.mark.parametrize(
    "body",
    [
        {"type": "message", "content": [], "usage": {"input_tokens": 10, "output_tokens": 4}},
        {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 4}},
        {"generation": "Hi", "prompt_token_count": 10, "generation_token_count": 4},
        {"inputTextTokenCount": 10, "results": [{"tokenCount": 3}, {"tokenCount": 1}]},
    ],
)
def test_invoke(body: dict[str, Any]) -> None:
    assert answer(BEDROCK, body).usage == Usage(10, 4, source="reported")


def test_an_embedding() -> None:
    assert answer(BEDROCK, {"embedding": [0.5], "inputTextTokenCount": 6}).usage[:2] == (6, 0)


@pytest.mark.parametrize(
    ("below", "operation", "model", "streams"),
    [
        ("/model/a.b-v1%3A0/converse", "chat", "a.b-v1%3A0", False),
        ("/model/a.b-v1%3A0/converse-stream", "chat", "a.b-v1%3A0", True),
        ("/model/a/invoke", "text_completion", "a", False),
        ("/model/a/invoke-with-response-stream", "text_completion", "a", True),
        ("/model/a/count-tokens", "count_tokens", "a", False),
        ("/async-invoke", "batch", "", None),
        ("/guardrail/g/apply", "", "", None),
    ],
)
def test_paths(below: str, operation: str, model: str, streams: bool | None) -> None:
    assert BEDROCK.operation(below) == operation
    assert BEDROCK.path_model(below) == model
    assert BEDROCK.path_streams(below) is streams


BODY = aws(delta("12345678")) * 50
LARGE = aws(delta("word " * 60_000))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\1" + BODY[1:], id="its first message is damaged"),
        pytest.param(LARGE[:-1] + bytes([LARGE[-1] ^ 1]), id="a large message is damaged"),
        pytest.param(
            aws(("contentBlockDelta", {"delta": [{"text": "a"}] * 34_000})), id="too many values"
        ),
    ],
)
def test_of_a_stream_that_cannot_be_read_every_byte_is_text(data: bytes) -> None:
    meter = StreamMeter(BEDROCK, framer=MessageFramer())
    for at in range(0, len(data), 65536):
        meter.feed(data[at : at + 65536])
    assert meter.finish(True, lambda: 7).usage.output_tokens >= len(data) // 4 - 1
