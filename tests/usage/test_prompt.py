"""What a prompt is counted as, by bytes and by a vocabulary."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.usage import vocabulary
from fastgw.usage.estimate import ByteCounter
from fastgw.usage.prompt import FEW, SHORT, counted, prompt_tokens
from fastgw.usage.tokens import SAMPLE, SAMPLES, SLICE, TokenCounter
from fastgw.usage.vocabulary import DEFAULT, Family, Vocabulary, load, loaded, warm

CHATTED = 3 + 3  # a message and the reply, by the rule of the OpenAI cookbook


class Letters:
    """A tokenizer of a token for each four letters; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_ordinary(self, text: str, /) -> list[int]:
        self.asked.append(text)
        return [0] * -(-len(text) // 4)

    def clear_cache(self) -> None: ...


@pytest.fixture(params=["bytes", "vocabulary"])
def counting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Letters:
    """Both ways to count a text, which agree on these."""
    letters = Letters()
    have = {DEFAULT: Vocabulary(DEFAULT, letters)} if request.param == "vocabulary" else {}
    monkeypatch.setattr(vocabulary, "_loaded", have)
    return letters


PROMPTS: list[tuple[dict[str, Any], int]] = [
    ({"prompt": "a" * 40}, 10),
    ({"prompt": ["a" * 40, "b" * 40]}, 20),
    ({"prompt": [1, 2, 3]}, 3),  # token ids
    ({"input": [[1, 2, 3], [4, 5]]}, 5),
    ({"messages": [{"content": [{"rows": [[1, "a" * 40], [2, "b" * 40]]}]}]}, 22 + CHATTED),
    ({"input": "a" * 40, "instructions": "b" * 40}, 20),
    ({"messages": [{"content": "a" * 40}]}, 10 + CHATTED),
    ({"messages": [{"content": "a" * 40}] * 2}, 20 + CHATTED + 3),
    ({"messages": [{"role": "user", "content": "a" * 40}]}, 11 + CHATTED),
    ({"messages": [{"role": "user", "name": "anna", "content": "a" * 40}]}, 13 + CHATTED),
    ({"messages": [{"content": [{"type": "text", "text": "a" * 40}]}]}, 10 + CHATTED),
    ({"messages": [{"tool_call_id": "x" * 40, "content": "a" * 40}]}, 10 + CHATTED),
    ({"model": "x" * 400, "user": "y" * 400}, 1),
    ({}, 1),
    ({"messages": 7, "tools": "x", "input": None, "model": 3}, 1),
    ({"prompt": ""}, 1),
]


@pytest.mark.parametrize(("request_", "tokens"), PROMPTS)
def test_prompts(counting: Letters, request_: dict[str, Any], tokens: int) -> None:
    assert prompt_tokens(request_) == tokens


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,%s"}}, 520),
        ({"type": "image_url", "image_url": {"url": "%s", "detail": "low"}}, 85),
        ({"type": "input_image", "image_url": "%s", "detail": "low"}, 85),
        ({"type": "input_image", "image_url": "%s"}, 520),
        ({"type": "image"}, 520),
        ({"type": "input_audio", "input_audio": {"data": "%s"}}, 520),
    ],
)
def test_an_image_counts_the_same_whatever_its_bytes(
    counting: Letters, part: dict[str, Any], tokens: int
) -> None:
    def filled(value: Any, data: str) -> Any:
        if isinstance(value, dict):
            return {name: filled(each, data) for name, each in value.items()}
        return value.replace("%s", data)

    for size in (1, 4_000_000):
        message = {"content": [filled(part, "A" * size)]}
        assert prompt_tokens({"messages": [message]}) == tokens + CHATTED


def test_tools_cost_their_json_by_the_family_and_once_more(counting: Letters) -> None:
    tool = {"function": {"description": "a" * 366}}  # 400 bytes with its commas
    for model, schema, once in (("", 1000, 9), ("gpt-4o", 650, 9), ("claude-3", 1000, 400)):
        one, two, none = (
            prompt_tokens({"prompt": "x", "model": model, "tools": [tool] * n}) for n in (1, 2, 0)
        )
        factor = 1170 if model == "claude-3" and counting.asked else 1000
        assert two - one == pytest.approx(100 * schema * factor / 1e6, abs=2)
        assert one - none == pytest.approx(once + 100 * schema * factor / 1e6, abs=2)


def test_depth_is_the_clients_choice(counting: Letters) -> None:
    deep: Any = "a" * 4
    for _ in range(100_000):
        deep = [deep]
    assert prompt_tokens({"input": deep}) == 1
    assert prompt_tokens({"input": "a", "tools": [{"a": "\ud83d"}]}) > 1
    while isinstance(deep, list):  # taken apart here: its end would be recursive
        deep = deep.pop()


def test_a_short_prompt_is_counted_text_by_text() -> None:
    letters = Letters()
    words = Vocabulary("words", letters)
    request = {"messages": [{"role": "user", "content": "abcde"}] * 3}
    assert counted(request, "", TokenCounter(words, Family("words"))) == 3 * (3 + 1 + 2) + 3
    assert sorted(letters.asked) == ["abcde"] * 3 + ["user"] * 3


@pytest.mark.parametrize("texts", [1, FEW, FEW * 100])
def test_of_a_long_prompt_samples_are_counted(texts: int) -> None:
    letters = Letters()
    words = Vocabulary("words", letters)
    size = 100 * SHORT
    request = {"prompt": ["a" * (size // texts)] * texts}
    found = counted(request, "", TokenCounter(words, Family("words")))
    assert sum(map(len, letters.asked)) <= SAMPLES * SAMPLE
    assert max(map(len, letters.asked)) <= SLICE
    exact = texts * -(-(size // texts) // 4)
    assert exact * 0.9 <= found <= exact * 1.1


def test_the_two_ways_are_told_apart_by_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("splintr", reason="the extra `tokenizers` is not installed")
    monkeypatch.setattr(vocabulary, "_loaded", {})
    warm()
    request = {"messages": [{"role": "user", "content": "Say this is a test, would you?"}]}
    assert prompt_tokens(request) == 3 + 1 + 9 + 3
    assert counted(request, "", ByteCounter()) == 3 + 9 + 3
    assert loaded(Family(DEFAULT)) is not None


_TEXTS = st.one_of(
    st.sampled_from(["", " ", "Hello, world", "x" * SLICE, "a b " * 200, "na\u00efve", "\ud83d"]),
    st.text(st.characters(max_codepoint=127), max_size=60),
)
_MESSAGES = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "t" * 40]), "content": _TEXTS}
    ),
    st.fixed_dictionaries({"role": _TEXTS, "content": _TEXTS, "name": _TEXTS}),
    st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(_TEXTS, max_size=3)}),
    st.fixed_dictionaries({"type": _TEXTS, "content": _TEXTS}),
    st.none(),
)

_o200k = cache(lambda: load(DEFAULT))


@given(
    st.lists(_MESSAGES, max_size=4),
    st.sampled_from(["gpt-4o", "claude-3", "llama-3", ""]),
    st.sampled_from([{}, {"tools": []}, {"system": "Be kind."}, {"n": 3}, {"tools": [{"a": 1}]}]),
)
def test_a_short_prompt_counts_as_any_other(
    messages: list[Any], model: str, more: dict[str, Any]
) -> None:
    words = _o200k()
    if words is None:
        pytest.skip("the extra `tokenizers` is not installed")
    request = {"messages": messages, **more}
    counter = TokenCounter(words, vocabulary.family_of(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_loaded", {DEFAULT: words})
        assert counted(request, model) == counted(request, model, counter)
