"""Reads a request head: one unambiguous message or a refusal (RFC 9112, 2 to 7).

httptools (llhttp) judges the grammar: line ends, field names, control bytes, folding, odd or
repeated lengths, length beside chunked. It does not look at Host, at the version, at the wording of
Transfer-Encoding, at what may stand in a target, nor at any limit: that is done here.

A head that was read once need not be read again. Clients on a kept connection send the same bytes
each time, but for the digits of Content-Length; `HeadMemo` recognises that and hands out the same
`RequestHead`. Equal bytes have equal meaning, so nothing is trusted that was not checked
(bench/micro/head.py: 0.5 us instead of 9 us). Where keys take turns on a connection `HeadCache`
does the same for a worker, and of a head that differs from a known one in its credential only it
judges no more than that: visible ASCII, which ends at the line's own CRLF.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Any, Final

import httptools

from fastgw.errors import (
    BadRequest,
    ExpectationFailed,
    HeadTooLarge,
    NotImplementedHere,
    VersionNotSupported,
)
from fastgw.http1.headers import AUTHORITY, REQUEST_ID, tokens

_TARGET = re.compile(rb"[\x21\x22\x24-\x7e]+")  # visible ASCII without '#'
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(/[^?#]*)?(\?.*)?", re.IGNORECASE)
_REQUEST_LINE = re.compile(rb"([A-Z]+(?:-[A-Z]+)?) ([^ ]+) HTTP/([0-9])\.([0-9])")
_METHODS_NOT_SERVED = frozenset({b"CONNECT", b"TRACE"})
SAFE = frozenset({b"GET", b"HEAD", b"OPTIONS", b"DELETE"})
"""Methods that ask for no work of a model; with a body that is anybody's guess."""
_ONCE = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"content-type",
        b"content-encoding",
        b"authorization",
        b"expect",
    }
)
"""Fields of which a second one means that two parsers could read two messages."""

UNSIZED: Final = -1


class RequestHead:
    """What a head says. Shared by all requests with the same head; never changed after reading.

    `fields` are (lower-case name, name as sent, value) in order. `path` and `query` are the raw
    bytes of the target (`query` without "?", None where there is none). `plan` is a place where the
    engine keeps what it worked out for this head, so that the next equal head need not ask again;
    `shape` is what it shares with heads that differ from it in the credential, where that is known.
    """

    __slots__ = (
        "chunked",
        "expects_continue",
        "fields",
        "has_length",
        "host",
        "keep_alive",
        "method",
        "minor",
        "path",
        "plan",
        "query",
        "shape",
    )

    method: bytes
    path: bytes
    query: bytes | None
    minor: int
    host: bytes
    fields: list[tuple[bytes, bytes, bytes]]
    has_length: bool
    keep_alive: bool

    def __init__(self, like: RequestHead | None = None) -> None:
        self.plan: Any = None
        self.shape: HeadShape | None = None
        self.chunked = False
        self.expects_continue = False
        if like is not None:
            self.method = like.method
            self.path = like.path
            self.query = like.query
            self.minor = like.minor
            self.host = like.host
            self.fields = like.fields
            self.has_length = like.has_length
            self.keep_alive = like.keep_alive
            return
        self.method = b""
        self.path = b""
        self.query = None
        self.minor = 1
        self.host = b""
        self.fields = []
        self.has_length = False
        self.keep_alive = True

    def get(self, name: bytes) -> bytes | None:
        """The value of the first field of that lower-case name, or None."""
        for lower, _, value in self.fields:
            if lower == name:
                return value
        return None

    @property
    def request_id(self) -> bytes:
        """The client's own name for it, b"" where there is none that a header line could repeat."""
        name = self.get(b"x-request-id") or self.get(b"request-id") or b""
        return name if REQUEST_ID.fullmatch(name) else b""

    @property
    def has_body(self) -> bool:
        """Whether a body is announced that is not empty."""
        return self.chunked or int(self.get(b"content-length") or 0) > 0

    def __repr__(self) -> str:
        # No field: one of them may be a credential.
        return f"<RequestHead {self.method.decode()} {self.path!r}>"


def read_request_head(head: bytes, max_fields: int) -> tuple[RequestHead, int]:
    """Read `head`, a request line and fields with the blank line that ends them.

    Returns the head and its Content-Length in bytes (0 without one, UNSIZED when chunked).
    Raises BadRequest, HeadTooLarge, NotImplementedHere, VersionNotSupported or ExpectationFailed.
    """
    lines = head[:-4].split(b"\r\n")
    first = _REQUEST_LINE.fullmatch(lines[0])
    if first is not None and (first[3] != b"1" or first[4] not in b"01"):
        raise VersionNotSupported("only HTTP/1.1 and HTTP/1.0 are spoken here")
    if len(lines) - 1 > max_fields:
        raise HeadTooLarge(f"more than {max_fields} header fields; send fewer")
    try:
        httptools.HttpRequestParser(_SILENT).feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # an offer that we do not take up; CONNECT is refused below
    except httptools.HttpParserError as error:
        _check_coding(lines)
        raise BadRequest(f"not a well-formed HTTP/1.1 request head: {error}") from None
    if first is None:
        raise BadRequest("the request line is not METHOD SP target SP HTTP-version")

    request = RequestHead()
    request.method = first[1]
    if request.method in _METHODS_NOT_SERVED:
        raise NotImplementedHere(f"{request.method.decode()} is not served here")
    request.minor = int(first[4])
    request.keep_alive = request.minor == 1
    seen: set[bytes] = set()
    length = 0
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        lower = name.lower()
        value = value.strip(b" \t")
        request.fields.append((lower, name, value))
        if lower in _ONCE:
            if lower in seen:
                raise BadRequest(f"two {lower.decode()} fields; send one")
            seen.add(lower)
            if lower == b"content-length":
                length = _length(value)
                request.has_length = True
            elif lower == b"transfer-encoding":
                _chunked(request, value)
            elif lower == b"host":
                request.host = value.lower()
            elif lower == b"expect":
                _expectation(request, value)
        elif lower == b"connection":
            options = tokens(value)
            if b"close" in options:
                request.keep_alive = False
            elif b"keep-alive" in options and request.minor == 0:
                request.keep_alive = True
    if request.chunked:
        if request.has_length:
            raise BadRequest("both Content-Length and Transfer-Encoding; send one")
        length = UNSIZED
    _target(request, first[2], b"host" in seen)
    return request, length


def _check_coding(lines: list[bytes]) -> None:
    """llhttp refuses some codings as malformed; the client should learn that they are unknown."""
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"transfer-encoding" and value.strip(b" \t").lower() != b"chunked":
            raise NotImplementedHere("the only transfer coding spoken here is chunked")


def _length(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise BadRequest("Content-Length is not a plain decimal number")
    return int(value)


def _chunked(request: RequestHead, value: bytes) -> None:
    if request.minor == 0:
        raise BadRequest("Transfer-Encoding in an HTTP/1.0 request (RFC 9112, 6.1)")
    if value.lower() != b"chunked":
        raise NotImplementedHere("the only transfer coding spoken here is chunked")
    request.chunked = True


def _expectation(request: RequestHead, value: bytes) -> None:
    if value.lower() != b"100-continue":
        raise ExpectationFailed("the only expectation met here is 100-continue")
    request.expects_continue = request.minor == 1


def _target(request: RequestHead, target: bytes, has_host: bool) -> None:
    """Check Host and target (RFC 9112, 3.2) and split the target into path and query."""
    if not has_host:
        if request.minor == 1:
            raise BadRequest("no Host field (RFC 9112, 3.2)")
    elif not AUTHORITY.fullmatch(request.host):
        raise BadRequest("Host is not a valid authority")
    if not _TARGET.fullmatch(target):
        raise BadRequest("the request target holds a byte that must be percent-encoded")
    if target == b"*" and request.method == b"OPTIONS":
        request.path = b"*"
        return
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise BadRequest("the request target is neither /path nor an absolute http URL")
        if has_host and absolute[1].lower() != request.host:
            raise BadRequest("the target's authority and Host disagree")
        if not AUTHORITY.fullmatch(absolute[1]):
            raise BadRequest("the target's authority is not valid")
        target = (absolute[2] or b"/") + (absolute[3] or b"")
    path, mark, query = target.partition(b"?")
    request.path = path
    request.query = query if mark else None


class _Silent:
    """A sink without callbacks: each one would cost 0.2 us and we read the bytes ourselves."""


_SILENT = _Silent()


class HeadMemo:
    """Recognises a head equal to the last one of its connection but for Content-Length's digits."""

    LARGEST: Final = 16 * 1024
    """Bytes of a head that is kept: an idle connection is not to hold more."""

    __slots__ = ("_after", "_before", "_digits", "_end", "head", "length")

    def __init__(self) -> None:
        self.head: RequestHead | None = None
        self.length = 0
        """Content-Length of the head that `match` has found; UNSIZED if it is not sound."""
        self._before = b""
        self._after = b""
        self._end = 0  # of the digits, the last time
        self._digits: bytes | None = None  # which `length` stands for

    def remember(self, raw: bytes, head: RequestHead) -> None:
        """Keep `head` for the next request if its bytes can be compared cheaply."""
        self.head = None
        self._end, self._digits = 0, None
        if head.chunked or head.expects_continue or len(raw) > self.LARGEST:
            return
        if head.has_length and head.method in SAFE:
            return  # with another length it may mean something else
        if not head.has_length:
            self._before, self._after = raw, b""
            self.head = head
            return
        for _, name, value in head.fields:
            if name.lower() == b"content-length":
                start = raw.index(b"\r\n" + name + b":") + len(name) + 3
                start = raw.index(value, start)
                self._before, self._after = raw[:start], raw[start + len(value) :]
                self.head = head
                return

    def recall(self, found: KnownHead) -> RequestHead:
        """Keep a head that another connection, or an earlier request of this one, has read."""
        self.head, self._before, self._after, self.length = found
        self._end, self._digits = 0, None
        return found[0]

    def match(self, data: bytes) -> int:
        """Compare the start of `data` with the head kept.

        Returns the end of the head in `data`, or 0 where it differs or is not there in full.
        """
        before = self._before
        if self.head is None or not data.startswith(before):
            return 0
        after = self._after
        start = len(before)
        if not after:
            self.length = 0
            return start
        end = self._end
        if data[end : end + len(after)] != after:  # as many digits as the last time, mostly
            end = data.find(b"\r\n", start)
            if end < 0 or not data.startswith(after, end):
                return 0
            self._end = end
        digits = data[start:end]
        if digits != self._digits:
            self._digits = digits
            self.length = int(digits) if digits.isdigit() and end - start <= 18 else UNSIZED
        return end + len(after)


KnownHead = tuple[RequestHead, bytes, bytes, int]
"""(head, its bytes before and after the digits of Content-Length, the length)"""


class HeadShape:
    """What heads have in common that differ in their credential and length only.

    `field` is the place of the credential among the fields, -1 where none is left out, and `name`
    its lower-case name. `size` is the bytes of the first of them. `course` is a place where the
    engine keeps what it worked out for such heads, whoever sends them.
    """

    __slots__ = ("_head", "course", "field", "name", "size")

    def __init__(self, head: RequestHead, field: int, size: int) -> None:
        self.field = field
        self.size = size
        self.name = head.fields[field][0] if field >= 0 else b""
        self.course: Any = None
        # A copy, without plan and shape: what is in a circle is freed by the collector only.
        self._head = RequestHead(head)

    def head(self, credential: bytes) -> RequestHead:
        """A head of this shape; the value of its credential was judged."""
        made = RequestHead(self._head)
        made.shape = self
        if self.field >= 0:
            lower, name, _ = made.fields[self.field]
            made.fields = made.fields.copy()
            made.fields[self.field] = (lower, name, credential)
        return made

    def credential(self, head: RequestHead) -> bytes:
        """What a head of this shape has in the place that is left out."""
        return head.fields[self.field][2] if self.field >= 0 else b""


_Shape = tuple[str, bytes, bytes, bytes]
"""A client's address, and its head without the digits of Content-Length and a credential: before,
between and after."""

LONGEST: Final = 512
"""Bytes of a credential that is looked for."""
_CREDENTIALS: Final = (
    (b"\r\nAuthorization: ", re.compile(rb"[Bb]earer [\x21-\x7e]+")),
    (b"\r\nauthorization: ", re.compile(rb"[Bb]earer [\x21-\x7e]+")),
    (b"\r\nx-api-key: ", re.compile(rb"[\x21-\x7e]+")),
    (b"\r\nX-Api-Key: ", re.compile(rb"[\x21-\x7e]+")),
    (b"\r\napi-key: ", re.compile(rb"[\x21-\x7e]+")),
    (b"\r\nx-goog-api-key: ", re.compile(rb"[\x21-\x7e]+")),
)
"""How SDKs begin the line of a credential, and what may stand in the rest of it. No value of these
has a meaning to HTTP, so a head means the same with any of them."""


class HeadCache:
    """Heads that came to a worker before, by the client's address: behind a proxy that shares its
    connections, each request has another head than the one before it.

    A shape is kept as it comes for the second time: those that never repeat, as with a trace id in
    each, leave a number behind. Of a shape that is kept each head is kept that the engine has made
    a plan for, so a wrong credential is not.

    `shapes` of `LARGEST` bytes are kept at most, some 7 KiB each and 29 at worst. One more, and all
    go, and with them their heads, which nothing finds any more: `PART` of them as each other shape
    comes, so that nobody waits. `size` heads are kept at most, some 2 KiB each with what is known
    of them, and `room` bytes of them, where a head counts for its own and `KNOWN` more; the oldest
    goes first.
    """

    LARGEST: Final = 4096
    KNOWN: Final = 1024
    PART: Final = 64

    def __init__(
        self, size: int = 131_072, shapes: int = 2048, room: int = 256 * 1024 * 1024
    ) -> None:
        self._size = size
        self._most = shapes
        self._room = self._left = room
        self._lost = 0  # of `_order`, at its begin: heads whose shape is gone
        self._shapes: dict[_Shape, HeadShape] = {}
        self._seen: set[int] = set()
        self._heads: dict[tuple[HeadShape, bytes], RequestHead] = {}
        self._order: deque[tuple[HeadShape, bytes]] = deque()

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, address: str, raw: bytes) -> KnownHead | None:
        """The head whose bytes are `raw` but for the digits of Content-Length."""
        start, end = _length_of(raw)
        value, stop, _ = _credential_of(raw)
        shape = self._shapes.get(_around(address, raw, start, end, value, stop))
        if shape is None:
            return None
        credential = raw[value:stop]
        head = self._heads.get((shape, credential))
        if head is None:
            head = shape.head(credential)
        if not end:
            return head, raw, b"", 0
        digits = raw[start:end]
        if not digits.isdigit() or end - start > 18:
            return None
        return head, raw[:start], raw[end:], int(digits)

    def remember(self, address: str, raw: bytes, head: RequestHead) -> None:
        """A head that was read."""
        if head.chunked or head.expects_continue or len(raw) > self.LARGEST:
            return
        if head.has_length and head.method in SAFE:
            return
        start, end = _length_of(raw)
        if head.has_length == (end == 0):
            return  # in a spelling that is not looked for
        value, stop, line = _credential_of(raw)
        key = _around(address, raw, start, end, value, stop)
        mark = hash(key)
        if mark not in self._seen:
            if len(self._seen) >= 4 * self._most:
                self._seen.clear()
            self._seen.add(mark)
            return
        if len(self._shapes) >= self._most:
            self._shapes.clear()
            self._lost = len(self._order)
        for _ in range(min(self._lost, self.PART)):
            self._drop()
        # lines before it without the request line, which is the place among the fields
        field = raw.count(b"\r\n", 0, line) if stop else -1
        self._shapes[key] = head.shape = HeadShape(head, field, len(raw))

    def keep(self, head: RequestHead) -> None:
        """Keep a head that the engine has made a plan for, if its shape is known."""
        shape = head.shape
        if shape is None:
            return
        key = (shape, shape.credential(head))
        if key not in self._heads:
            self._left -= shape.size + self.KNOWN
            while self._order and (self._left < 0 or len(self._order) >= self._size):
                self._drop()
            self._order.append(key)
        self._heads[key] = head

    def _drop(self) -> None:
        """The oldest head goes."""
        oldest = self._order.popleft()
        del self._heads[oldest]
        self._left += oldest[0].size + self.KNOWN
        if self._lost:
            self._lost -= 1

    def let_go(self) -> list[RequestHead]:
        """All heads that it has; it has none then: what is known of them has changed. Whoever gets
        them chooses when they are freed."""
        found = list(self._heads.values())
        self._heads.clear()
        self._order.clear()
        self._shapes.clear()
        self._left = self._room
        self._lost = 0
        return found


def _length_of(raw: bytes) -> tuple[int, int]:
    """Where the digits of Content-Length are in a head; (0, 0) where it has none."""
    at = raw.find(b"\r\nContent-Length: ")
    if at < 0:
        at = raw.find(b"\r\ncontent-length: ")
        if at < 0:
            return 0, 0
    return at + 18, raw.find(b"\r\n", at + 18)


def _credential_of(raw: bytes) -> tuple[int, int, int]:
    """Where the value of a credential is in a head, and the CRLF before its line; (0, 0, 0) where
    there is none, or one that may mean more than who sent it."""
    for begin, allowed in _CREDENTIALS:
        at = raw.find(begin)
        if at >= 0:
            start = at + len(begin)
            end = raw.find(b"\r\n", start)
            sound = end - start <= LONGEST and allowed.fullmatch(raw, start, end)
            return (start, end, at) if sound else (0, 0, 0)
    return 0, 0, 0


def _around(address: str, raw: bytes, start: int, end: int, value: int, stop: int) -> _Shape:
    """A head without two parts of it, which do not overlap: each is the rest of another line."""
    if not stop:
        return address, raw[:start] if end else raw, b"", raw[end:] if end else b""
    if not end:
        return address, raw[:value], b"", raw[stop:]
    if value < start:
        return address, raw[:value], raw[stop:start], raw[end:]
    return address, raw[:start], raw[end:value], raw[stop:]
