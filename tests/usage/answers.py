"""Small answers of our own in every format, and one way to meter them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from fastgw.sse import EventFramer
from fastgw.usage.answer import read_answer
from fastgw.usage.framing import ArrayFramer, LineFramer, MessageFramer, message
from fastgw.usage.meter import Metered, StreamMeter

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgw.usage.api import Api
    from fastgw.usage.framing import Framer

PROMPT = 7
"""Tokens of the prompt where the meter has to count it."""


def sse(*events: Any) -> bytes:
    """Server-sent events; a pair is an event with its type."""
    return b"".join(
        b"event: " + each[0].encode() + b"\ndata: " + orjson.dumps(each[1]) + b"\n\n"
        if isinstance(each, tuple)
        else b"data: " + (each if isinstance(each, bytes) else orjson.dumps(each)) + b"\n\n"
        for each in events
    )


def lines(*events: Any) -> bytes:
    """JSON lines."""
    return b"".join(orjson.dumps(each) + b"\n" for each in events)


def array(*events: Any) -> bytes:
    """A JSON array, written as Google does."""
    elements = [orjson.dumps(each, option=orjson.OPT_INDENT_2) for each in events]
    return b"[" + b"\n,\r\n".join(elements) + b"\n]\n"


def aws(*events: tuple[str, Any]) -> bytes:
    """An event stream of AWS."""
    return b"".join(message(kind, orjson.dumps(data)) for kind, data in events)


FRAMERS: dict[Callable[..., bytes], Callable[[], Framer]] = {
    sse: EventFramer,
    lines: LineFramer,
    array: ArrayFramer,
    aws: MessageFramer,
}


def watch(
    api: Api, write: Callable[..., bytes], *events: Any, complete: bool = True, cut: int = 0
) -> Metered:
    """A stream through a meter, in two reads cut at every place in turn; all must agree. `cut`:
    bytes that are missing at its end."""
    body = write(*events)
    body = body[: len(body) - cut]
    found: Metered | None = None
    for at in range(len(body) + 1):
        meter = StreamMeter(api, framer=FRAMERS[write]())
        assert meter.feed(body[:at]) + meter.feed(body[at:]) + meter.rest() == body
        again = meter.finish(complete, lambda: PROMPT)
        assert found is None or again == found, at
        found = again
    assert found is not None
    return found


def answer(api: Api, value: Any) -> Metered:
    """A buffered answer through a meter."""
    return read_answer(api, orjson.dumps(value), True, lambda: PROMPT)
