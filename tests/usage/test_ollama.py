"""Ollama: JSON lines, counts beside the text of the last one."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fastgw.model import Usage
from fastgw.usage.answer import read_answer
from fastgw.usage.ollama import OLLAMA
from tests.usage.answers import PROMPT, answer, lines, watch


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "llama", "message": {"role": "assistant", "content": text}, "done": False,
            **more}  # fmt: skip


END = {"model": "llama", "message": {"content": ""}, "done": True, "prompt_eval_count": 11,
       "eval_count": 5}  # fmt: skip


def test_chat() -> None:
    found = watch(OLLAMA, lines, chat("Hel"), chat("lo"), END)
    assert found[:3] == (Usage(11, 5, source="reported"), "llama", False)
    assert answer(OLLAMA, END).usage == Usage(11, 5, source="reported")


def test_a_cached_prompt_is_counted() -> None:
    end = {name: value for name, value in END.items() if name != "prompt_eval_count"}
    found = watch(OLLAMA, lines, chat("Hello"), end)
    assert found.usage == Usage(PROMPT, 5, source="counted")
    assert answer(OLLAMA, end).usage == Usage(PROMPT, 5, source="counted")


def test_a_stream_without_its_end_is_counted() -> None:
    calls = [{"function": {"name": "abcd", "arguments": {"a": 1}}}]
    events = (chat("12345678"), chat("", message={"thinking": "12345678", "tool_calls": calls}))
    found = watch(OLLAMA, lines, *events, complete=False)
    assert found.usage.source == "counted"
    assert found.usage.output_tokens >= 5
    generated = watch(OLLAMA, lines, {"response": "12345678", "done": False}, complete=False)
    assert generated.usage == Usage(PROMPT, 2, source="counted")


def test_an_error_line() -> None:
    found = watch(OLLAMA, lines, chat("12345678"), {"error": "out of memory"})
    assert found.error
    assert found.usage == Usage(PROMPT, 2, source="counted")


def test_embeddings_however_large() -> None:
    body = orjson.dumps({"embeddings": [[0.5] * 30_000], "prompt_eval_count": 8})
    assert read_answer(OLLAMA, body, True, lambda: PROMPT).usage == Usage(8, 0, source="reported")


def test_images_of_a_prompt_are_no_text() -> None:
    message = {"messages": [{"role": "user", "content": "Hello", "images": ["AAAA", "BBBB"]}]}
    found = str(OLLAMA.prompt(message))
    assert "AAAA" not in found
    assert found.count("image'") == 2
    assert "Hello" in found


@pytest.mark.parametrize(
    ("below", "operation"),
    [("/api/chat", "chat"), ("/api/generate", "text_completion"), ("/api/embed", "embeddings"),
     ("/api/pull", ""), ("/chat/completions", "")],
)  # fmt: skip
def test_paths(below: str, operation: str) -> None:
    assert OLLAMA.operation(below) == operation
