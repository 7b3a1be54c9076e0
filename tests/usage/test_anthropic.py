"""Anthropic's messages: cumulative deltas, caches beside the input, iterations billed whole."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fastgw.model import Usage
from fastgw.usage.answer import read_answer
from fastgw.usage.anthropic import ANTHROPIC
from fastgw.usage.meter import Metered, StreamMeter


def event(kind: str, **more: Any) -> bytes:
    data = orjson.dumps({"type": kind, **more})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def start(**usage: Any) -> bytes:
    return event("message_start", message={"model": "claude-x", "content": [], "usage": usage})


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def end(**usage: Any) -> bytes:
    return event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage) + event(
        "message_stop"
    )


def watch(body: bytes, complete: bool = True) -> Metered:
    meter = StreamMeter(ANTHROPIC)
    assert meter.feed(body) == body
    return meter.finish(complete, lambda: 7)


def test_deltas_are_cumulative_and_may_leave_fields_out() -> None:
    body = (
        start(input_tokens=10, cache_creation_input_tokens=3, cache_read_input_tokens=4,
              output_tokens=1)
        + delta("Hello")
        + event("message_delta", delta={}, usage={"output_tokens": 5})
        + end(output_tokens=9, cache_read_input_tokens=None)
    )  # fmt: skip
    assert watch(body)[:3] == (Usage(17, 9, 4, 3, 0, "reported"), "claude-x", False)


def test_input_that_grows_by_server_tools_and_zero_at_the_start() -> None:
    assert watch(start(input_tokens=0, output_tokens=0) + end(input_tokens=90, output_tokens=9))[
        0
    ] == Usage(90, 9, source="reported")


def test_thinking_is_part_of_the_output() -> None:
    body = start(input_tokens=5) + end(
        output_tokens=9, output_tokens_details={"thinking_tokens": 6}
    )
    assert watch(body).usage == Usage(5, 9, 0, 0, 6, "reported")


def test_decoys_and_unknown_events_are_not_believed() -> None:
    decoy = event("some_new_event", usage={"input_tokens": 99, "output_tokens": 99})
    ping = event("ping", usage={"output_tokens": 99})
    body = start(input_tokens=5, output_tokens=1) + decoy + end(output_tokens=2) + ping
    assert watch(body).usage == Usage(5, 2, source="reported")


def iteration(given: int, made: int, **more: Any) -> dict[str, Any]:
    return {"type": "message", "input_tokens": given, "output_tokens": made, **more}


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        ([iteration(100, 40, cache_read_input_tokens=50), iteration(20, 5)], (170, 45, 50, 0)),
        ([iteration(20, 5)], (20, 5, 0, 0)),
        ([], (20, 5, 0, 0)),
        (None, (20, 5, 0, 0)),
        ([iteration(100, 40), "no iteration"], (20, 5, 0, 0)),  # what cannot be read is no sum
        ([iteration(-1, 40)], (20, 5, 0, 0)),
        ([iteration(1, 1)], (20, 5, 0, 0)),  # less than the top level says
    ],
)
def test_all_iterations_are_billed(iterations: Any, expected: tuple[int, ...]) -> None:
    found = ANTHROPIC.normal_form(
        {"input_tokens": 20, "output_tokens": 5, "iterations": iterations}
    )
    assert found is not None
    assert found[:4] == expected


def test_a_stream_that_is_cut_or_ends_in_an_error_is_charged_its_text() -> None:
    body = start(input_tokens=10, output_tokens=1) + delta("12345678" * 10)
    assert watch(body, complete=False).usage == Usage(10, 21, source="counted")
    failed = body + event("error", error={"type": "overloaded_error", "message": "Overloaded"})
    found = watch(failed)
    assert found.error
    assert found.usage == Usage(10, 21, source="counted")


MESSAGE = {
    "type": "message",
    "model": "claude-x",
    "content": [
        {"type": "thinking", "thinking": "12345678"},
        {"type": "text", "text": "12345678"},
        {"type": "tool_use", "name": "abcd", "input": {"a": "b"}},
        {"type": "web_search_tool_result", "content": [{"type": "text", "text": "x" * 400}]},
    ],
}


def test_a_buffered_answer() -> None:
    usage = {"input_tokens": 4, "output_tokens": 5, "cache_read_input_tokens": 2}
    body = orjson.dumps({**MESSAGE, "usage": usage})
    found = read_answer(ANTHROPIC, body, True, lambda: 7)
    assert found == Metered(Usage(6, 5, 2, source="reported"), "claude-x", False, usage)
    assert "".join(ANTHROPIC.texts(MESSAGE)) == '1234567812345678abcd{"a":"b"}'
    counted = read_answer(ANTHROPIC, orjson.dumps(MESSAGE), True, lambda: 7)
    assert counted.usage.source == "counted"


def test_usage_at_the_end_of_a_large_answer_three_levels_deep() -> None:
    usage = {
        "input_tokens": 4,
        "output_tokens": 5,
        "iterations": [{"input_tokens": 4, "output_tokens": 5, "cache_creation": {"a": 0}}],
    }
    large = {**MESSAGE, "content": [{"type": "text", "text": "y" * 100_000}], "usage": usage}
    found = read_answer(ANTHROPIC, orjson.dumps(large), True, lambda: 7)
    assert found.reported == usage


@pytest.mark.parametrize(
    ("below", "operation", "model", "streams"),
    [
        ("/messages", "chat", "", None),
        ("/anthropic/v1/messages", "chat", "", None),
        ("/messages/count_tokens", "count_tokens", "", None),
        ("/messages/batches", "batch", "", None),
        ("/messages/batches/b_1/results", "", "", None),
        ("/projects/p/publishers/anthropic/models/claude-x@1:streamRawPredict", "chat",
         "claude-x@1", True),
        ("/projects/p/publishers/anthropic/models/claude-x:rawPredict", "chat", "claude-x", False),
        ("/models/claude-x:rawPredict", "chat", "claude-x", False),
        ("/projects/p/publishers/mistralai/models/mistral-x:rawPredict", "", "", None),
        ("/models/mistral-x:streamRawPredict", "", "", None),
        ("/chat/completions", "", "", None),
    ],
)  # fmt: skip
def test_paths(below: str, operation: str, model: str, streams: bool | None) -> None:
    assert ANTHROPIC.operation(below) == operation
    assert ANTHROPIC.path_model(below) == model
    assert ANTHROPIC.path_streams(below) is streams


def test_a_document_in_a_prompt_is_no_text() -> None:
    message = {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "document", "source": {"type": "base64", "data": "A" * 10_000}},
                    {"type": "text", "text": "Hello"},
                ],
            }
        ]
    }
    assert b"AAAA" not in orjson.dumps(ANTHROPIC.prompt(message))
    assert b"Hello" in orjson.dumps(ANTHROPIC.prompt(message))


def test_a_document_that_is_text_is_text() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "word " * 1000}
    message = {"messages": [{"role": "user", "content": [{"type": "document", "source": source}]}]}
    assert ANTHROPIC.prompt(message) == message
