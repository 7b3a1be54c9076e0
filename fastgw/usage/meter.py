"""Watches one answer pass and says what it cost.

1. Bytes are looked at on their way, so that a report is charged before the client has it; only an
   extra usage event is taken out of them.
2. No JSON is parsed in a stream until an event shows a usage that is not null. What comes as whole
   events is searched once, for a mark that stands in every usage; what has it is looked at.
3. Text is not counted while it passes. Blocks wait in a list, folded into a count a part at a time
   when it grows past KEEP_BYTES or KEEP_LONG, and only read if the stream ends without usage.
4. An event of any size is bounded work for each read: see skeleton.
5. What the provider reported is believed, the last value of each field; what it did not report is
   counted and marked so: never zero for text that was sent, never twice.

bench/micro/meter.py has the cost of each step.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from fastgw.model import NO_USAGE, Usage
from fastgw.skeleton import add_texts
from fastgw.sse import EventFramer
from fastgw.usage.estimate import BYTES_PER_TOKEN
from fastgw.usage.payload import Inflater, read_object, read_objects
from fastgw.usage.report import Report
from fastgw.usage.shape import Reader
from fastgw.usage.tokens import counter_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgw.usage.api import Api
    from fastgw.usage.estimate import Counter
    from fastgw.usage.framing import Framer

KEEP_BYTES = 64 * 1024
"""Bytes of a stream that wait unread; past it they are counted and let go, unless there is room."""

KEEP_LONG = 256 * 1024
"""Bytes of a long stream that wait unread where there is room: counting them takes 2 ms."""

KEEP_ALL = 64 * 1024 * 1024
"""Room for what all long streams of this process keep beyond KEEP_BYTES."""

HELD_EVENT = 64 * 1024
"""An unfinished event larger than this is not the extra usage event: it is passed on at once."""

EVENT_FRAME = 220
"""Bytes of an event that are not text, about."""

LAST_EVENTS = 2048
"""Bytes at the end of a stream in which an error is looked for, or an event more; and bytes after
a report that are read for text, before all is counted."""

FIRST_EVENTS = 8
"""Events in which the name of the model is looked for."""

_NEVER = secrets.token_bytes(16)
"""The end of no read: nobody knows it."""

_DONE = b"[DONE]\n\n"
_NOTHING = (b"", b"data: [DONE]", b"data:[DONE]")
"""What may follow a report and adds nothing to it."""


class Metered(NamedTuple):
    """What the meter found: the usage, the model that answered ("" unknown), an error event, and
    the usage as the provider reported it, its bytes or what they say: of several reports the last
    value of each member."""

    usage: Usage
    model: str
    error: bool
    reported: dict[str, Any] | bytes | None = None


UNMETERED: Final = Metered(NO_USAGE, "", False)


class Meter:
    """Watches one answer."""

    __slots__ = ("told",)

    def __init__(self) -> None:
        self.told = 0
        """Rises with each report of the provider, and at an end that has none."""

    def feed(self, data: bytes) -> bytes:
        """Look at the next bytes of the body; return the bytes that may go to the client now."""
        raise NotImplementedError

    def rest(self) -> bytes:
        """At the end: bytes still held back that belong to the client."""
        return b""

    @property
    def between_events(self) -> bool:
        """Whether an event of ours may be put into the stream now."""
        return False

    def interim(self, prompt: Callable[[], int]) -> Usage:
        """What the answer has cost so far, as far as that is known at little cost; `finish` says
        what is right."""
        return NO_USAGE

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """The verdict. `complete` tells whether the provider ended its message soundly;
        `prompt` gives the counted input tokens and is called only if they are needed."""
        raise NotImplementedError


class _Lease:
    """What one long stream keeps beyond KEEP_BYTES. Who has it gives it back by going."""

    __slots__ = ("size",)

    taken: ClassVar[int] = 0

    def __init__(self) -> None:
        self.size = 0

    def more(self) -> bool:
        """Take KEEP_BYTES more, if there is room."""
        if self.size + 2 * KEEP_BYTES > KEEP_LONG or _Lease.taken + KEEP_BYTES > KEEP_ALL:
            return False
        self.size += KEEP_BYTES
        _Lease.taken += KEEP_BYTES
        return True

    def __del__(self) -> None:
        _Lease.taken -= self.size


class StreamMeter(Meter):
    """Watches server-sent events, or what another framer cuts into events.

    With `strip` the extra event that include_usage makes is taken out, and nothing else: an
    unfinished event is held until it is whole, since it might be that one.
    """

    __slots__ = (
        "_answered",
        "_api",
        "_at_report",
        "_blocks",
        "_counter",
        "_counts",
        "_covered",
        "_end",
        "_estimate",
        "_estimated",
        "_framer",
        "_held",
        "_last",
        "_lease",
        "_mark",
        "_passed",
        "_reader",
        "_report",
        "_room",
        "_search",
        "_strip",
        "_usage",
    )

    def __init__(
        self,
        api: Api,
        *,
        strip: bool = False,
        counts: bool = True,
        framer: Framer | None = None,
    ) -> None:
        """`counts`: a stream without usage is counted. `framer`: not of server-sent events."""
        super().__init__()
        self._api = api
        self._counts = counts
        self._framer = framer if framer is not None else EventFramer()
        self._search = api.USAGE.search
        self._mark = api.MARK
        ends = self._framer.ENDS
        self._end = ends[0] if ends else _NEVER
        self._strip = strip
        self._report = Report(api)
        self._usage = self._report.said
        self._blocks: list[bytes] = []
        self._room = KEEP_BYTES  # for more of them
        self._lease: _Lease | None = None  # of more room
        self._estimate = 0  # tokens, about, of as many blocks as `_estimated` says
        self._estimated = 0
        self._held = False  # an event is unfinished
        self._counter: Counter | None = None  # made for the model that answers
        self._reader: Reader | None = None
        self._covered = -1  # blocks before this one are covered by the last report; -1: none since
        self._at_report = 0  # tokens counted up to the last report
        self._answered: str | None = None  # the model, once somebody wanted to know
        self._last = b""
        self._passed = False  # the client has what came of the unfinished event

    def feed(self, data: bytes) -> bytes:
        """Look at `data`; return what may go to the client now."""
        if data.endswith(self._end) and not self._held and data.rfind(self._mark) < 0:
            # Whole events of JSON and no report, as nearly always: 0.35 us instead of 0.75.
            # `rfind` takes half the time of `in`, `find` or an expression here.
            self._blocks.append(data)
            self._last = data
            self._room -= len(data)
            if self._room < 0:
                self._make_room()
            return data
        return self._look(data)

    def _look(self, data: bytes) -> bytes:
        """As `feed`, whatever `data` is."""
        framer = self._framer
        if framer.held > HELD_EVENT:
            end = framer.event_end(data)
            if 0 < end < len(data):  # of a large event: what follows is looked at by itself
                return self._look(data[:end]) + self.feed(data[end:])
        block = framer.feed(data)
        self._held = framer.held > 0
        if framer.lost:
            self._lose()
        if not block:
            if self._held:
                return self._hold(data) if self._strip else data
            self._passed = False
            return data
        self._last = stripped = block
        self._blocks.append(block)
        self._room -= len(block)
        reports = self._reports(block)
        if reports:
            stripped = self._read_usage(block, reports)
        elif block.endswith(_DONE) and self._counts:
            if not self._usage:
                self._fold()
            self.told += 1
        for end_ in framer.ENDS:
            if block.endswith(end_):
                self._end = end_  # as this stream ends its events
        if self._room < 0:
            self._make_room()
        if self._passed:
            self._passed = False  # its head is out already: all of it goes
            return data
        if not self._strip:
            return data
        if framer.held > HELD_EVENT:  # the next event is large already: no report
            self._passed = True
            return stripped + framer.rest()
        return stripped

    def _hold(self, data: bytes) -> bytes:
        """The unfinished event grows: hold it, unless it is too large to be the one to strip."""
        if self._passed:
            return data
        if self._framer.held <= HELD_EVENT:
            return b""
        self._passed = True
        return self._framer.rest()

    def _lose(self) -> None:
        """An event was too large to be read: its bytes are text, its end may be a report."""
        framer = self._framer
        counter = self._counting()
        self._fold()
        counter.add_bytes(framer.lost)
        framer.lost = 0
        usage = self._api.usage_at_end(framer.tail)
        if usage and self._report.add(usage):
            self._at_report = counter.total()
            self.told += 1

    def _reports(self, block: bytes) -> list[tuple[int, int]]:
        """Where the events of a block stand that may hold a usage."""
        if block.rfind(self._mark) < 0:
            return []
        return self._framer.matches(block, self._api.USAGE, self._mark)

    def _read_usage(self, block: bytes, events: list[tuple[int, int]]) -> bytes:
        """Note the usage in those events of `block`, which is the last of the blocks that wait;
        return it without its usage-only events."""
        kept: list[bytes] = []
        at = reported = 0
        for start, end in events:
            for payload in self._framer.payloads(block[start:end]):
                message = read_object(payload)
                if message is None:
                    continue
                usage = self._api.usage_object(message)
                if usage is not None:
                    if self._report.add(usage):
                        reported = end
                    if self._strip and self._api.is_usage_only(message):
                        # LF may end the event before, whose CR came in another read.
                        first = start + block.startswith(b"\n", start)
                        kept.append(block[at:first])
                        at = end
        kept.append(block[at:])
        if reported:
            self.told += 1
            # What came up to a report is covered by it; what comes after may have to be counted.
            rest = block[reported:]
            self._blocks[-1:] = [block[:reported], rest] if rest else [block]
            self._covered = len(self._blocks) - bool(rest)
        return b"".join(kept)

    def _make_room(self) -> None:
        """More waits than may: allow more, or count what came first."""
        if self._lease is None:
            self._lease = _Lease()
        if self._lease.more():
            self._room += KEEP_BYTES
        else:
            self._fold(KEEP_BYTES)

    @property
    def _waiting(self) -> int:
        """Bytes of the blocks that wait."""
        return KEEP_BYTES + (self._lease.size if self._lease is not None else 0) - self._room

    def _fold(self, most: int | None = None) -> None:
        """Count the text of the blocks that wait and let them go: of all, or of the first with
        `most` bytes, or a little more."""
        blocks, covered = self._blocks, self._covered
        number = len(blocks)
        freed = self._waiting
        if most is not None and most < freed:
            number = freed = 0
            while freed < most:
                freed += len(blocks[number])
                number += 1
        if not number:
            return
        counter = self._counting()
        if 0 <= covered <= number:
            self._count(blocks[:covered])
            self._at_report = counter.total()
            self._count(blocks[covered:number])
            self._covered = -1
        else:
            self._count(blocks[:number])
            self._covered = max(-1, covered - number)
        del blocks[:number]
        self._room += freed
        self._estimate = self._estimated = 0

    def _count(self, blocks: list[bytes]) -> None:
        if not blocks:
            return
        counter = self._counting()
        if self._reader is None:
            self._reader = Reader(self._api, self._framer)
        reader = self._reader
        add_texts(counter, reader.texts(b"".join(blocks)))
        if reader.calls:
            counter.add_calls(reader.calls)
            reader.calls = 0

    def _counting(self) -> Counter:
        if self._counter is None:
            self._counter = counter_for(self._model())
        return self._counter

    def rest(self) -> bytes:
        """An unfinished last event, unless it is the one to strip."""
        rest = self._framer.rest()
        if not rest or not self._strip or self._passed:
            return b""
        for payload in self._framer.payloads(rest):
            message = read_object(payload)
            if message is not None and self._api.is_usage_only(message):
                return b""
        return rest

    @property
    def between_events(self) -> bool:
        """Whether the client has no part of an unfinished event."""
        return not self._framer.held or (self._strip and not self._passed)

    def interim(self, prompt: Callable[[], int]) -> Usage:
        """See Meter. An event that was not counted yet is a token, and more if it is large."""
        usage = self._api.normal_form(self._usage) if self._usage else None
        if usage is not None and usage.input_tokens < 0:
            usage = usage._replace(input_tokens=prompt())
        if (usage is not None and self._ends_there()) or not self._counts:
            return usage or NO_USAGE
        made = self._counter.total() if self._counter is not None else 0
        for block in self._blocks[self._estimated :]:
            events = self._framer.count(block)
            self._estimate += max(events, (len(block) - EVENT_FRAME * events) // BYTES_PER_TOKEN)
        self._estimated = len(self._blocks)
        made += self._estimate
        if usage is not None:
            return usage._replace(output_tokens=max(made, usage.output_tokens))
        return Usage(prompt(), made, source="counted") if made else NO_USAGE

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """The verdict; see Meter."""
        rest = self._framer.rest()
        held = self._framer.held
        if held > HELD_EVENT and self._counts:
            if not any(read_objects(self._framer.payloads(rest))):
                self._counting().add_bytes(held)
        if rest:
            self._last = rest
            self._blocks.append(rest)
            reports = self._reports(rest)
            if reports:
                self._read_usage(rest, reports)
        model, error = self._model(), self._failed()
        reported = self._usage or None
        usage = self._api.normal_form(self._usage) if reported else None
        if usage is None and not self._counts:
            return Metered(NO_USAGE, model, error, reported)
        if usage is None or not (
            complete and usage.output_tokens and (self._ends_there() or not self._counts)
        ):
            usage = self._counted(usage, complete, prompt)
        elif usage.input_tokens < 0:
            usage = usage._replace(input_tokens=prompt(), source="counted")
        return Metered(usage, model, error, reported)

    def _ends_there(self) -> bool:
        """Whether the last report ended the answer: no text follows it, as far as one may look."""
        if self._covered < 0:
            return False
        rest = [block for block in self._blocks[self._covered :] if block.strip() not in _NOTHING]
        if not rest:
            return True
        if sum(map(len, rest)) > LAST_EVENTS:
            return False
        reader = Reader(self._api, self._framer)  # as of Anthropic, whose last event is another
        return not any(reader.texts(b"".join(rest))) and not reader.calls

    def _counted(self, usage: Usage | None, complete: bool, prompt: Callable[[], int]) -> Usage:
        """The usage that was reported, and what came since then, counted."""
        self._fold()
        counted = self._counting().total()
        if usage is None:
            return Usage(prompt(), counted, source="counted")
        since = counted - self._at_report if usage.output_tokens or complete else counted
        if usage.input_tokens < 0:
            usage = usage._replace(input_tokens=prompt(), source="counted")
        if not since:
            return usage
        return usage._replace(output_tokens=usage.output_tokens + since, source="counted")

    def _failed(self) -> bool:
        """Whether the last events hold an error."""
        last = self._last
        if len(last) > LAST_EVENTS:
            before = last.rfind(b"\n\n", 0, len(last) - LAST_EVENTS)
            if before >= 0:
                last = last[before + 2 :]
        if last.find(b"error") < 0 and last.find(b"failed") < 0 and last.find(b"xception") < 0:
            return False
        messages = map(read_object, self._framer.payloads(last))
        return any(self._api.failed(message) for message in messages if message is not None)

    def _model(self) -> str:
        """The model that the first event names; Azure's first one names none."""
        if self._answered is None:
            seen = 0
            for block in self._blocks:
                first = block.find(b"\n\n") + 2  # of many events one is enough, mostly
                parts = (block[:first], block[first:]) if first > 1 else (block,)
                for part in parts:
                    for payload in self._framer.payloads(part):
                        message = read_object(payload)
                        if message is None:
                            continue
                        name = self._api.model(message)
                        seen += 1
                        if name or seen == FIRST_EVENTS:
                            self._answered = name
                            return name
        return self._answered or ""


class InflatingMeter(Meter):
    """Watches an answer compressed by gzip or deflate: it passes as it came, and `inner` is shown
    what it holds, a slice at a time.

    Where the bytes cannot be read, or not to their end, and show no usage, they cost what text of
    their length would: at least what OpaqueMeter takes.
    """

    __slots__ = ("_inflater", "_inner", "_size")

    def __init__(self, inner: Meter) -> None:
        super().__init__()
        self._inner = inner
        self._inflater = Inflater()
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """Show `data` to the inner meter; it goes to the client as it is."""
        self._size += len(data)
        for plain in self._inflater.feed(data):
            self._inner.feed(plain)
        self.told = self._inner.told
        return data

    def interim(self, prompt: Callable[[], int]) -> Usage:
        """What is known inside."""
        return self._inner.interim(prompt)

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """The verdict; see Meter."""
        failed = self._inflater.failed
        found = self._inner.finish(complete and not failed, prompt)
        made = -(-self._size // BYTES_PER_TOKEN)
        if not failed or found.usage.source != "counted" or found.usage.output_tokens >= made:
            return found
        return found._replace(usage=found.usage._replace(output_tokens=made))


class NoMeter(Meter):
    """Watches nothing: an error answer, or a route that is not metered."""

    __slots__ = ()

    def feed(self, data: bytes) -> bytes:
        """Everything goes to the client as it is."""
        return data

    def finish(self, complete: bool, prompt: Callable[[], int]) -> Metered:
        """Nothing to pay."""
        return UNMETERED


class OpaqueMeter(NoMeter):
    """Watches an answer in a coding that cannot be read: four of its bytes count as a token."""

    __slots__ = ("_size",)

    def __init__(self) -> None:
        super().__init__()
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
