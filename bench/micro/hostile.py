"""The longest stall: what one read of a hostile answer costs at most, and all of it together.

python -m bench.micro.hostile

Answers of 10 MB come in reads of 256 KiB, the largest that the loop makes. A stall is one call of
the meter: of a read, of the count that is made once a second, of the end.
"""

from __future__ import annotations

import base64
import gc
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from fastgw.sse import EventFramer
from fastgw.usage.answer import JsonMeter
from fastgw.usage.anthropic import ANTHROPIC
from fastgw.usage.bedrock import BEDROCK
from fastgw.usage.endings import ending_for
from fastgw.usage.framing import ArrayFramer, LineFramer, MessageFramer, message
from fastgw.usage.gemini import GEMINI
from fastgw.usage.meter import Meter, StreamMeter
from fastgw.usage.ollama import OLLAMA
from fastgw.usage.openai import OPENAI
from fastgw.usage.vocabulary import warm
from fastgw.usage.watched import WatchedMeter

if TYPE_CHECKING:
    from collections.abc import Callable

READ = 256 * 1024
SIZE = 10_000_000


class Case(NamedTuple):
    """An answer, what meters it, whether it is whole."""

    name: str
    body: bytes
    meter: Callable[[], Meter]
    complete: bool = True


class Stall(NamedTuple):
    """Milliseconds of CPU: of the longest call, of all of them; and what the answer cost."""

    name: str
    longest: float
    all: float
    output_tokens: int
    source: str


def texts(size: int) -> dict[str, str]:
    """Hostile texts of about `size` bytes of UTF-8."""
    generator = random.Random(7)
    raw = generator.randbytes(size * 3 // 4)
    return {
        "base64": base64.b64encode(raw).decode(),
        "unbroken Chinese": "".join(
            chr(generator.randint(0x4E00, 0x9FFF)) for _ in range(size // 3)
        ),
        "quotes and line ends": '"\n' * (size // 2),
        "one letter": "a" * size,
    }


def sse(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def chat(text: str) -> bytes:
    """A chunk of a chat completion."""
    return sse({"model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": text}}]})


USAGE = {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}
DONE = b"data: [DONE]\n\n"
END = sse({"model": "gpt-4o", "choices": [], "usage": USAGE}) + DONE


def openai() -> Meter:
    """Of a stream of chat or responses."""
    return StreamMeter(OPENAI)


def stripping() -> Meter:
    """Of one whose usage the client did not ask for."""
    return StreamMeter(OPENAI, strip=True)


def watching() -> Meter:
    """Of one that a budget may cut."""
    ending = ending_for(OPENAI, "chat")
    return WatchedMeter(OPENAI, strip=True, framer=EventFramer(), ending=ending)


def answer() -> Meter:
    """Of a buffered answer."""
    return JsonMeter(OPENAI)


def chunks(size: int) -> list[Case]:
    """Chat completions, by content of the chunk that is huge."""
    found = []
    for name, text in texts(size).items():
        event = chat("Hi") + chat(text)
        found += [
            Case(f"{name}: one event, then usage", event + END, openai),
            Case(f"{name}: one event, no usage", event + DONE, openai),
            Case(f"{name}: one event that is cut", event[:-9], openai, complete=False),
        ]
    plain = texts(size)["base64"]
    small = b"".join(chat(plain[at : at + 5]) for at in range(0, size // 33, 5))
    return [
        *found,
        Case("small events, then usage", small + END, openai),
        Case("small events, no usage", small + DONE, openai),
        Case("small events, usage taken out", small + END, stripping),
        Case("one event, then usage taken out", chat(plain) + END, stripping),
        Case("one event under a budget that cuts", chat(plain) + END, watching),
    ]


def shapes(size: int) -> list[Case]:
    """Server-sent events that are huge by something else than one text, or are none."""
    tool = {"type": "function", "name": "x" * 30, "parameters": {"description": "y" * 90}}
    whole = {
        "output": [{"type": "message", "content": [{"text": texts(size // 2)["base64"]}]}],
        "tools": [tool] * (size // 50_000),
        "usage": {"input_tokens": 10, "output_tokens": 9, "total_tokens": 19},
    }
    numbers = {"choices": [], "logprobs": [1] * (size // 2), "usage": USAGE}
    return [
        Case("response.completed", sse({"type": "response.completed", "response": whole}), openai),
        Case("one event of 5 million numbers", sse(numbers), openai),
        Case(
            "one event of 3 million objects",
            b'data: {"choices":[%b{}]}\n\n' % (b"{}," * (size // 3)),
            openai,
        ),
        Case("neither events nor JSON", b"\0\1\2\3" * (size // 4), openai),
    ]


def others(size: int) -> list[Case]:
    """Other formats and framings."""
    plain = texts(size)["base64"]
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": plain}}
    line = {"message": {"content": plain}, "done": False}
    element = {"candidates": [{"content": {"parts": [{"text": plain}]}}]}
    block = orjson.dumps({"delta": {"text": plain}})

    def gemini() -> Meter:
        return StreamMeter(GEMINI, framer=ArrayFramer())

    return [
        Case("Anthropic, one event", sse(delta), lambda: StreamMeter(ANTHROPIC)),
        Case(
            "Ollama, one line",
            orjson.dumps(line) + b"\n",
            lambda: StreamMeter(OLLAMA, framer=LineFramer()),
        ),
        Case("Gemini, an array of one element", b"[%b]" % orjson.dumps(element), gemini),
        Case("Gemini, an array of brackets", b"[{" + b"[" * size, gemini),
        Case(
            "Bedrock, one message",
            message("contentBlockDelta", block),
            lambda: StreamMeter(BEDROCK, framer=MessageFramer()),
        ),
    ]


def buffered(size: int) -> list[Case]:
    """Answers that are one JSON object."""
    plain = texts(size)["base64"]
    image = {"b64_json": plain}
    vectors = [{"embedding": [0.0123456789] * 1536}] * (size // 20_000)
    chat = {"choices": [{"message": {"content": plain}}]}
    return [
        Case(name, orjson.dumps(value)[: size if broken else None], answer, complete=not broken)
        for name, value, broken in (
            ("an image, then usage", {"data": [image], "usage": USAGE}, False),
            ("an image, usage before it", {"usage": USAGE, "data": [image]}, False),
            ("a chat without usage", chat, False),
            ("embeddings, then usage", {"data": vectors, "usage": USAGE}, False),
            ("embeddings without usage", {"data": vectors}, False),
            ("a chat that is broken off", chat, True),
        )
    ]


def cases(size: int = SIZE) -> list[Case]:
    """What is measured."""
    return [*chunks(size), *shapes(size), *others(size), *buffered(size)]


def measure(case: Case, read: int = READ) -> Stall:
    """One answer through its meter."""
    meter = case.meter()
    spent: list[float] = []

    def timed(call: Callable[..., Any], *arguments: object) -> Any:
        began = time.process_time()
        found = call(*arguments)
        spent.append(time.process_time() - began)
        return found

    so_far = meter.exact if isinstance(meter, WatchedMeter) else meter.interim
    gc.collect()
    for at in range(0, len(case.body), read):
        timed(meter.feed, case.body[at : at + read])
        timed(so_far, _prompt)
    timed(meter.rest)
    usage = timed(meter.finish, case.complete, _prompt).usage
    return Stall(case.name, max(spent) * 1e3, sum(spent) * 1e3, usage.output_tokens, usage.source)


def _prompt() -> int:
    return 7


def run(size: int = SIZE, repeats: int = 3) -> list[Stall]:
    """All cases, each the best of several."""
    return [
        min((measure(case) for _ in range(repeats)), key=lambda stall: stall.longest)
        for case in cases(size)
    ]


if __name__ == "__main__":
    warm()
    print("Hostile answers of 10 MB: ms of CPU of the longest call, of all of them; tokens\n")
    for row in run():
        print(
            f"  {row.longest:6.2f} {row.all:7.1f} "
            f"{row.output_tokens:10,} {row.source:8}  {row.name}"
        )
    print()
