"""Watches one answer pass and says what it cost.

1. The bytes are relayed first and looked at afterwards; only a stream whose extra usage event must
   be taken out goes through the meter on its way.
2. No JSON is parsed in a stream until an event shows a usage that is not null: one regex a block.
   It cannot match inside a JSON string, where its quotes would be escaped.
3. Text is not counted while it passes. Blocks wait in a list, folded into a count when it grows
   past KEEP_BYTES, and only read if the stream ends without usage.
4. What the provider reported is believed, the last value of each field; what it did not report is
   counted and marked so: never zero for text that was sent, never twice.

bench/micro/meter.py has the cost of each step.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fastgw.model import NO_USAGE, Usage
from fastgw.sse import EventFramer, payloads, split_events
from fastgw.usage.estimate import BYTES_PER_TOKEN, ByteCounter
from fastgw.usage.payload import Inflater, read_object, read_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_TAIL_USAGE = re.compile(rb'"usage"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})')
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')

_TEXT = re.compile(
    rb'"(?:content|text|reasoning_content|reasoning|refusal|arguments)"\s*:\s*"((?:[^"\\]|\\.)*)'
)
"""Text of an answer that is not whole JSON: its last string may lack its end."""

KEEP_BYTES = 32 * 1024
"""Bytes of a stream that wait unread; past it they are counted and let go."""

HELD_EVENT = 64 * 1024
"""An unfinished event larger than this is not the extra usage event: it is passed on at once."""

EVENT_FRAME = 220
"""Bytes of an event that are not text, about."""

MAX_EVENT = 16 * 1024 * 1024
"""An unfinished event larger than this is not kept: its bytes count as text."""

PARSE_WHOLE = 64 * 1024
"""A buffered answer up to this size is parsed whole; of a larger one the end is searched."""

KEEP_BODY = 4 * 1024 * 1024
TAIL = 8 * 1024


class Dialect(Protocol):
    """What the meter asks of a dialect; a module fulfils it."""

    def usage_object(self, message: dict[str, Any], /) -> dict[str, Any] | None: ...
    def normal_form(self, usage: dict[str, Any], /) -> Usage | None: ...
    def is_usage_only(self, event: dict[str, Any], /) -> bool: ...
    def texts(self, message: dict[str, Any], /) -> list[str]: ...
    def model(self, message: dict[str, Any], /) -> str: ...


class Metered(NamedTuple):
    """What the meter found: the usage, the model that answered ("" unknown), an error event."""

    usage: Usage
    model: str
    error: bool


UNMETERED = Metered(NO_USAGE, "", False)


class Meter(Protocol):
    """Watches one answer."""

    def feed(self, data: bytes) -> bytes:
        """Look at the next bytes of the body; return the bytes that may go to the client now."""

    def rest(self) -> bytes:
        """At the end: bytes still held back that belong to the client."""

    @property
    def between_events(self) -> bool:
        """Whether an event of ours may be put into the stream now."""

    def so_far(self) -> int:
        """Output tokens of what has passed, roughly and at little cost; 0 where that is unknown.
        `finish` says what is right."""

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """The verdict. `complete` tells whether the provider ended its message soundly;
        `prompt` gives the counted input tokens and is called only if they are needed."""


class StreamMeter:
    """Watches server-sent events.

    With `strip` the extra event that include_usage makes is taken out, and nothing else: an
    unfinished event is held until it is whole, since it might be that one.
    """

    __slots__ = (
        "_at_report",
        "_blocks",
        "_counter",
        "_counts",
        "_covered",
        "_dialect",
        "_first",
        "_framer",
        "_kept",
        "_last",
        "_passed",
        "_strip",
        "_usage",
    )

    def __init__(
        self,
        dialect: Dialect,
        *,
        strip: bool = False,
        counts: bool = True,
    ) -> None:
        """`counts`: a stream without usage is counted."""
        self._dialect = dialect
        self._counts = counts
        self._framer = EventFramer()
        self._strip = strip
        self._usage: dict[str, Any] = {}
        self._blocks: list[bytes] = []
        self._kept = 0
        self._counter = ByteCounter()
        self._covered = -1  # blocks before this one are covered by the last report; -1: none since
        self._at_report = 0  # tokens counted up to the last report
        self._first = b""
        self._last = b""
        self._passed = 0  # bytes of the unfinished event that the client already has

    def feed(self, data: bytes) -> bytes:
        """Look at `data`; return what may go to the client now."""
        block = self._framer.feed(data)
        if not block:
            out = self._hold(data) if self._strip else data
            if self._framer.held > MAX_EVENT:
                self._counter.add_bytes(self._framer.drop())
                self._passed = self._framer.held if self._strip else 0
            return out
        self._last = block
        if not self._first:
            self._first = block
        self._blocks.append(block)
        self._kept += len(block)
        hit = _USAGE.search(block) is not None
        stripped = self._read_usage(block) if hit else block
        if self._kept > KEEP_BYTES:
            self._fold()
        if not self._strip:
            return data
        if self._passed:
            stripped = block  # its head is out already
            stripped = stripped[self._passed :]
            self._passed = 0
        return stripped

    def _hold(self, data: bytes) -> bytes:
        """The unfinished event grows: hold it, unless it is too large to be the one to strip."""
        if self._passed:
            self._passed += len(data)
            return data
        if self._framer.held <= HELD_EVENT:
            return b""
        held = self._framer.rest()
        self._passed = len(held)
        return held

    def _read_usage(self, block: bytes) -> bytes:
        """Note the usage in `block`, which is the last of those that wait; return it without its
        usage-only events."""
        kept: list[bytes] = []
        at = reported = 0
        for start, end in _events_with_usage(block):
            for payload in payloads(block[start:end]):
                message = read_object(payload)
                if message is None:
                    continue
                usage = self._dialect.usage_object(message)
                if usage is not None:
                    self._merge(usage)
                    reported = end
                    if self._strip and self._dialect.is_usage_only(message):
                        kept.append(block[at:start])
                        at = end
        kept.append(block[at:])
        if reported:
            # What came up to a report is covered by it; what comes after may have to be counted.
            rest = block[reported:]
            self._blocks[-1:] = [block[:reported], rest] if rest else [block]
            self._covered = len(self._blocks) - bool(rest)
        return b"".join(kept)

    def _merge(self, usage: dict[str, Any]) -> None:
        for name, value in usage.items():
            if value is not None:
                self._usage[name] = value

    def _fold(self) -> None:
        """Count the text of the blocks that wait and let them go."""
        blocks = self._blocks
        if self._covered >= 0:
            self._count(blocks[: self._covered])
            self._at_report = self._counter.total()
            blocks = blocks[self._covered :]
        self._count(blocks)
        self._blocks.clear()
        self._covered = -1
        self._kept = 0

    def _count(self, blocks: list[bytes]) -> None:
        texts, add = self._dialect.texts, self._counter.add
        for message in read_objects(payloads(b"".join(blocks))):
            for text in texts(message):
                add(text)

    def rest(self) -> bytes:
        """An unfinished last event, unless it is the one to strip."""
        rest = self._framer.rest()
        if not rest or not self._strip or self._passed:
            return b""
        for payload in payloads(rest):
            message = read_object(payload)
            if message is not None and self._dialect.is_usage_only(message):
                return b""
        return rest

    @property
    def between_events(self) -> bool:
        """Whether the client has no part of an unfinished event."""
        return not self._framer.held or (self._strip and not self._passed)

    def so_far(self) -> int:
        """An event that was not counted yet is a token, and more if it is large."""
        rough = 0
        for block in self._blocks if self._counts else ():
            events = block.count(b"data:")
            rough += max(events, (len(block) - EVENT_FRAME * events) // BYTES_PER_TOKEN)
        return self._counter.total() + rough

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """The verdict; see Meter."""
        rest = self._framer.rest()
        if rest:
            self._last = rest
            self._blocks.append(rest)
            if _USAGE.search(rest) is not None:
                self._read_usage(rest)
        model, error = self._ends()
        usage = self._dialect.normal_form(self._usage) if self._usage else None
        if usage is not None and complete and usage.output_tokens:
            return Metered(usage, model, error)
        if usage is None and not self._counts:
            return Metered(NO_USAGE, model, error)
        self._fold()
        counted = self._counter.total()
        if usage is None:
            return Metered(Usage(prompt(), counted, source="counted"), model, error)
        since = counted - self._at_report if usage.output_tokens or complete else counted
        if since:
            # Cut after an interim usage: what came since is counted.
            usage = Usage(
                usage.input_tokens,
                usage.output_tokens + since,
                usage.cached_input_tokens,
                usage.cache_write_tokens,
                usage.reasoning_tokens,
                source="counted",
            )
        return Metered(usage, model, error)

    def _ends(self) -> tuple[str, bool]:
        """The model, from the first event; whether the last events hold an error."""
        model = ""
        for payload in payloads(self._first or self._last):
            message = read_object(payload)
            if message is not None:
                model = self._dialect.model(message)
                break
        error = False
        if b"error" in self._last or b"failed" in self._last:
            for payload in payloads(self._last):
                message = read_object(payload)
                if message is not None and (
                    isinstance(message.get("error"), dict | str)
                    or message.get("type") in ("error", "response.failed")
                    or message.get("object") == "error"
                ):
                    error = True
        return model, error


def _events_with_usage(block: bytes) -> Iterator[tuple[int, int]]:
    """Where the events stand that hold a usage: start and end of each in a block of events."""
    if b"\r" in block:
        end = 0
        for event in split_events(block):
            start, end = end, end + len(event)
            if _USAGE.search(event) is not None:
                yield start, end
        return
    end = 0
    while (match := _USAGE.search(block, end)) is not None:
        blank = block.rfind(b"\n\n", end, match.start())
        start = end if blank < 0 else blank + 2
        blank = block.find(b"\n\n", match.end())
        end = len(block) if blank < 0 else blank + 2
        yield start, end


class JsonMeter:
    """Watches a buffered answer: keeps it (a large one: its ends) and reads it when it is over."""

    __slots__ = ("_counts", "_dialect", "_echoes", "_head", "_pieces", "_size")

    def __init__(
        self,
        dialect: Dialect,
        *,
        counts: bool = True,
        echoes: bool = False,
    ) -> None:
        """`counts`: an answer without usage is counted. `echoes`: the answer repeats JSON of the
        client's, so that the end alone cannot be believed."""
        self._dialect = dialect
        self._counts = counts
        self._echoes = echoes
        self._pieces: list[bytes] = []
        self._head = b""
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """Keep `data`; it goes to the client as it is."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > KEEP_BODY:
            body = b"".join(self._pieces)
            if not self._head:
                self._head = body[:TAIL]
            if len(body) > 2 * TAIL and self._head:
                self._pieces = [body[-TAIL:]]
        return data

    def rest(self) -> bytes:
        """Nothing is ever held back."""
        return b""

    @property
    def between_events(self) -> bool:
        """There are no events."""
        return False

    def so_far(self) -> int:
        """Unknown until it is whole."""
        return 0

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """The verdict; see Meter."""
        body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if not self._head and (complete or read_object(body) is not None):
            # All of it; or all but the end of the message.
            return read_answer(self._dialect, body, self._counts, self._echoes, prompt)
        if complete and not self._echoes:
            found = _search_tail(self._dialect, body, self._head)
            if found is not None:
                return found
        if not self._counts:
            return UNMETERED
        made = sum(map(len, _TEXT.findall(body))) if not self._head else self._size
        return Metered(Usage(prompt(), -(-made // BYTES_PER_TOKEN), source="counted"), "", False)


def read_answer(
    dialect: Dialect, body: bytes, counts: bool, echoes: bool, prompt: Callable[[], int]
) -> Metered:
    """The verdict on a whole buffered answer; the flags are those of JsonMeter."""
    if len(body) > PARSE_WHOLE and not echoes:
        found = _search_tail(dialect, body, body[:TAIL])
        if found is not None:
            return found
    message = read_object(body)
    if message is None:
        if not counts:
            return UNMETERED
        made = -(-len(body) // BYTES_PER_TOKEN)
        return Metered(Usage(prompt(), made, source="counted"), "", False)
    usage = dialect.usage_object(message)
    normal = dialect.normal_form(usage) if usage is not None else None
    model = dialect.model(message)
    error = isinstance(message.get("error"), dict)
    if normal is not None:
        return Metered(normal, model, error)
    if error or not counts:
        return Metered(NO_USAGE, model, error)
    counter = ByteCounter()
    for text in dialect.texts(message):
        counter.add(text)
    return Metered(Usage(prompt(), counter.total(), source="counted"), model, False)


def _search_tail(dialect: Dialect, body: bytes, head: bytes) -> Metered | None:
    """Usage near the end of a large answer; None if it is not found there."""
    tail = body[-TAIL:]
    found = _TAIL_USAGE.findall(tail)
    usage = read_object(found[-1]) if found else None
    normal = dialect.normal_form(usage) if usage is not None else None
    if normal is None:
        return None
    model = _MODEL.search(tail) or _MODEL.search(head)
    return Metered(normal, model[1].decode("utf-8", "replace") if model else "", False)


class InflatingMeter:
    """Watches an answer compressed by gzip or deflate: it passes as it came, and `inner` is shown
    what it holds, a slice at a time.

    Where the bytes cannot be read, or not to their end, and show no usage, they cost what text of
    their length would: at least what OpaqueMeter takes.
    """

    __slots__ = ("_inflater", "_inner", "_size")

    def __init__(self, inner: Meter) -> None:
        self._inner = inner
        self._inflater = Inflater()
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """Show `data` to the inner meter; it goes to the client as it is."""
        self._size += len(data)
        for plain in self._inflater.feed(data):
            self._inner.feed(plain)
        return data

    def rest(self) -> bytes:
        """Nothing is ever held back."""
        return b""

    @property
    def between_events(self) -> bool:
        """An event of ours would not be compressed."""
        return False

    def so_far(self) -> int:
        """What is known inside."""
        return self._inner.so_far()

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """The verdict; see Meter."""
        failed = self._inflater.failed
        found = self._inner.finish(complete and not failed, prompt)
        made = -(-self._size // BYTES_PER_TOKEN)
        if not failed or found.usage.source != "counted" or found.usage.output_tokens >= made:
            return found
        return found._replace(usage=found.usage._replace(output_tokens=made))


class NoMeter:
    """Watches nothing: an error answer, or a route that is not metered."""

    __slots__ = ()

    def so_far(self) -> int:
        """Unknown."""
        return 0

    def feed(self, data: bytes) -> bytes:
        """Everything goes to the client as it is."""
        return data

    def rest(self) -> bytes:
        """Nothing is ever held back."""
        return b""

    @property
    def between_events(self) -> bool:
        """There are no events."""
        return False

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """Nothing to pay."""
        return UNMETERED


class OpaqueMeter(NoMeter):
    """Watches an answer in a coding that cannot be read: four of its bytes count as a token."""

    __slots__ = ("_size",)

    def __init__(self) -> None:
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """Everything goes to the client as it is."""
        self._size += len(data)
        return data

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """The prompt and the bytes, counted."""
        made = -(-self._size // BYTES_PER_TOKEN)
        return Metered(Usage(prompt(), made, source="counted"), "", False)


NO_METER = NoMeter()
