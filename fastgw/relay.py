"""Passes one answer to the client: head rebuilt, body as it comes, the meter looking on.

A chunk that arrives leaves in the same turn of the loop, after the meter has seen it. One write a
message or a chunk: head and first bytes are joined, the last chunk and its end are joined.

The client's framing is ours: a body of known size keeps it, any other is chunked for HTTP/1.1 and
ended by the close of the connection for HTTP/1.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fastgw.errors import render, render_event
from fastgw.http1.body import LAST_CHUNK, chunk
from fastgw.http1.serialize import status_line
from fastgw.sse import EventFramer
from fastgw.usage.answer import EventMeter, JsonMeter
from fastgw.usage.endings import ending_for
from fastgw.usage.framing import ArrayFramer, Framer, LineFramer, MessageFramer, exception
from fastgw.usage.meter import (
    NO_METER,
    InflatingMeter,
    Meter,
    OpaqueMeter,
)
from fastgw.usage.payload import read_object, rewritten
from fastgw.usage.watched import WatchedMeter

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgw.errors import Refusal
    from fastgw.http1.request import RequestHead
    from fastgw.http1.response import ResponseHead
    from fastgw.plan import Plan

COMPRESSED = frozenset({b"gzip", b"x-gzip", b"deflate"})
_NO_STORE = b"x-accel-buffering: no\r\n"
MAX_EDITED = 4 * 1024 * 1024

EVENT_STREAM = b"text/event-stream"
STREAMS: Final[dict[bytes, Callable[[], Framer]]] = {
    EVENT_STREAM: EventFramer,
    b"application/x-ndjson": LineFramer,
    b"application/ndjson": LineFramer,
    b"application/jsonl": LineFramer,
    b"application/x-jsonlines": LineFramer,
    b"application/stream+json": LineFramer,
    b"application/vnd.amazon.eventstream": MessageFramer,
}
"""Media types of streams, and what cuts them into events."""


def make_meter(plan: Plan, head: ResponseHead, strip: bool) -> Meter:
    """The meter for this answer. Errors of the provider cost nothing."""
    if not plan.reads or head.status >= 400:
        return NO_METER
    compressed = head.encoding in COMPRESSED
    if head.encoding and not compressed:
        return OpaqueMeter() if plan.counts else NO_METER
    meter: Meter
    make = STREAMS.get(head.media)
    if make is None and plan.streams and head.media == b"application/json":
        make = ArrayFramer  # Gemini without `alt=sse`
    if make is not None:
        strip = strip and not compressed and make is EventFramer
        if plan.cuts and not compressed and make is not MessageFramer:
            ending = ending_for(plan.api, plan.operation)
            return WatchedMeter(plan.api, strip=strip, framer=make(), ending=ending)
        meter = EventMeter(plan.api, strip=strip, counts=plan.counts, framer=make())
    else:
        writes = plan.operation in plan.api.LIMITS
        meter = JsonMeter(plan.api, counts=plan.counts, echoes=plan.echoes, writes=writes)
    return InflatingMeter(meter) if compressed else meter


def whole_answer(
    request: RequestHead, head: ResponseHead, extra: bytes, body: bytes, closes: bool
) -> bytes:
    """An answer that is here in full, as one message of known size."""
    status = head.status
    if request.minor and not closes and status == 200 and request.method != b"HEAD":
        return b"HTTP/1.1 200 OK\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
            head.fields,
            extra,
            len(body),
            body,
        )
    if request.method == b"HEAD" or head.status in (204, 304):
        framing = b"connection: close\r\n" if closes else b""
    elif closes:
        framing = b"content-length: %d\r\nconnection: close\r\n" % len(body)
    elif request.minor:
        framing = b"content-length: %d\r\n" % len(body)
    else:
        framing = b"content-length: %d\r\nconnection: keep-alive\r\n" % len(body)
    return b"%b%b%b%b\r\n%b" % (status_line(head.status), head.fields, extra, framing, body)


def only_models(allows: Callable[[str], bool], body: bytes) -> bytes | None:
    """A list of models (`{"data": [{"id": …}]}`, Gemini: `{"models": [{"name": "models/…"}]}`)
    without those that may not be used; None where it cannot be read. A JSON object without a list
    is passed on as it is."""
    message = read_object(body)
    if message is None:
        return None
    found = False
    for place in ("data", "models"):  # llama.cpp has both
        listed = message.get(place)
        if isinstance(listed, list):
            found = True
            message[place] = [
                each
                for each in listed
                if not isinstance(each, dict)
                or not isinstance(name := each.get("id") or each.get("name"), str)
                or allows(name.removeprefix("models/"))
            ]
            if "first_id" in message:  # Anthropic's, of this page
                names = [each.get("id") for each in message[place] if isinstance(each, dict)]
                message["first_id"] = names[0] if names else None
                message["last_id"] = names[-1] if names else None
    return rewritten(message) if found else body


class Relay:
    """One answer on its way. `sent` counts the body bytes given to the client; `begun` says that it
    has any of it: where it has none at the end, the answer cannot be shown. `passes`: a chunk of
    the provider's may go to `write` as it is, once it is added to `sent`."""

    __slots__ = (
        "_chunked",
        "_head_only",
        "_media",
        "_sized",
        "begun",
        "closes",
        "event_stream",
        "passes",
        "sent",
        "streams",
        "strips",
        "write",
    )

    def __init__(
        self,
        write: Callable[[bytes], object],
        request: RequestHead,
        head: ResponseHead,
        *,
        strips: bool,
        closing: bool,
        cuts: bool = False,
    ) -> None:
        """`strips`: events may be taken out of the body. `cuts`: it may get another end. `closing`:
        the connection ends after this answer."""
        self.write = write
        self.begun = True
        self.event_stream = head.media == EVENT_STREAM
        self.streams = head.media in STREAMS
        self._media = head.media
        self.strips = cuts or (strips and self.event_stream)
        self.sent = 0
        sized = self._sized = head.length >= 0 and not self.strips
        self._head_only = request.method == b"HEAD" or head.status in (204, 304)
        self._chunked = not sized and not self._head_only and request.minor == 1
        self.passes = self._chunked
        self.closes = closing or (not sized and not self._head_only and request.minor == 0)

    kept = b""
    """What is here of an answer that is not shown."""

    def begin(
        self, request: RequestHead, head: ResponseHead, extra: bytes, body: bytes, ended: bool
    ) -> None:
        """Write head and first bytes. `extra`: header lines of ours, each with CRLF."""
        if self._chunked:
            framing = b"transfer-encoding: chunked\r\n"
            body = self._frame(body, ended)
        else:
            framing = b""
            if head.length >= 0 and not self._head_only and not self.strips:
                framing = b"content-length: %d\r\n" % head.length
            self.sent += len(body)
        if self.closes:
            framing += b"connection: close\r\n"
        elif request.minor == 0:
            framing += b"connection: keep-alive\r\n"
        if self.event_stream:
            framing += _NO_STORE
        self.write(b"".join((status_line(head.status), head.fields, extra, framing, b"\r\n", body)))

    def body(self, data: bytes, framed: bytes | None, ended: bool) -> None:
        """Write more of the body; `framed` is the same as one canonical chunk, if known."""
        if self._chunked:
            if framed is not None and not ended:
                self.sent += len(data)
                self.write(framed)
                return
            data = self._frame(data, ended)
        else:
            self.sent += len(data)
        if data:
            self.write(data)

    def _frame(self, body: bytes, ended: bool) -> bytes:
        self.sent += len(body)
        framed = chunk(body) if body else b""
        return framed + LAST_CHUNK if ended else framed

    def error_event(self, refusal: Refusal, dialect: str, request_id: bytes) -> None:
        """Tell the reader of a stream why it ends; nothing after it says that it is whole. Not in a
        body of known size, which our bytes would complete."""
        if self._sized:
            return
        make = STREAMS[self._media]
        if make is MessageFramer:
            data = exception(render(refusal, "cohere"))
        elif make is LineFramer:
            data = render(refusal, dialect) + b"\n"
        else:
            data = render_event(refusal, dialect, request_id.decode())
        self.write(chunk(data) if self._chunked else data)


class EditedRelay(Relay):
    """A short answer that is read to its end and written as `edit` makes it. Of one that `edit`
    cannot read (None), that is compressed or longer than MAX_EDITED, not a byte is written: what
    was to be taken out might be in it."""

    __slots__ = ("_edit", "_extra", "_head", "_pieces", "_request", "_size", "kept")

    def __init__(
        self,
        write: Callable[[bytes], object],
        request: RequestHead,
        head: ResponseHead,
        edit: Callable[[bytes], bytes | None],
        *,
        closing: bool,
    ) -> None:
        super().__init__(write, request, head, strips=False, closing=closing)
        self.begun = self.passes = False
        self.kept = b""
        self._edit = edit
        self._extra = b""
        self._pieces: list[bytes] = []
        self._size = 0
        self._request = request
        self._head = head

    def begin(
        self, request: RequestHead, head: ResponseHead, extra: bytes, body: bytes, ended: bool
    ) -> None:
        """Keep what is here."""
        self._extra = extra
        self.body(body, None, ended)

    def body(self, data: bytes, framed: bytes | None, ended: bool) -> None:
        """Keep more; write when all is here."""
        self._size += len(data)
        if self._head.encoding or self._size > MAX_EDITED:
            self._pieces.clear()
            return
        self._pieces.append(data)
        if not ended:
            return
        self.kept = b"".join(self._pieces)
        body = self._edit(self.kept) if self._size else b""
        if body is not None:
            self.begun = True
            self.sent = len(body)
            self.write(whole_answer(self._request, self._head, self._extra, body, self.closes))
