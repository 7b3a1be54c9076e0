"""What the formats share: numbers, texts, prompts without their data."""

from __future__ import annotations

from typing import Any

import pytest

from fastgw.usage.api import (
    MAX_COUNT,
    Api,
    member_pattern,
    number,
    numbers,
    strings,
    text,
    without_data,
)
from fastgw.usage.payload import written


@pytest.mark.parametrize(
    ("value", "count"),
    [(0, 0), (5, 5), (5.0, 5), (MAX_COUNT, MAX_COUNT), (MAX_COUNT + 1, None), (-1, None),
     (1.5, None), (float("nan"), None), (float("inf"), None), (True, None), ("5", None),
     (None, None), ([5], None)],
)  # fmt: skip
def test_number(value: Any, count: int | None) -> None:
    assert number(value) == count


def test_beside_a_number_that_is_none_nothing_is_believed() -> None:
    assert numbers({"a": 1, "b": None}, "a", "b", "c") == [1, None, None]
    assert numbers({"a": 1, "b": "2"}, "a", "b") == [None, None]


def test_strings_of_any_depth_in_order() -> None:
    value: Any = {
        "text": "a",
        "more": [{"text": "b"}, {"other": "x", "text": ["c", {"text": "d"}]}],
    }
    assert strings(value, frozenset({"text"})) == ["a", "b", "c", "d"]
    deep: Any = "end"
    for _ in range(5000):
        deep = {"text": deep}
    assert strings(deep, frozenset({"text"})) == ["end"]


def test_a_prompt_of_any_depth() -> None:
    deep: Any = {"data": "AAAA"}
    for _ in range(5000):
        deep = [deep]
    assert without_data(deep, frozenset({"data"})) is not None
    assert without_data([{"data": "AAAA"}], frozenset({"data"})) == [{"type": "image"}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "tool_use", "input": {"data": "a,b"}},
        {"toolResult": {"content": [{"json": {"rows": [{"data": "a,b"}]}}]}},
        {"functionCall": {"name": "f", "args": {"data": "a,b"}}},
        {"functionResponse": {"name": "f", "response": {"data": "a,b"}}},
        {"source": {"type": "text", "data": "a,b"}},
    ],
)
def test_what_is_called_data_may_be_text(part: dict[str, Any]) -> None:
    assert without_data([part], frozenset({"data"})) == [part]


def test_texts_that_a_log_can_carry() -> None:
    assert text("a\ud83d") == "a?"
    assert text(7) == ""
    assert written({"a": "\ud83d"})
    assert written({"a": 1}) == '{"a":1}'


@pytest.mark.parametrize(
    ("data", "found"),
    [(b'{"usage":{}}', True), (b'{"usage" : {', True), (b'{"usage":null}', False),
     (b'{"text":"\\"usage\\":{"}', False), (b'{"my_usage":{', False)],
)  # fmt: skip
def test_a_member_is_found_and_no_text_is(data: bytes, found: bool) -> None:
    assert bool(member_pattern("usage")[0].search(data)) is found


def test_an_object_three_levels_deep() -> None:
    inner = b'{"a":[{"b":{"c":1}}],"d":2}'
    assert member_pattern("usage")[1].findall(b'x"usage":' + inner + b"}") == [inner]


@pytest.mark.parametrize(
    ("message", "failed"),
    [({"error": {}}, True), ({"error": "no"}, True), ({"error": None}, False),
     ({"type": "error"}, True), ({"object": "error"}, True), ({"type": "response.failed"}, True),
     ({}, False)],
)  # fmt: skip
def test_errors_inside_an_answer(message: dict[str, Any], failed: bool) -> None:
    assert Api().failed(message) is failed
