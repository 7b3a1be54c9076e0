"""Counts tokens that nobody reported.

`Counter` is handed pieces of text as they become known and gives a total at any time. The one here
takes four bytes of UTF-8 for a token, which is within a third of the truth for English, code and
CJK alike; `tokens` has the one that counts by a vocabulary. Usage that rests on either is marked
`counted`.
"""

from __future__ import annotations

from typing import Protocol

BYTES_PER_TOKEN = 4


class Counter(Protocol):
    """Counts the tokens of a text that arrives in pieces."""

    def add(self, text: str) -> None:
        """Take the next piece of text."""

    def add_bytes(self, number: int) -> None:
        """Take text of so many bytes that is not there any more."""

    def add_part(self, text: str, size: int) -> None:
        """Take a text of about `size` bytes, of which only the samples in `text` are there."""

    def add_calls(self, number: int) -> None:
        """Take so many tool calls; what they say is added as text."""

    def total(self) -> int:
        """Tokens of all pieces so far."""

    def at_most(self) -> int:
        """A bound of `total`, at no cost."""


class ByteCounter:
    """A token for every four bytes of UTF-8, rounded up."""

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, text: str) -> None:
        """Take the next piece of text."""
        self._bytes += len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))

    def add_bytes(self, number: int) -> None:
        """Take text of so many bytes that is not there any more."""
        self._bytes += number

    def add_part(self, text: str, size: int) -> None:
        """Take a text of `size` bytes."""
        self._bytes += size

    def add_calls(self, number: int) -> None:
        """They cost their text."""

    def total(self) -> int:
        """Tokens of all pieces so far."""
        return -(-self._bytes // BYTES_PER_TOKEN)

    def at_most(self) -> int:
        """A bound of `total`: the same."""
        return self.total()
