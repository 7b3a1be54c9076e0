"""Reads a request head: one unambiguous message or a refusal (RFC 9112, 2 to 7).

httptools (llhttp) judges the grammar: line ends, field names, control bytes, folding, odd or
repeated lengths, length beside chunked. It does not look at Host, at the version, at the wording of
Transfer-Encoding, at what may stand in a target, nor at any limit: that is done here.

A head that was read once need not be read again. Clients on a kept connection send the same bytes
each time, but for the digits of Content-Length; `HeadMemo` recognises that and hands out the same
`RequestHead`. Equal bytes have equal meaning, so nothing is trusted that was not checked
(bench/micro/head.py: 0.5 us instead of 9 us).
"""

from __future__ import annotations

import re
from typing import Any, Final

import httptools

from fastgw.errors import (
    BadRequest,
    ExpectationFailed,
    HeadTooLarge,
    NotImplementedHere,
    VersionNotSupported,
)
from fastgw.http1.headers import AUTHORITY, tokens

_TARGET = re.compile(rb"[\x21\x22\x24-\x7e]+")  # visible ASCII without '#'
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)(/[^?#]*)?(\?.*)?", re.IGNORECASE)
_REQUEST_LINE = re.compile(rb"([A-Z]+(?:-[A-Z]+)?) ([^ ]+) HTTP/([0-9])\.([0-9])")
_METHODS_NOT_SERVED = frozenset({b"CONNECT", b"TRACE"})
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
    engine keeps what it worked out for this head, so that the next equal head need not ask again.
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
    )

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.query: bytes | None = None
        self.minor = 1
        self.host = b""
        self.fields: list[tuple[bytes, bytes, bytes]] = []
        self.has_length = False
        self.chunked = False
        self.keep_alive = True
        self.expects_continue = False
        self.plan: Any = None

    def get(self, name: bytes) -> bytes | None:
        """The value of the first field of that lower-case name, or None."""
        for lower, _, value in self.fields:
            if lower == name:
                return value
        return None

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

    __slots__ = ("_after", "_before", "head", "length")

    def __init__(self) -> None:
        self.head: RequestHead | None = None
        self.length = 0
        """Content-Length of the head that `match` has found; UNSIZED if it is not sound."""
        self._before = b""
        self._after = b""

    def remember(self, raw: bytes, head: RequestHead) -> None:
        """Keep `head` for the next request if its bytes can be compared cheaply."""
        self.head = None
        if head.chunked or head.expects_continue:
            return
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
        end = data.find(b"\r\n", start)
        if end < 0 or not data.startswith(after, end):
            return 0
        digits = data[start:end]
        self.length = int(digits) if digits.isdigit() and end - start <= 18 else UNSIZED
        return end + len(after)


KnownHead = tuple[RequestHead, bytes, bytes, int]
"""(head, its bytes before and after the digits of Content-Length, the length)"""


class HeadCache:
    """Heads that came more than once to a worker, by the client's address: behind a proxy that
    shares its connections, each request has another head than the one before it.

    A head is kept as it comes for the second time: those that never repeat, as with a trace id in
    each, leave a number behind. `size` heads of `LARGEST` bytes are kept at most, some 7 KiB each
    with what is known of them.
    """

    LARGEST: Final = 4096

    def __init__(self, size: int = 2048) -> None:
        self._size = size
        self._heads: dict[tuple[str, bytes, bytes], RequestHead] = {}
        self._seen: set[int] = set()

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, address: str, raw: bytes) -> KnownHead | None:
        """The head whose bytes are `raw` but for the digits of Content-Length."""
        before, digits, after = _around_length(raw)
        head = self._heads.get((address, before, after))
        if head is None or not ((digits.isdigit() and len(digits) <= 18) or not after):
            return None
        return head, before, after, int(digits) if after else 0

    def remember(self, address: str, raw: bytes, head: RequestHead) -> None:
        """A head that was read."""
        if head.chunked or head.expects_continue or len(raw) > self.LARGEST:
            return
        before, _, after = _around_length(raw)
        if head.has_length == (after == b""):
            return  # in a spelling that is not looked for
        key = (address, before, after)
        mark = hash(key)
        if mark not in self._seen:
            if len(self._seen) >= 4 * self._size:
                self._seen.clear()
            self._seen.add(mark)
            return
        if len(self._heads) >= self._size:
            self._heads.clear()
        self._heads[key] = head

    def clear(self) -> None:
        """Forget all: what is known of them has changed."""
        self._heads.clear()


def _around_length(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """A head before, within and after the digits of Content-Length; all of it before where it has
    none."""
    at = raw.find(b"\r\nContent-Length: ")
    if at < 0:
        at = raw.find(b"\r\ncontent-length: ")
        if at < 0:
            return raw, b"", b""
    start = at + 18
    end = raw.find(b"\r\n", start)
    return raw[:start], raw[start:end], raw[end:]
