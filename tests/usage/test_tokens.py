"""The incremental count is the count of the whole, in bounded steps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgw.model import Usage
from fastgw.usage import vocabulary
from fastgw.usage.anthropic import ANTHROPIC
from fastgw.usage.dialects import DIALECTS
from fastgw.usage.estimate import ByteCounter
from fastgw.usage.meter import StreamMeter
from fastgw.usage.openai import OPENAI
from fastgw.usage.tokens import (
    EXACT,
    FOLD,
    SAMPLE,
    SAMPLES,
    SLICE,
    SLICES,
    TokenCounter,
    counter_for,
    last_cut,
)
from fastgw.usage.vocabulary import Family, Vocabulary, family_of, load

if TYPE_CHECKING:
    from fastgw.usage.api import Api

FRAGMENTS = [
    "The quick brown fox", "it's", "I'LL", "don't", " ", "  ", "\n", "\n\n", "\r\n", "\t", "    ",
    "def f(a, b):", '{"a": 1, "b": [2, 3]}', "漢字", "你好\uff0c世界。", "こんにちは、", "안녕",
    "😀", "👨\u200d👩\u200d👧", "é", "Ünï", "नमस्ते", "ไทย", "1", "123", "4567890", "\u00b2", "Ⅷ",
    "dGhpcyBpcyBiYXNlNjQ+/", "<|endoftext|>", "<think>", "</think>", "[INST]", "<s>", "...",
    "!!!", "'", "\u2019", "_", "//", "https://a.b/c?d=e", "\u017f", "\u00a0", "\u3000", "\u200b",
    "\x1c", "\u2028", "a", "Z", "s", "、", "。", "(", ")", "\ud83d", "\ude00",
]  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=120)
SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=60)

MODELS = ["gpt-4o", "gpt-4", "llama-3", "deepseek", "qwen3", "glm-4.5", "kimi-k2", "mistral-small"]


class Words:
    """A tokenizer that is a pattern: the words of o200k, roughly, a token for each four letters.
    It keeps what it was asked."""

    PATTERN = re.compile(
        r"[^\r\n\w]?[^\W\d_]+(?:'s)?|\d{1,3}| ?(?:[^\s\w]|_)+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+|.",
        re.DOTALL,
    )

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.cleared = 0

    def encode_ordinary(self, text: str, /) -> list[int]:
        self.asked.append(text)
        return [0 for word in self.PATTERN.findall(text) for _ in range(0, len(word), 4)]

    def clear_cache(self) -> None:
        self.cleared += 1


@pytest.fixture(scope="module")
def everything() -> dict[str, Vocabulary]:
    """Vocabularies by the name of a model; this process has none in use, before and after."""
    have = {"words": Vocabulary("words", Words())}
    for model in MODELS:
        words = load(family_of(model).vocabulary)
        if words is not None:
            have[model] = words
    return have


def count(words: Vocabulary, *pieces: str, factor: int = 1000) -> TokenCounter:
    counter = TokenCounter(words, Family(words.name, factor))
    for piece in pieces:
        counter.add(piece)
    return counter


@pytest.mark.parametrize("model", ["words", *MODELS])
@settings(max_examples=100, deadline=None)
@given(pieces=TEXTS, sizes=SIZES)
def test_any_pieces_give_the_count_of_the_whole(
    everything: dict[str, Vocabulary], model: str, pieces: list[str], sizes: list[int]
) -> None:
    if model not in everything:
        pytest.skip("the extra `tokenizers` is not installed")
    words = everything[model]
    text = "".join(pieces)
    counter = count(words)
    at = step = 0
    while at < len(text):
        size = sizes[step % len(sizes)]
        counter.add(text[at : at + size])
        at, step = at + size, step + 1
        if step % 7 == 0:
            bound = counter.at_most()
            assert bound >= counter.total() == words.count(text[:at])
    assert counter.at_most() >= counter.total() == words.count(text)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("one two three", 7),
        ("one  ", 3),
        (" one", 0),
        ("   ", 0),
        ("it's", 0),
        ("abc123", 3),
        ("123abc", 0),
        ("a,b", 1),
        ("a\n\n", 1),
        ("\u00b23", 0),  # a number: three digits are a word
        ("漢字。", 2),
        ("नमस्ते", 0),  # a vowel sign is no end of a word
        ("", 0),
    ],
)
def test_where_a_text_can_be_cut(text: str, cut: int) -> None:
    assert last_cut(text, 0, len(text)) == cut


def test_deltas_are_counted_in_bulk_and_once() -> None:
    words = Words()
    counter = count(Vocabulary("words", words), *[" token"] * 10_000)
    assert sum(map(len, words.asked)) <= 60_000
    assert len(words.asked) <= 60_000 // FOLD + 1
    assert counter.total() == 20_000
    assert sum(map(len, words.asked)) == 60_000


@pytest.mark.parametrize("letter", ["x", "7", " ", "\n", "漢", "😀", "\u0301"])
def test_text_without_a_cut_is_linear_in_small_slices(letter: str) -> None:
    words = Words()
    size = 40_000
    counter = count(Vocabulary("words", words), *[letter * 10] * (size // 10))
    assert max(len(text.encode()) for text in words.asked) <= SLICE
    assert len(words.asked) <= size * len(letter.encode()) // (SLICE // 4) + 1
    whole = len(Words().encode_ordinary(letter * size))
    assert whole <= counter.total() <= whole * 102 // 100 + 1
    assert sum(map(len, words.asked)) <= size + SLICE


@pytest.mark.parametrize("letter", ["x", "漢", "漢。", "x ", "one two ", " ", "\U0001f600"])
@pytest.mark.parametrize("size", [100_000, 10_000_000])
def test_one_call_does_bounded_work_whatever_it_is_handed(letter: str, size: int) -> None:
    words = Words()
    text = letter * (size // len(letter))
    counter = count(Vocabulary("words", words), text)
    assert counter.total() > 0
    assert max(len(text.encode()) for text in words.asked) <= SLICE
    found = len(Words().encode_ordinary(text))
    asked = sum(map(len, words.asked))
    assert asked <= 4 * (EXACT + SLICE) + SAMPLES * SAMPLE + SLICE
    assert len(words.asked) <= SLICES + SAMPLES + 2
    assert 0.97 * found <= counter.total() <= 1.03 * found


def test_the_cache_is_emptied_as_text_goes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "CLEAR_AFTER", 10_000)
    words = Words()
    count(Vocabulary("words", words), *["word "] * 9_000).total()
    assert words.cleared in (3, 4)


def test_a_factor_applies_to_the_sum() -> None:
    words = Vocabulary("words", Words())
    assert count(words, *["a "] * 1000, factor=1170).total() == 1172  # of 1001 words
    bound = count(words, "漢", factor=1170).at_most()
    assert bound == 5


def test_text_that_is_not_there_counts_by_its_bytes() -> None:
    counter = count(Vocabulary("words", Words()), "word")
    counter.add_bytes(4001)
    assert counter.total() == 1 + 1001
    assert counter.at_most() == 4 + 1001


CALLS: list[tuple[Api, dict[str, Any], int]] = [
    (OPENAI, {"choices": [{"delta": {"tool_calls": [{"function": {"name": "f"}}]}}]}, 1),
    (OPENAI, {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{"}}]}}]}, 0),
    (OPENAI, {"choices": [{"message": {"tool_calls": [{"function": {"name": "f"}}] * 3}}] * 2}, 6),
    (OPENAI, {"choices": [{"delta": None}, {"delta": {"tool_calls": None}}, 1]}, 0),
    (OPENAI, {"type": "response.output_item.added", "item": {"type": "function_call"}}, 1),
    (OPENAI, {"type": "response.output_item.done", "item": {"type": "function_call"}}, 0),
    (OPENAI, {"object": "response", "output": [{"type": "function_call"}, {"type": "message"}]}, 1),
    (ANTHROPIC, {"type": "content_block_start", "content_block": {"type": "tool_use"}}, 1),
    (ANTHROPIC, {"type": "content_block_start", "content_block": {"type": "text"}}, 0),
    (ANTHROPIC, {"type": "message", "content": [{"type": "server_tool_use"}, {"type": "text"}]}, 1),
    (ANTHROPIC, {"type": "content_block_delta"}, 0),
    (DIALECTS["auto"].any, {"choices": [{"message": {"tool_calls": [{}]}}]}, 0),
    (DIALECTS["auto"].any, {"type": "message", "content": [{"type": "tool_use"}]}, 1),
]


@pytest.mark.parametrize(("api", "message", "calls"), CALLS)
def test_where_a_tool_call_begins(api: Api, message: dict[str, Any], calls: int) -> None:
    assert api.calls(message) == calls


def test_a_tool_call_costs_more_than_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_loaded", {"o200k_base": Vocabulary("o200k_base", Words())})
    call = {"type": "content_block_start", "content_block": {"type": "tool_use", "name": "f"}}
    events = [{"type": "message_start", "message": {"model": "claude-3"}}, call, call]
    meter = StreamMeter(ANTHROPIC)
    for event in events:
        meter.feed(b"data: %b\n\n" % orjson.dumps(event))
    assert meter.finish(False, lambda: 7).usage == Usage(7, 2 + 2 * 45, source="counted")


def test_special_tokens_are_text_and_pairs_are_made_whole(
    everything: dict[str, Vocabulary],
) -> None:
    for words in everything.values():
        assert count(words, "<|endoftext|>").total() > 1
        assert count(words, "\ud83d", "\ude00").total() == count(words, "😀").total()
        assert count(words, "\ud83d").total() >= 1


def test_without_a_vocabulary_bytes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_loaded", {})
    assert isinstance(counter_for("gpt-4o"), ByteCounter)


def test_a_model_is_counted_by_its_own_vocabulary_or_the_nearest_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long, short = Vocabulary("o200k_base", Words()), Vocabulary("llama3", Words())
    monkeypatch.setattr(vocabulary, "_loaded", {"o200k_base": long, "llama3": short})
    for model, words in (("llama-3.1-70b", short), ("qwen3-8b", long), ("", long)):
        counter = counter_for(model)
        assert isinstance(counter, TokenCounter)
        assert counter._vocabulary is words
