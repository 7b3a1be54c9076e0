"""Counts the tokens of a text that arrives in pieces, exactly and lazily.

1. A safe cut is a place p where a blank follows what is none, or where one of _MARKS follows a
   letter. For every text that may follow, tokens(T) = tokens(T[:p]) + tokens(T[p:]): in the
   patterns that split text into words (o200k, cl100k and all that descend from them) a word has a
   blank only at its beginning, a letter only in a run of letters that such a mark ends, and nothing
   looks behind. Tokens never span two words. docs/counting.md has the proof.
2. What is before a safe cut is counted once and settled; the tail waits. Pieces are joined and
   looked at when FOLD bytes wait, or when somebody asks. Where a tail has no cut that limit
   doubles, so the work stays linear.
3. A tokenizer holds the interpreter, and a word costs its length: it is handed SLICE bytes at most,
   cut where it is safe or else where they end. The latter may be a token off for each cut.
4. One call counts EXACT tokens in SLICES slices, or little more. What comes beyond that in one
   piece is told by the density of samples: a megabyte of base64 is an estimate.

Counts are integers; a family's factor applies to the sum.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from fastgw.usage.estimate import BYTES_PER_TOKEN, ByteCounter
from fastgw.usage.vocabulary import DEFAULT, Family, family_of, loaded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgw.usage.estimate import Counter
    from fastgw.usage.vocabulary import Vocabulary

FOLD = 512
"""Bytes that wait before they are looked at."""

SLICE = 2048
"""Bytes that a tokenizer is handed at a time: about a millisecond where they are one word."""

EXACT = 4096
"""Tokens that are counted in one call."""

SLICES = 32
"""Slices that are counted in one call: a token may be as long as 128 blanks."""

SAMPLES = 24
SAMPLE = 256
"""Bytes of a sample."""

_WIDEST = 4
"""Bytes of a character at most."""

_LETTER = "A-Za-z\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
"""Letters by every table: no digits of other scripts, no marks that join letters."""

_MARKS = (
    r"\x20-&(-@\[-`{-~\t\n\r"
    "\u2026\u3001\u3002\u3008-\u3011\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f"
)
"""What ends a run of letters by every table: not the apostrophe, which may go on with an `s`."""

_CUT = re.compile(rf"(?s:.*)(?:(?<=\S)(?= )|(?<=[{_LETTER}])(?=[{_MARKS}]))")


def last_cut(text: str, start: int, end: int) -> int:
    """The last safe cut after `start` and up to `end`, `start` where there is none."""
    match = _CUT.match(text, start + 1, end + 1)
    return match.end() if match is not None else start


class TokenCounter:
    """See the module."""

    __slots__ = ("_calls", "_family", "_gone", "_limit", "_settled", "_vocabulary", "_waiting",
                 "_weight")  # fmt: skip

    def __init__(self, vocabulary: Vocabulary, family: Family) -> None:
        """`vocabulary` may be another than the family's own."""
        self._vocabulary = vocabulary
        self._family = family
        self._settled = 0  # tokens up to the last cut
        self._waiting: list[str] = []
        self._weight = 0  # bytes that wait, at most
        self._limit = FOLD  # of the weight, before the next fold
        self._gone = 0
        self._calls = 0

    def add(self, text: str) -> None:
        """Take the next piece of text."""
        self._waiting.append(text)
        self._weight += len(text) if text.isascii() else _WIDEST * len(text)
        if self._weight > self._limit:
            self._fold()

    def add_bytes(self, number: int) -> None:
        """Take text of so many bytes that is not there any more."""
        self._gone += number

    def add_samples(self, texts: Sequence[str]) -> None:
        """Take texts that are too long to be counted, by samples of them all."""
        self.close()
        self._settled += _sampled(self._vocabulary, texts)

    def add_part(self, text: str, size: int) -> None:
        """Take a text of `size` bytes, of which only the samples in `text` are there."""
        self.close()
        seen = len(text.encode("utf-8", "replace"))
        self._settled += -(-_sampled(self._vocabulary, [text]) * size // max(1, seen))

    def close(self) -> None:
        """The text is over; what comes next is another."""
        if self._weight:
            if self._weight > SLICE:
                self._fold()
            self._settled += self._vocabulary.count("".join(self._waiting))
            self._waiting = []
            self._weight = 0
            self._limit = FOLD

    def add_calls(self, number: int) -> None:
        """Take so many tool calls; what they say is added as text."""
        self._calls += number

    def total(self) -> int:
        """Tokens of all pieces so far."""
        if self._weight > FOLD:
            self._fold()
        tail = self._vocabulary.count("".join(self._waiting)) if self._weight else 0
        return self._scaled(self._settled + tail)

    def at_most(self) -> int:
        """A bound of `total` that counts nothing: no token is shorter than a byte."""
        return self._scaled(self._settled + self._weight)

    def _scaled(self, tokens: int) -> int:
        family = self._family
        gone = -(-self._gone // BYTES_PER_TOKEN)
        return -(-tokens * family.factor // 1000) + gone + family.call * self._calls

    def _fold(self) -> None:
        """Settle what waits up to its last cut."""
        text = "".join(self._waiting)
        size = len(text)
        slice_ = SLICE if text.isascii() else SLICE // _WIDEST
        count = self._vocabulary.count
        at = tokens = slices = 0
        while True:
            end = min(at + slice_, size)
            cut = last_cut(text, at, end)
            if cut == at:
                if end == size:
                    break
                cut = end
            tokens += count(text[at:cut])
            at = cut
            slices += 1
            if end == size:
                break
            if (tokens > EXACT or slices >= SLICES) and size - at > slice_:
                tokens += _sampled(self._vocabulary, [text[at:]])
                at = size
                break
        self._settled += tokens
        tail = text[at:]
        self._waiting = [tail]
        self._weight = len(tail) if tail.isascii() else _WIDEST * len(tail)
        self._limit = max(FOLD, 2 * self._weight)


def _sampled(vocabulary: Vocabulary, texts: Sequence[str]) -> int:
    """Tokens of all texts together, by samples that lie evenly in them."""
    ends = list(accumulate(map(len, texts)))
    size = ends[-1] if ends else 0
    found = seen = 0
    for at in range(0, size, size // SAMPLES + 1):
        number = bisect_right(ends, at)
        text = texts[number]
        start = at - ends[number] + len(text)
        part = text[start : start + (SAMPLE if text.isascii() else SAMPLE // _WIDEST)]
        first, last = part.find(" "), part.rfind(" ")
        if first < last:
            part = part[first:last]  # whole words
        found += vocabulary.count(part)
        seen += len(part)
    return -(-found * size // seen) if seen else 0


def counter_for(model: str) -> Counter:
    """A counter for the text of this model; by bytes where no vocabulary is in memory."""
    family = family_of(model)
    vocabulary = loaded(family)
    return TokenCounter(vocabulary, family) if vocabulary is not None else ByteCounter()


def counters(model: str) -> list[Counter]:
    """A counter of each kind that a process may have for this model: by bytes, by o200k, by the
    model's own vocabulary."""
    family = family_of(model)
    words = dict.fromkeys((loaded(Family(DEFAULT)), loaded(family)))
    return [ByteCounter(), *(TokenCounter(each, family) for each in words if each is not None)]
