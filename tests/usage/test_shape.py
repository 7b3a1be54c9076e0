from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgw.sse import EventFramer
from fastgw.usage.dialects import DIALECTS
from fastgw.usage.framing import LineFramer
from fastgw.usage.openai import OPENAI
from fastgw.usage.payload import read_objects
from fastgw.usage.shape import MANY, PATIENCE, Reader
from tests.looks_inside import looks_inside
from tests.test_recorded import ENTRIES, formats, variants
from tests.usage.answers import lines, sse

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgw.usage.api import Api


def one_by_one(api: Api, block: bytes) -> tuple[str, int]:
    """What reading every event gives."""
    reader = Reader(api, EventFramer())
    return "".join(reader._read(block)), reader.calls


def plain(text: str, number: int) -> Any:
    return {"id": "x", "choices": [{"index": 0, "delta": {"content": text}}], "usage": None}


def padded(text: str, number: int) -> Any:
    return plain(text, number) | {"obfuscation": "abcdefgh"[: number % 9]}


def clocked(text: str, number: int) -> Any:
    return {"created": number // 40} | plain(text, number)


def tool(text: str, number: int) -> Any:
    call = {"index": 0, "function": {"arguments": text} | ({} if number % 9 else {"name": "n"})}
    return {"choices": [{"delta": {"tool_calls": [call]}}]}


def doubled(text: str, number: int) -> Any:
    return {"choices": [{"delta": {"reasoning": text, "content": text}}]}


def swapped(text: str, number: int) -> Any:
    name = "reasoning_content" if number < 50 else "content"
    return {"choices": [{"delta": {name: text}}]}


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([plain, padded, clocked, tool, doubled, swapped]),
    st.lists(st.text(max_size=6) | st.sampled_from(['"', "\\", '\\"', "\n", "a", "call"])),
    st.lists(st.integers(0, 200), max_size=3),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_the_texts_are_those_of_the_events(
    write: Callable[[str, int], Any], words: list[str], others: list[int], end: bytes
) -> None:
    words = [*words, "one", " two", "three"]
    events = [write(words[number % len(words)], number) for number in range(120)]
    for at in others:
        events.insert(at, {"choices": [{"delta": {"role": "assistant"}, "text": "more"}]})
    body = sse(*events, b"[DONE]").replace(b"\n", end)
    assert len(body) > MANY
    reader = Reader(OPENAI, EventFramer())
    assert ("".join(reader.texts(body)), reader.calls) == one_by_one(OPENAI, body)
    again = sse(*events[:3])
    assert "".join(reader.texts(again)) == one_by_one(OPENAI, again)[0]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_recorded_streams(entry: dict[str, Any]) -> None:
    if entry["framing"] != "sse":
        return
    for api in formats(entry):
        for body in variants(entry["bytes"], "sse"):
            reader = Reader(api, EventFramer())
            found = "".join(reader.texts(body)), reader.calls
            assert found == one_by_one(api, body)
            half = body[: len(body) // 2]  # ends anywhere
            assert "".join(Reader(api, EventFramer()).texts(half)) == one_by_one(api, half)[0]


@looks_inside
def test_few_events_of_a_known_shape_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counted(pieces: Any) -> Any:
        for message in read_objects(pieces):
            read.append(message)
            yield message

    monkeypatch.setattr("fastgw.usage.shape.read_objects", counted)
    body = sse(*(padded(f" {number}", number) for number in range(1000)))
    assert len("".join(Reader(OPENAI, EventFramer()).texts(body))) == 10 * 2 + 90 * 3 + 900 * 4
    assert len(read) < 20


def test_what_looks_like_a_text_is_no_shape() -> None:
    """The string that differs must be all that is counted, whatever its member is called."""
    for events in (
        [{"choices": [], "content": f"{number}"} for number in range(300)],
        [{"type": "weird.delta", "delta": f"{number}"} for number in range(300)],
        [{"choices": [{"delta": {"content": "a", "role": f"{at}"}}]} for at in range(300)],
    ):
        body = sse(*events)
        for api in (OPENAI, DIALECTS["auto"].any):
            reader = Reader(api, EventFramer())
            assert "".join(reader.texts(body)) == one_by_one(api, body)[0]
            assert reader._shape is None


def test_where_there_is_no_shape_none_is_looked_for_any_more() -> None:
    reader = Reader(OPENAI, EventFramer())
    body = sse(*({"choices": [], "at": number} for number in range(300)))
    for left in (*reversed(range(PATIENCE)), 0, 0):
        reader.texts(body)
        assert reader._patience == left


def test_json_lines_are_read_one_by_one() -> None:
    body = lines(*(plain(f"{number}", number) for number in range(300)))
    reader = Reader(OPENAI, LineFramer())
    assert "".join(reader.texts(body)) == "".join(map(str, range(300)))
    assert reader._shape is None
    assert orjson.loads(body.split(b"\n")[0]) == plain("0", 0)
