"""Counts a prompt: what a request may cost before it runs, and what it cost where nobody reports.

The rule of the OpenAI cookbook: three tokens for each message, three for the reply, one for a name,
and the text. Tools are rewritten by providers before the model reads them: their JSON counts by the
family's factor. Images, audio and documents count a fixed amount, whatever their bytes.

A short prompt is counted text by text; of a long one samples are. docs/counting.md has the errors
of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgw.skeleton import add_texts, is_part
from fastgw.usage.estimate import ByteCounter
from fastgw.usage.payload import written
from fastgw.usage.tokens import SLICE, TokenCounter, counter_for
from fastgw.usage.vocabulary import family_of, loaded

if TYPE_CHECKING:
    from fastgw.usage.estimate import Counter

TOKENS_PER_MESSAGE = 3
TOKENS_PER_REPLY = 3
TOKENS_PER_NAME = 1
TOKENS_PER_IMAGE = 520
TOKENS_PER_SMALL_IMAGE = 85
"""Of an image with `"detail": "low"`."""
TOKENS_PER_FILE = 520

SHORT = 8 * 1024
"""Characters of a prompt that are counted exactly: 60 us where it is English."""
FEW = 256
"""Texts of such a prompt."""

_MEMBERS = ("messages", "input", "prompt", "instructions", "system")
_ELSEWHERE = frozenset({*_MEMBERS, "tools"} - {"messages"})
_NOT_TEXT = frozenset({"type", "id", "call_id", "tool_call_id", "tool_use_id", "cache_control"})
_IMAGES = ("image_url", "input_image", "image")
_FILES = ("input_audio", "file", "input_file")


def prompt_tokens(request: dict[str, Any], model: str = "") -> int:
    """Input tokens of a request body: chat, completions, responses, embeddings. At least 1.
    `model`: by default what the body names."""
    name = model or request.get("model")
    return counted(request, name if isinstance(name, str) else "")


def counted(request: dict[str, Any], model: str, counter: Counter | None = None) -> int:
    """As `prompt_tokens`, by a counter that is new; by default the one for the model."""
    if counter is None:
        found = _of_short(request, model)
        if found:
            return found
        counter = counter_for(model)
    family = family_of(model)
    texts: list[str] = []
    extra = 0
    for name in _MEMBERS:
        if (value := request.get(name)) is not None:
            extra += _walk(value, texts)
    messages = request.get("messages")
    if isinstance(messages, list):
        extra += TOKENS_PER_MESSAGE * len(messages) + TOKENS_PER_REPLY
    _take(texts, counter)
    tools = request.get("tools")
    if isinstance(tools, list) and tools:
        of_tools = type(counter)() if isinstance(counter, ByteCounter) else counter_for(model)
        _take([written(tools)], of_tools)
        extra += family.tools + of_tools.total() * family.schema // 1000
    return max(1, counter.total() + extra)


def _of_short(request: dict[str, Any], model: str) -> int:
    """The same for what most short prompts are, messages with a role and a text in ASCII; 0 for any
    other. Half the cost of looking for texts wherever they may stand."""
    messages = request.get("messages")
    if type(messages) is not list or not _ELSEWHERE.isdisjoint(request):
        return 0
    family = family_of(model)
    vocabulary = loaded(family)
    if vocabulary is None:
        return 0
    tokens = size = 0
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return 0
        role, text = message.get("role"), message.get("content")
        if type(role) is not str or type(text) is not str or not text.isascii() or is_part(text):
            return 0
        size += len(text)
        if size > SLICE:
            return 0
        tokens += vocabulary.count_word(role) + (vocabulary.count(text) if text else 0)
    tokens = -(-tokens * family.factor // 1000)
    return max(1, tokens + TOKENS_PER_MESSAGE * len(messages) + TOKENS_PER_REPLY)


def _take(texts: list[str], counter: Counter) -> None:
    """Feed texts that have nothing to do with each other."""
    if any(map(is_part, texts)):
        add_texts(counter, [text for text in texts if is_part(text)])
        texts = [text for text in texts if not is_part(text)]
    if isinstance(counter, TokenCounter):
        if len(texts) <= FEW and sum(map(len, texts)) <= SHORT:
            for text in texts:
                counter.add(text)
                counter.close()
        else:
            counter.add_samples(texts)
        return
    for text in texts:
        counter.add(text)


def _walk(value: Any, texts: list[str]) -> int:
    """Gather every text under `value`; return tokens for what is not text. Not recursive: the depth
    of a request is the client's choice."""
    extra = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, dict):
            kind = item.get("type")
            if kind in _IMAGES:
                extra += _image(item)
            elif kind in _FILES:
                extra += TOKENS_PER_FILE
            else:
                if "role" in item and "name" in item:
                    extra += TOKENS_PER_NAME
                waiting.extend(each for name, each in item.items() if name not in _NOT_TEXT)
        elif isinstance(item, list):
            rest = item
            if item and isinstance(item[0], int):  # a prompt given as token ids, or a row of data
                rest = [each for each in item if not isinstance(each, int)]
                extra += len(item) - len(rest)
            waiting.extend(rest)
    return extra


def _image(part: dict[str, Any]) -> int:
    source = part.get("image_url")
    detail = source.get("detail") if isinstance(source, dict) else part.get("detail")
    return TOKENS_PER_SMALL_IMAGE if detail == "low" else TOKENS_PER_IMAGE
