"""Reads a provider's response head with the distrust of RFC 9112, 6.3 and 11.

Lines are split at CRLF alone and each must be, as a whole, `token ":" value` without control bytes:
that refuses bare CR and LF, NUL, folding and blanks before the colon in one go. Most lines are the
same from answer to answer, so what a line means is looked up before it is worked out; only lines
that vary are matched (bench/micro/heads.py). llhttp would check no more and be asked each time.
"""

from __future__ import annotations

import re

from fastgw.http1.headers import HOP_BY_HOP, tokens

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t\x20-\x7e\x80-\xff]*)")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"timeout=([0-9]{1,6})", re.IGNORECASE)

UNTIL_CLOSE = -1
CHUNKED = -2

_DROPPED = HOP_BY_HOP | {
    b"x-request-id",
    b"request-id",
    b"access-control-allow-origin",
    b"access-control-allow-credentials",
    b"access-control-expose-headers",
    b"alt-svc",
}
"""Fields of the provider that are not the client's: hop-by-hop, ids that we replace, and what
speaks of the provider's own origin."""

_KEEP, _DROP, _RATE_LIMIT, _LENGTH, _CODING, _CONNECTION, _KEEP_ALIVE, _MEDIA, _ENCODING = range(9)
_KINDS = dict.fromkeys(_DROPPED, _DROP) | {
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"keep-alive": _KEEP_ALIVE,
    b"content-type": _MEDIA,
    b"content-encoding": _ENCODING,
}
_USUAL_OPTIONS = frozenset({b"close", b"keep-alive"})
"""Options of Connection that name no field that could be kept."""
_RATE_LIMITS = (b"x-ratelimit-", b"ratelimit", b"anthropic-ratelimit-")

_MEMO: dict[bytes, tuple[int, bytes]] = {}
_MEMO_LINES = 2048
_MEMO_WIDTH = 256
_VARYING = frozenset(
    {b"date", b"set-cookie", b"cf-ray", b"openai-processing-ms", b"etag", b"age", b"x-request-id"}
)


class BadResponse(ValueError):
    """The provider's bytes are not one sound HTTP/1.1 response."""


class ResponseHead:
    """What a response head says.

    `fields` are the header lines the client may see, each ended by CRLF, without any framing field.
    `length` is the body's size in bytes, CHUNKED or UNTIL_CLOSE. `media` is the lower-case media
    type without parameters, `encoding` the lower-case content coding ("" = identity).
    `keep_for` is the provider's own idle time-out in seconds, 0 where it names none.
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
    length = UNTIL_CLOSE
    for line in lines:
        kind, value = memo.get(line) or _read_line(line)
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
    return response


def _read_line(line: bytes) -> tuple[int, bytes]:
    """What a header line means, and its value in the form that is compared."""
    match = _FIELD.fullmatch(line)
    if match is None:
        raise BadResponse("not a well-formed header field")
    name = match[1].lower()
    kind = _KINDS.get(name, _KEEP)
    if kind == _KEEP and name.startswith(_RATE_LIMITS):
        return _RATE_LIMIT, b""
    value = b""
    if kind > _RATE_LIMIT:
        value = match[2].strip(b" \t").lower()
        if kind == _MEDIA:
            value = value.partition(b";")[0].strip(b" \t")
        elif kind == _ENCODING and value == b"identity":
            value = b""
    meaning = (kind, value)
    if name not in _VARYING and len(line) <= _MEMO_WIDTH:
        if len(_MEMO) >= _MEMO_LINES:
            _MEMO.clear()
        _MEMO[line] = meaning
    return meaning
