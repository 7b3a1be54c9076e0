"""What is counted where nobody reported."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.usage.estimate import ByteCounter, prompt_tokens

CHATTED = 3 + 3  # a message and the reply, by the rule of the OpenAI cookbook


@given(st.lists(st.text("aé漢😀\ud83d")))
def test_the_cuts_of_a_text_do_not_change_its_count(pieces: list[str]) -> None:
    cut, whole = ByteCounter(), ByteCounter()
    for piece in pieces:
        cut.add(piece)
    whole.add("".join(pieces))
    size = len("".join(pieces).encode("utf-8", "surrogatepass"))
    assert cut.total() == whole.total()
    assert whole.total() * 4 - size in range(4)  # rounded up


def test_a_lone_surrogate_is_counted() -> None:
    counter = ByteCounter()
    counter.add("\ud83d")
    assert counter.total() == 1


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        ({"prompt": "a" * 40}, 10),
        ({"prompt": ["a" * 40, "b" * 40]}, 20),
        ({"prompt": [1, 2, 3]}, 3),  # token ids
        ({"input": [[1, 2, 3], [4, 5]]}, 5),
        ({"input": "a" * 40, "instructions": "b" * 40}, 20),
        ({"messages": [{"content": "a" * 40}]}, 10 + CHATTED),
        ({"messages": [{"content": "a" * 40}] * 2}, 20 + CHATTED + 3),
        ({"model": "x" * 400, "user": "y" * 400}, 1),
        ({}, 1),
        ({"messages": 7, "tools": "x", "input": None}, 1),
    ],
)
def test_prompts(request_: dict[str, Any], tokens: int) -> None:
    assert prompt_tokens(request_) == tokens


def test_an_image_counts_the_same_whatever_its_bytes() -> None:
    def pictured(data: str) -> int:
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + data}}
        return prompt_tokens({"messages": [{"content": [image]}]})

    assert pictured("A") == pictured("A" * 4_000_000) == 520 + CHATTED


def test_tools_cost_their_text_and_eight_each() -> None:
    tool = {"function": {"description": "a" * 400}}
    one, two = (prompt_tokens({"prompt": "x", "tools": [tool] * n}) for n in (1, 2))
    assert two - one == 108


def test_depth_is_the_clients_choice() -> None:
    deep: Any = "a" * 4
    for _ in range(100_000):
        deep = [deep]
    assert prompt_tokens({"input": deep}) == 1
    while isinstance(deep, list):  # taken apart here: its end would be recursive
        deep = deep.pop()
