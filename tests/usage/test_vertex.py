from __future__ import annotations

import pytest

from fastgw.model import Usage
from fastgw.usage.anthropic import ANTHROPIC
from fastgw.usage.dialects import DIALECTS
from fastgw.usage.endings import ChoicesEnding, ending_for
from fastgw.usage.vertex import VERTEX
from tests.usage.answers import answer, sse, watch

BELOW = "/v1/projects/p/locations/l/publishers/{}/models/{}:{}"
USAGE = {"prompt_tokens": 100, "completion_tokens": 5000, "total_tokens": 5100}


@pytest.mark.parametrize("dialect", ["gemini", "auto", "mistral", "openai"])
@pytest.mark.parametrize(("method", "streams"), [("rawPredict", False), ("streamRawPredict", True)])
def test_models_of_other_makers_speak_openais(dialect: str, method: str, streams: bool) -> None:
    below = BELOW.format("mistralai", "mistral-small-2503", method)
    assert DIALECTS[dialect].find(below) == (VERTEX, "chat")
    assert VERTEX.path_model(below) == "mistral-small-2503"
    assert VERTEX.path_streams(below) is streams
    assert VERTEX.with_model(below, "other") == BELOW.format("mistralai", "other", method)
    assert DIALECTS[dialect].find(BELOW.format("meta", "llama", "predict"))[1] == ""


@pytest.mark.parametrize("dialect", ["gemini", "auto"])
def test_claude_speaks_its_own(dialect: str) -> None:
    for below in (
        BELOW.format("anthropic", "claude-x@1", "rawPredict"),
        BELOW.format("anthropic", "next", "rawPredict"),
        "/models/claude-x:streamRawPredict",
    ):
        assert DIALECTS[dialect].find(below) == (ANTHROPIC, "chat")


def test_reports() -> None:
    message = {"model": "m", "choices": [{"message": {"content": "Hi"}}], "usage": USAGE}
    assert answer(VERTEX, message)[:2] == (Usage(100, 5000, source="reported"), "m")
    events = [{"model": "m", "choices": [{"delta": {"content": "Hi"}}]}] * 3
    last = {"model": "m", "choices": [{"delta": {}}], "usage": USAGE}
    found = watch(VERTEX, sse, *events, last, b"[DONE]")
    assert found[:2] == (Usage(100, 5000, source="reported"), "m")
    assert watch(VERTEX, sse, *events).usage == Usage(7, 2, source="counted")


def test_a_stream_is_not_asked_and_ends_as_one_of_chat() -> None:
    assert "chat" not in VERTEX.TAKES_STREAM_OPTIONS
    assert isinstance(ending_for(VERTEX, "chat"), ChoicesEnding)
