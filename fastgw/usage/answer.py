"""Reads a buffered answer: what one JSON object, or what should be one, says that it cost.

The end of a large answer is searched for its usage; where it is not there, or what stands there may
be the client's own words, the answer is read: all of it, or what is left without its long strings.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from fastgw.model import NO_USAGE, Usage
from fastgw.skeleton import Skeleton, add_texts
from fastgw.sse import BOM, EventFramer
from fastgw.usage.brief import MISSING, UNREADABLE, read_answered
from fastgw.usage.estimate import BYTES_PER_TOKEN
from fastgw.usage.framing import ArrayFramer, LineFramer
from fastgw.usage.meter import UNMETERED, Meter, Metered, StreamMeter
from fastgw.usage.openai import usual
from fastgw.usage.payload import read_object
from fastgw.usage.tokens import counter_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgw.usage.api import Api
    from fastgw.usage.framing import Framer

_TEXT = re.compile(
    rb'(?s)"(?:content|text|reasoning_content|reasoning|refusal|arguments)"\s*:\s*'
    rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)'
)
"""Text of an answer that is not whole JSON: its last string may lack its end."""

PARSE_WHOLE = 64 * 1024
"""An answer up to this size is parsed whole; of a larger one the end is searched first."""

KEEP_BODY = 512 * 1024
"""Bytes of an answer that wait unread; what came before them is kept as a skeleton."""

TAIL = 8 * 1024
READ = 64 * 1024
_BLANKS = BOM + b" \t\r\n"


class JsonMeter(Meter):
    """Watches a buffered answer: keeps it, a large one without its long strings, and reads it when
    it is over."""

    __slots__ = ("_api", "_counts", "_echoes", "_head", "_pieces", "_size", "_skeleton", "_waiting")

    def __init__(self, api: Api, *, counts: bool = True, echoes: bool = False) -> None:
        """`counts`: an answer without usage is counted. `echoes`: the answer repeats JSON of the
        client's, so that the end alone cannot be believed."""
        super().__init__()
        self._api = api
        self._counts = counts
        self._echoes = echoes
        self._pieces: deque[bytes] = deque()
        self._waiting = 0  # bytes of them
        self._skeleton: Skeleton | None = None  # of what came before
        self._head = b""
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """Keep `data`; it goes to the client as it is."""
        self._pieces.append(data)
        self._size += len(data)
        self._waiting += len(data)
        if self._waiting > KEEP_BODY:
            if self._skeleton is None:
                self._skeleton = Skeleton()
                self._head = b"".join(self._pieces)[:TAIL]
            # Pieces may be large or small: as many bytes are looked at as have come, or some more.
            while self._waiting > KEEP_BODY:
                piece = self._pieces.popleft()
                self._waiting -= len(piece)
                self._skeleton.append(piece)
        return data

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """The verdict; see Meter."""
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        skeleton = self._skeleton
        if skeleton is None:
            if complete or read_object(body) is not None:
                # All of it; or all but the end of the message.
                return read_answer(self._api, body, self._counts, self._echoes, prompt)
            made = sum(map(len, _TEXT.findall(body)))
        else:
            if complete:
                found = self._of_large(skeleton, body, prompt)
                if found is not None:
                    return found
            made = self._size
        if not self._counts:
            return UNMETERED
        return Metered(Usage(prompt(), -(-made // BYTES_PER_TOKEN), source="counted"), "", False)

    def _of_large(
        self, skeleton: Skeleton, end: bytes, prompt: Callable[[], int]
    ) -> Metered | None:
        """The verdict on an answer that is not here any more; None if it cannot be read."""
        if not self._echoes:
            found = _search_tail(self._api, end, self._head, prompt)
            if found is not None:
                return found
        skeleton.append(end)
        body = b"".join(skeleton)
        if skeleton.heavy or read_object(body) is None:
            return None
        return read_answer(self._api, body, self._counts, self._echoes, prompt)


def read_answer(
    api: Api, body: bytes, counts: bool, echoes: bool, prompt: Callable[[], int]
) -> Metered:
    """The verdict on a whole buffered answer; the flags are those of JsonMeter."""
    if len(body) > PARSE_WHOLE and not echoes:
        found = _search_tail(api, body, body[:TAIL], prompt)
        if found is not None:
            return found
    if api.BRIEF:
        # What most answers are: see openai.usage_object.
        try:
            said = read_answered(body)
        except UNREADABLE:
            pass
        else:
            raw, name = said.usage, said.model
            if (
                raw is not MISSING
                and said.error is None
                and (said.choices is not MISSING or said.type is None)
                and type(name) is str
                and name.isascii()
            ):
                usage = usual(raw)
                if usage is not None:
                    # half the time of Metered()
                    return tuple.__new__(Metered, (usage, name, False, bytes(raw)))
                reported = read_object(bytes(raw))
                if reported is not None:
                    usage = api.normal_form(reported)
                    if usage is not None:
                        return Metered(usage, name, False, reported)
    message = read_object(body)
    if message is None:
        return _read_other(api, body, counts, prompt)
    reported = api.usage_object(message)
    usage = api.normal_form(reported) if reported is not None else None
    model = api.model(message)
    error = message.get("error") is not None and api.failed(message)
    if usage is not None:
        if usage.input_tokens < 0:
            usage = usage._replace(input_tokens=prompt(), source="counted")
        return Metered(usage, model, error, reported)
    if error or not counts:
        return Metered(NO_USAGE, model, error)
    counter = counter_for(model)
    add_texts(counter, api.texts(message))
    counter.add_calls(api.calls(message))
    return Metered(Usage(prompt(), counter.total(), source="counted"), model, False)


def _read_other(api: Api, body: bytes, counts: bool, prompt: Callable[[], int]) -> Metered:
    """The verdict on an answer that is no JSON object, whatever its media type says: events, a
    list, or text."""
    start = body.lstrip(_BLANKS)
    framer: Framer | None = None
    if start.startswith(b"["):
        framer = ArrayFramer()
    elif start.startswith(b"{"):
        framer = LineFramer()
    elif start.startswith((b"data:", b"event:", b":", b"id:", b"retry:")):
        framer = EventFramer()
    if framer is not None:
        meter = StreamMeter(api, counts=counts, framer=framer)
        for at in range(0, len(body), READ):
            meter.feed(body[at : at + READ])
        found = meter.finish(True, prompt)
        if found.reported or found.usage.output_tokens or not counts:
            return found
    if not counts:
        return UNMETERED
    made = -(-len(body) // BYTES_PER_TOKEN)
    return Metered(Usage(prompt(), made, source="counted"), "", False)


def _search_tail(api: Api, body: bytes, head: bytes, prompt: Callable[[], int]) -> Metered | None:
    """Usage near the end of a large answer; None if it is not found there."""
    tail = body[-TAIL:]
    reported = api.usage_at_end(tail)
    usage = api.normal_form(reported) if reported else None
    if usage is None:
        return None
    if usage.input_tokens < 0:
        usage = usage._replace(input_tokens=prompt(), source="counted")
    return Metered(usage, api.model_at(tail) or api.model_at(head), False, reported)
