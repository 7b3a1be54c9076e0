"""Counting: what a delta costs, what the longest single call takes, what loading takes.

python -m bench.micro.tokens
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.micro.timing import Row, show, timed
from fastgw.usage.estimate import ByteCounter
from fastgw.usage.prompt import counted
from fastgw.usage.tokens import TokenCounter
from fastgw.usage.vocabulary import DEFAULT, Family, Vocabulary, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgw.usage.estimate import Counter
    from fastgw.usage.vocabulary import Encoder

_DICE = random.Random(7)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_WORDS = (
    "The gateway counts what the provider does not report, while the answer passes: each piece of "
    "text waits until some hundred bytes are there, is cut where a word ends, and is counted once. "
)
_CODE = (
    "def add(self, text: str) -> None:\n    self._waiting.append(text)\n"
    '    if n > 10:\n        return {"a": [1, 2]}\n\n'
)
_HAN = "网关在回答经过时计算令牌数量、不等待也不重复。"


def _random(letters: str, size: int) -> str:
    return "".join(_DICE.choices(letters, k=size))


def _han(size: int) -> str:
    return "".join(chr(_DICE.randrange(0x4E00, 0x9FA6)) for _ in range(size))


def texts(size: int) -> dict[str, str]:
    """Texts of `size` characters, by what they are."""
    return {
        "English": (_WORDS * (size // len(_WORDS) + 1))[:size],
        "code": (_CODE * (size // len(_CODE) + 1))[:size],
        "Chinese": (_HAN * (size // len(_HAN) + 1))[:size],
        "random Han, no mark": _han(size),
        "base64": _random(_LETTERS, size),
        "one letter": "a" * size,
        "blanks": " " * size,
    }


def _deltas(make: Callable[[], Counter], pieces: list[str]) -> Callable[[], object]:
    def whole() -> int:
        counter = make()
        for piece in pieces:
            counter.add(piece)
        return counter.total()

    return whole


class Timed:
    """An encoder that keeps the longest of its calls, in seconds of CPU."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.longest = 0.0

    def encode_ordinary(self, text: str, /) -> list[int]:
        """See Encoder."""
        began = time.process_time()
        found = self._encoder.encode_ordinary(text)
        self.longest = max(self.longest, time.process_time() - began)
        return found

    def clear_cache(self) -> None:
        """See Encoder."""
        self._encoder.clear_cache()


def _at_once(words: Vocabulary, text: str, repeats: int) -> tuple[float, float]:
    """Microseconds of one call that is handed the text, and of the longest slice of it; words that
    were met before are forgotten."""
    whole = slice_ = float("inf")
    for _ in range(repeats):
        words.encoder.clear_cache()
        encoder = Timed(words.encoder)
        counter = TokenCounter(Vocabulary(words.name, encoder), Family(words.name))
        began = time.process_time()
        counter.add(text)
        counter.total()
        whole = min(whole, time.process_time() - began)
        slice_ = min(slice_, encoder.longest)
    return whole * 1e6, slice_ * 1e6


def run(number: int = 20) -> list[Row]:
    """The rows of the report; what needs a vocabulary is left out where there is none."""
    short = {name: text for name, text in texts(20_000).items() if len(text) > 2}
    rows = []
    words = load(DEFAULT)
    ways: dict[str, Callable[[], Counter]] = {"bytes": ByteCounter}
    if words is not None:
        vocabulary = words
        ways["o200k"] = lambda: TokenCounter(vocabulary, Family(DEFAULT))
    for way, make in ways.items():
        for name, text in short.items():
            size = 1 if "Han" in name or name == "Chinese" else 4
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
            row = timed(f"{way}: a delta of {size}, {name}", _deltas(make, pieces), number)
            rows.append(Row(row.name, row.microseconds / len(pieces)))
        for size in (300, 3_000, 300_000):
            request = {"messages": [{"role": "user", "content": texts(size)["English"]}]}
            rows.append(
                timed(
                    f"{way}: a prompt of {size:,} characters",
                    lambda make=make, request=request: counted(request, "", make()),  # type: ignore[misc]
                    number * 10,
                )
            )
    if words is None:
        return rows
    for name in (DEFAULT, "deepseek_v3"):
        found = load(name)
        assert found is not None
        for kind, text in texts(1_000_000).items():
            whole, slice_ = _at_once(found, text, min(number, 5))
            rows.append(Row(f"{name}: 1,000,000 characters in one call, {kind}", whole))
            rows.append(Row(f"{name}: the longest slice of it", slice_))
    return rows


def main() -> None:
    """Print what loading takes, once in a process, and the rows."""
    for name in (DEFAULT, "cl100k_base", "llama3", "deepseek_v3"):
        before, began = _resident(), time.process_time()
        if load(name) is None:
            print("the extra `tokenizers` is not installed: bytes alone")
            break
        spent = (time.process_time() - began) * 1e3
        print(f"{name}: loaded in {spent:.0f} ms, {(_resident() - before) / 2**20:.0f} MiB")
    show("Counting", run())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
