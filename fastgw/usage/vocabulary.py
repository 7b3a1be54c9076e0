"""Which vocabulary a model writes in, and the tokenizers that are in memory.

Vocabularies come from the optional package splintr-rs; without it nothing is loaded and tokens are
counted by bytes. Loading one takes some 100 ms of CPU, which nobody else gets meanwhile, and 35
MiB. So only those that are named beforehand are loaded: at once by `warm`, or by `want` as
something is to be counted by them first. Any other model is counted by o200k, a few percent off.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT = "o200k_base"
"""The vocabulary of models that we do not know."""

MOST_LOADED = 3
"""Vocabularies that are loaded at most: a worker has 100 MiB more. docs/counting.md has the errors
of doing without."""

CLEAR_AFTER = 4 * 1024 * 1024
"""Characters after which the tokenizer's cache of words is emptied. It is bounded by the number of
words and not by their size: 3 bytes for each byte of a text without blanks."""

_WORDS, _WORD = 64, 16
"""Words whose count is remembered, and their characters."""

_FIRST = "Warm: zxqvbnmlkj QWXZpfgh7 漢字仮名 Ünïcödé\n\n\t😀"
"""Words that are no tokens, so that the tables which are built at the first such word are there."""


class Family(NamedTuple):
    """How models of one maker count. `factor`: their tokens for a thousand of `vocabulary`;
    `call`: tokens of a tool call that are not in its text; of a prompt with tools: `schema`, tokens
    for a thousand of the tools' JSON, and `tools`, once."""

    vocabulary: str
    factor: int = 1000
    call: int = 0
    schema: int = 1000
    tools: int = 9


_OPENAI = Family(DEFAULT, call=10, schema=650)
_OPENAI_OLD = Family("cl100k_base", call=10, schema=650)
_CLAUDE = Family(DEFAULT, 1170, call=45, tools=400)
_MISTRAL = Family("mistral_v3", schema=1400)
_UNKNOWN = Family(DEFAULT)

_FAMILIES = [
    (re.compile(pattern), family)
    for pattern, family in (
        (r"claude", _CLAUDE),
        (r"gpt-oss|gpt-?4o|gpt-?4[.-][1-9]\b|gpt-?[5-9]", _OPENAI),
        (r"gpt-?4|gpt-?3|text-embedding|davinci|babbage", _OPENAI_OLD),
        (r"(?:^|[/:])o[1-9](?:-|$)|chatgpt|codex", _OPENAI),
        (r"llama", Family("llama3")),
        (r"qwen|qwq|qvq", Family("qwen3")),
        (r"deepseek", Family("deepseek_v3", schema=1900)),
        (r"mi[sx]tral|ministral|magistral|codestral|devstral|pixtral", _MISTRAL),
        (r"glm", Family("glm4")),
        (r"kimi|moonshot", Family("kimi_k2")),
    )
]


def family_of(model: str) -> Family:
    """The family of a model by its name: dated, fine-tuned or prefixed by a maker or region."""
    return _family_of(model[:200])


@lru_cache(maxsize=1024)
def _family_of(model: str) -> Family:
    name = model.lower()
    for pattern, family in _FAMILIES:
        if pattern.search(name) is not None:
            return family
    return _UNKNOWN


class Encoder(Protocol):
    """What we use of a tokenizer."""

    def encode_ordinary(self, text: str, /) -> list[int]:
        """The tokens of a text; what looks like a special token is text as well."""

    def clear_cache(self) -> None:
        """Forget the words that were met."""


class Vocabulary:
    """A tokenizer in memory. It holds the interpreter as it works, so texts come in slices."""

    __slots__ = ("_encode", "_fed", "_words", "encoder", "name")

    def __init__(self, name: str, encoder: Encoder) -> None:
        self.name = name
        self.encoder = encoder
        self._encode = encoder.encode_ordinary
        self._fed = 0
        self._words: dict[str, int] = {}

    def count_word(self, word: str) -> int:
        """As `count`, of a word that is likely to come again."""
        found = self._words.get(word)
        if found is None:
            found = self.count(word)
            if len(self._words) < _WORDS and len(word) <= _WORD:
                self._words[word] = found
        return found

    def count(self, text: str) -> int:
        """Tokens of a text, exactly."""
        self._fed += len(text)
        if self._fed > CLEAR_AFTER:
            self.encoder.clear_cache()
            self._fed = 0
        try:
            return len(self._encode(text))
        except UnicodeEncodeError:  # lone surrogates; pairs that came in two are made whole
            pairs = text.encode("utf-16", "surrogatepass")
            return len(self._encode(pairs.decode("utf-16", "replace")))


_loaded: dict[str, Vocabulary] = {}
_wanted: set[str] = set()
"""Those that are loaded as they are needed."""


def _named(models: Iterable[str]) -> list[str]:
    """The vocabularies of these models, o200k first."""
    return [*dict.fromkeys((DEFAULT, *(family_of(model).vocabulary for model in models)))]


def want(models: Iterable[str] = ()) -> None:
    """As `warm`, but each vocabulary is loaded as something is to be counted by it."""
    _wanted.clear()
    _wanted.update(name for name in _named(models)[:MOST_LOADED] if name not in _loaded)


def _load_wanted(name: str) -> None:
    found = load(name)
    if found is None:
        _wanted.clear()
        return
    _wanted.discard(name)
    _loaded[name] = found


def warm(models: Iterable[str] = ()) -> tuple[str, ...]:
    """Load the vocabularies of these models, o200k first, MOST_LOADED at most; what is loaded stays
    loaded. Returns the names of all in memory: none where the package is not installed."""
    for name in _named(models):
        if name not in _loaded and len(_loaded) < MOST_LOADED:
            found = load(name)
            if found is None:
                break
            _loaded[name] = found
    return names()


def load(name: str) -> Vocabulary | None:
    """A vocabulary by its name, ready for use; None where the package is not installed."""
    try:
        from splintr import Tokenizer
    except ImportError:
        return None
    encoder: Encoder = Tokenizer.from_pretrained(name)
    encoder.encode_ordinary(_FIRST)
    return Vocabulary(name, encoder)


def names() -> tuple[str, ...]:
    """The vocabularies in memory, in the order in which they were loaded."""
    return tuple(_loaded)


def loaded(family: Family) -> Vocabulary | None:
    """The vocabulary in memory that comes closest to this family's; None where there is none. One
    that is wanted is loaded first."""
    if _wanted:
        name = family.vocabulary if family.vocabulary in _wanted else DEFAULT
        if name in _wanted and family.vocabulary not in _loaded:
            _load_wanted(name)
    return _loaded.get(family.vocabulary) or _loaded.get(DEFAULT)
