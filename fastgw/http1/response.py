"""Reads a provider's response head with the distrust of RFC 9112, 6.3 and 11.

Lines are split at CRLF alone and each must be, as a whole, `token ":" value` without control bytes:
that refuses bare CR and LF, NUL, folding and blanks before the colon in one go. Most lines are the
same from answer to answer, so what a line means is looked up before it is worked out, and so is a
whole head where no more than its date varies (bench/micro/heads.py). llhttp would check no more and
be asked each time.
"""

from __future__ import annotations

import re
from typing import Final

from fastgw.http1.headers import HOP_BY_HOP, TOKEN, tokens

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_VALUE_BYTES: Final = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
_KEEP_ALIVE_TIMEOUT: Final = re.compile(rb"timeout=([0-9]{1,6})", re.IGNORECASE)

UNTIL_CLOSE: Final = -1
CHUNKED: Final = -2

_DROPPED: Final = HOP_BY_HOP | {
    b"x-request-id",
    b"request-id",
    b"access-control-allow-origin",
    b"access-control-allow-credentials",
    b"access-control-expose-headers",
    b"alt-svc",
}
"""Fields of the provider that are not the client's: hop-by-hop, ids that we replace, and what
speaks of the provider's own origin."""
_ORDERS: Final = (b"x-accel-", b"x-sendfile", b"x-lighttpd-", b"x-litespeed-", b"x-reproxy-")
"""How fields begin that a server in front of us takes for orders of ours, such as to send a file of
its own instead: nginx, Apache, lighttpd, LiteSpeed, H2O. All are dropped but X-Accel-Buffering,
which says no more than when bytes are passed on."""

_KEEP: Final = 0
_DROP: Final = 1
_RATE_LIMIT: Final = 2
_LENGTH: Final = 3
_CODING: Final = 4
_CONNECTION: Final = 5
_KEEP_ALIVE: Final = 6
_MEDIA: Final = 7
_ENCODING: Final = 8
_KINDS: Final = dict.fromkeys(_DROPPED, _DROP) | {
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"keep-alive": _KEEP_ALIVE,
    b"content-type": _MEDIA,
    b"content-encoding": _ENCODING,
}
_USUAL_OPTIONS: Final = frozenset({b"close", b"keep-alive"})
"""Options of Connection that name no field that could be kept."""
_RATE_LIMITS: Final = (b"x-ratelimit-", b"ratelimit", b"anthropic-ratelimit-")

_MEMO: Final[dict[bytes, tuple[int, bytes]]] = {}
_MEMO_LINES: Final = 2048
_MEMO_WIDTH: Final = 256
_NAMES: Final[dict[bytes, tuple[int, bool]]] = {}
"""Kind of each field name, and whether its value varies from answer to answer."""
_MEMO_NAMES: Final = 512
_HEADS: Final[tuple[dict[bytes, ResponseHead], ...]] = ({}, {})
"""Heads by their bytes: without and with rate limits."""
_MEMO_HEADS: Final = 256
_VARYING: Final = frozenset(
    {b"date", b"set-cookie", b"cf-ray", b"openai-processing-ms", b"etag", b"age", b"x-request-id"}
)


class BadResponse(ValueError):
    """The provider's bytes are not one sound HTTP/1.1 response."""


class ResponseHead:
    """What a response head says.

    `fields` are the header lines the client may see, each ended by CRLF, without any framing field.
    `length` is the body's size in bytes, CHUNKED or UNTIL_CLOSE. `media` is the lower-case media
    type without parameters, `encoding` the lower-case content coding ("" = identity).
    `keep_for` is the provider's own idle time-out in seconds, 0 where it names none. Never changed
    once it is read: answers that begin alike share one.
    """

    __slots__ = (
        "bodyless",
        "encoding",
        "fields",
        "keep_alive",
        "keep_for",
        "length",
        "media",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self.bodyless = False
        self.fields = b""
        self.length = UNTIL_CLOSE
        self.keep_alive = True
        self.keep_for = 0
        self.media = b""
        self.encoding = b""


def read_response_head(
    head: bytes, request_method: bytes, keep_rate_limit: bool = False
) -> ResponseHead:
    """Read `head`: a status line and fields with the blank line that ends them.

    `request_method` decides whether a body can follow (RFC 9112, 6.3). Raises BadResponse.
    """
    heads = _HEADS[keep_rate_limit]
    seen = heads.get(head)
    if seen is not None and request_method != b"HEAD":
        return seen
    lines = head[:-4].split(b"\r\n")
    first = _STATUS_LINE.fullmatch(lines[0])
    if first is None:
        raise BadResponse("not an HTTP/1.1 status line")
    response = ResponseHead()
    status = response.status = int(first[2])
    response.keep_alive = first[1] == b"1"
    del lines[0]
    kept: list[bytes] = []
    named: list[bytes] = []
    memo = _MEMO
    new = 0
    length = UNTIL_CLOSE
    for line in lines:
        found = memo.get(line)
        if found is None:
            found = _read_line(line)
            new += 1
        kind, value = found
        if kind == _KEEP:
            kept.append(line)
        elif kind == _LENGTH:
            if length != UNTIL_CLOSE or not value.isdigit() or len(value) > 18:
                raise BadResponse("Content-Length repeated, no plain number, or beside chunked")
            length = int(value)
        elif kind == _MEDIA:
            response.media = value
            kept.append(line)
        elif kind == _CODING:
            if length != UNTIL_CLOSE or value != b"chunked":
                raise BadResponse("a transfer coding other than one chunked, or beside a length")
            if first[1] == b"0":
                raise BadResponse("a transfer coding in HTTP/1.0 (RFC 9112, 6.1)")
            length = CHUNKED
        elif kind == _CONNECTION:
            named += tokens(value)
        elif kind == _ENCODING:
            response.encoding = value
            kept.append(line)
        elif kind == _KEEP_ALIVE:
            hint = _KEEP_ALIVE_TIMEOUT.search(value)
            response.keep_for = int(hint[1]) if hint is not None else 0
        elif kind == _RATE_LIMIT and keep_rate_limit:
            kept.append(line)
    if named:
        if b"close" in named:
            response.keep_alive = False
        elif b"keep-alive" in named:
            response.keep_alive = True
        if not _USUAL_OPTIONS.issuperset(named):
            kept = [line for line in kept if line.partition(b":")[0].lower() not in named]
    if kept:
        kept.append(b"")
        response.fields = b"\r\n".join(kept)
    if request_method == b"HEAD" or status in (204, 304) or status < 200:
        length = 0
        response.bodyless = True
    response.length = length
    if new <= 1 and request_method != b"HEAD":
        if len(heads) >= _MEMO_HEADS:
            heads.clear()
        heads[head] = response
    return response


def _read_line(line: bytes) -> tuple[int, bytes]:
    """What a header line means, and its value in the form that is compared."""
    name, colon, value = line.partition(b":")
    known = _NAMES.get(name)
    if known is None:
        known = _read_name(name)
    if not colon or value.translate(None, _VALUE_BYTES):
        raise BadResponse("not a well-formed header field")
    kind, varies = known
    if kind <= _RATE_LIMIT:
        value = b""
    else:
        value = value.strip(b" \t").lower()
        if kind == _MEDIA:
            value = value.partition(b";")[0].strip(b" \t")
        elif kind == _ENCODING and value == b"identity":
            value = b""
    meaning = (kind, value)
    if not varies and len(line) <= _MEMO_WIDTH:
        if len(_MEMO) >= _MEMO_LINES:
            _MEMO.clear()
        _MEMO[line] = meaning
    return meaning


def _read_name(name: bytes) -> tuple[int, bool]:
    """The kind of a field, and whether its value varies."""
    if not TOKEN.fullmatch(name):
        raise BadResponse("not a well-formed header field")
    lower = name.lower()
    kind = _KINDS.get(lower, _KEEP)
    if kind == _KEEP:
        if lower.startswith(_RATE_LIMITS):
            kind = _RATE_LIMIT
        elif lower.startswith(_ORDERS) and lower != b"x-accel-buffering":
            kind = _DROP
    known = (kind, kind == _RATE_LIMIT or lower in _VARYING)
    if len(_NAMES) >= _MEMO_NAMES:
        _NAMES.clear()
    _NAMES[name] = known
    return known
