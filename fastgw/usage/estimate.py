"""Counts tokens that nobody reported.

`Counter` is handed pieces of text as they become known and gives a total at any time. The one here
takes four bytes of UTF-8 for a token, which is within a third of the truth for English, code and
CJK alike; `tokens` has the one that counts by a vocabulary. Usage that rests on either is marked
`counted`.
"""

from __future__ import annotations

from typing import Any, Protocol

BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 3
TOKENS_PER_REPLY = 3
TOKENS_PER_IMAGE = 520
TOKENS_PER_TOOL = 8


class Counter(Protocol):
    """Counts the tokens of a text that arrives in pieces."""

    def add(self, text: str) -> None:
        """Take the next piece of text."""

    def add_bytes(self, number: int) -> None:
        """Take text of so many bytes that is not there any more."""

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

    def total(self) -> int:
        """Tokens of all pieces so far."""
        return -(-self._bytes // BYTES_PER_TOKEN)

    def at_most(self) -> int:
        """A bound of `total`: the same."""
        return self.total()


def prompt_tokens(request: dict[str, Any]) -> int:
    """Input tokens of a request body in the OpenAI dialect: chat, completions, responses,
    embeddings. At least 1.

    The rule of the OpenAI cookbook: three for each message, three for the reply, and the text.
    Inline images count a fixed amount, whatever their bytes.
    """
    counter = ByteCounter()
    extra = 0
    for name in ("messages", "input", "prompt", "instructions", "system"):
        extra += _walk(request.get(name), counter)
    tools = request.get("tools")
    if isinstance(tools, list):
        extra += TOKENS_PER_TOOL * len(tools) + _walk(tools, counter)
    messages = request.get("messages")
    if isinstance(messages, list):
        extra += TOKENS_PER_MESSAGE * len(messages) + TOKENS_PER_REPLY
    return max(1, counter.total() + extra)


def _walk(value: Any, counter: Counter) -> int:
    """Feed every text under `value`; return tokens for what is not text. Not recursive: the depth
    of a request is the client's choice."""
    extra = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            counter.add(item)
        elif isinstance(item, dict):
            if item.get("type") in ("image_url", "input_image", "image"):
                extra += TOKENS_PER_IMAGE
            elif item.get("type") in ("input_audio", "file", "input_file"):
                extra += TOKENS_PER_IMAGE
            else:
                waiting.extend(item.values())
        elif isinstance(item, list):
            if item and isinstance(item[0], int):
                extra += len(item)  # a prompt given as token ids
            else:
                waiting.extend(item)
    return extra
