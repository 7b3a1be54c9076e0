"""Reads a buffered answer: what one JSON object, or what should be one, says that it cost.

Of a large answer the members at its top are read, where the report stands: what stands deeper may
be the client's own words, or the model's. Where they have no report, the answer is read: all of it,
or what is left without its long strings. Of one that is too much to read there are its two ends.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from fastgw.model import NO_USAGE, Usage
from fastgw.skeleton import Skeleton, add_texts, text_size
from fastgw.sse import BOM, EventFramer
from fastgw.usage.brief import MISSING, UNREADABLE, read_answered, read_members
from fastgw.usage.edges import EDGE, first_members, is_object, last_members
from fastgw.usage.estimate import BYTES_PER_TOKEN
from fastgw.usage.framing import ArrayFramer, LineFramer, begins_events
from fastgw.usage.meter import UNMETERED, Meter, Metered, StreamMeter
from fastgw.usage.openai import usual
from fastgw.usage.payload import read_object
from fastgw.usage.tokens import counter_for

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from fastgw.usage.api import Api
    from fastgw.usage.framing import Framer

_TEXT = re.compile(
    rb'(?s)"(?:content|text|reasoning_content|reasoning|refusal|arguments|thinking|response|'
    rb'generated_text|generation|outputText|completion)"\s*:\s*'
    rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)'
)
"""Text of an answer that is not whole JSON: its last string may lack its end."""

PARSE_WHOLE = 64 * 1024
"""An answer up to this size is parsed whole; of a larger one the members at its top come first."""

KEEP_BODY = 512 * 1024
"""Bytes of an answer that wait unread; what came before them is kept as a skeleton."""

READ = 64 * 1024
_BLANKS = BOM + b" \t\r\n"


class JsonMeter(Meter):
    """Watches a buffered answer: keeps it, a large one without its long strings, and reads it when
    it is over."""

    __slots__ = (
        "_api",
        "_counts",
        "_echoes",
        "_head",
        "_pieces",
        "_size",
        "_skeleton",
        "_waiting",
        "_writes",
    )

    def __init__(
        self, api: Api, *, counts: bool = True, echoes: bool = False, writes: bool = True
    ) -> None:
        """`counts`: an answer without usage is counted. `echoes`: the answer repeats JSON of the
        client's, so that the end of what is no object cannot be believed. `writes`: the model
        writes text; where it does not, an answer that cannot be read has none."""
        super().__init__()
        self._api = api
        self._counts = counts
        self._echoes = echoes
        self._writes = writes
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
                self._head = b"".join(self._pieces)[:EDGE]
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
                return read_answer(self._api, body, self._counts, prompt)
            made = _text_of(body)
        else:
            skeleton.append(body)
            body = b"".join(skeleton)
            if not skeleton.heavy and (
                read_members(body) is not None or read_object(body) is not None
            ):
                return read_answer(self._api, body, self._counts, prompt)
            found = self._of_ends(skeleton.tail if complete else b"", prompt)
            if found is not None:
                return found
            made = self._size
            if is_object(self._head):
                made = _text_of(body) or skeleton.text
        if not self._counts:
            return UNMETERED
        made = -(-made // BYTES_PER_TOKEN) if self._writes else 0
        return Metered(Usage(prompt(), made, source="counted"), "", False)

    def _of_ends(self, end: bytes, prompt: Callable[[], int]) -> Metered | None:
        """The verdict on an answer by its first bytes and its last, if it is whole; None if they
        have no report."""
        api, head = self._api, self._head
        if is_object(head):
            return _reported(api, first_members(head) | last_members(end), prompt)
        reported = api.usage_at_end(end) if not self._echoes else None  # of events, or of a list
        usage = api.normal_form(reported) if reported else None
        if usage is None:
            return None
        if usage.input_tokens < 0:
            usage = usage._replace(input_tokens=prompt(), source="counted")
        return Metered(usage, api.model_at(head), False, reported)


def _text_of(body: bytes) -> int:
    """Bytes of the text in an answer that is not whole."""
    return sum(map(text_size, _TEXT.findall(body)))


class EventMeter(StreamMeter):
    """Watches a stream; and reads JSON, or whatever only its media type calls server-sent events,
    as a buffered answer."""

    __slots__ = ("_unread",)

    def __init__(
        self,
        api: Api,
        *,
        strip: bool = False,
        counts: bool = True,
        framer: Framer | None = None,
    ) -> None:
        super().__init__(api, strip=strip, counts=counts, framer=framer)
        self._unread = 0  # bytes that were let go, and were no events

    def _count(self, blocks: list[bytes]) -> None:
        super()._count(blocks)
        if blocks and not begins_events(blocks[0]) and not self._counting().total():
            self._unread += sum(map(len, blocks))

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """The verdict; see Meter."""
        found = None if self._usage else self._of_no_events(complete, prompt)
        return found if found is not None else super().finish(complete, prompt)

    def _of_no_events(self, complete: bool, prompt: Callable[[], int]) -> Metered | None:
        """The verdict on what holds no event; None where there is one, or nothing."""
        rest = self._framer.rest()
        start = self._blocks[0] if self._blocks else rest
        if not isinstance(self._framer, EventFramer) or begins_events(start):
            return None
        body = b"".join((*self._blocks, rest))
        if next(self._framer.payloads(body), None) is not None:
            return None
        if self._counter is None:
            meter = JsonMeter(self._api, counts=self._counts)
            meter.feed(body)
            return meter.finish(complete, prompt)
        if not self._counts or self._counter.total():
            return None
        made = -(-(self._unread + len(body)) // BYTES_PER_TOKEN)
        return Metered(Usage(prompt(), made, source="counted"), "", False)


def read_answer(api: Api, body: bytes, counts: bool, prompt: Callable[[], int]) -> Metered:
    """The verdict on a whole buffered answer; `counts` is that of JsonMeter."""
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
    if len(body) > PARSE_WHOLE:
        top = read_members(body)
        found = _reported(api, top, prompt) if top is not None else None
        if found is not None:
            return found
    message = read_object(body)
    if message is None:
        return _read_other(api, body, counts, prompt)
    found = _reported(api, message, prompt)
    if found is not None:
        return found
    model = api.model(message)
    error = message.get("error") is not None and api.failed(message)
    if error or not counts:
        return Metered(NO_USAGE, model, error)
    counter = counter_for(model)
    add_texts(counter, api.texts(message))
    counter.add_calls(api.calls(message))
    return Metered(Usage(prompt(), counter.total(), source="counted"), model, False)


def _reported(api: Api, message: dict[str, Any], prompt: Callable[[], int]) -> Metered | None:
    """The verdict on an answer that reports its usage; None on one that does not."""
    reported = api.usage_object(message)
    usage = api.normal_form(reported) if reported is not None else None
    if usage is None:
        return None
    if usage.input_tokens < 0:
        usage = usage._replace(input_tokens=prompt(), source="counted")
    error = message.get("error") is not None and api.failed(message)
    return Metered(usage, api.model(message), error, reported)


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
