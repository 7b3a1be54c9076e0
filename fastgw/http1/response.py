"""Reads a provider's response head with the distrust of RFC 9112, 6.3 and 11.

httptools judges the grammar; here are its gaps: interim answers, framing that two parsers could
read differently, fields that end at this hop. Header lines repeat from answer to answer, so what a
line means is looked up before it is worked out (bench/micro/head.py: 0.06 us against 0.5 us a
line).
"""

from __future__ import annotations

import re

import httptools

from fastgw.http1.headers import HOP_BY_HOP, tokens

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
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

_MEMO: dict[bytes, int] = {}
_MEMO_LINES = 2048
_KEEP, _DROP, _RATE_LIMIT, _LOOK = range(4)
_LOOKED_AT = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"keep-alive",
        b"content-type",
        b"content-encoding",
    }
)
_VARYING = frozenset({b"date", b"set-cookie", b"cf-ray", b"openai-processing-ms", b"etag", b"age"})


class BadResponse(ValueError):
    """The provider's bytes are not one sound HTTP/1.1 response."""


class ResponseHead:
    """What a response head says.

    `fields` are the header lines the client may see, each ended by CRLF, without any framing field.
    `length` is the body's size in bytes, CHUNKED or UNTIL_CLOSE. `media` is the lower-case media
    type without parameters, `encoding` the lower-case content coding ("" = identity).
    `keep_for` is the provider's own idle time-out in seconds, 0 where it names none.
    """

    __slots__ = ("encoding", "fields", "keep_alive", "keep_for", "length", "media", "status")

    def __init__(self) -> None:
        self.status = 0
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
    try:
        httptools.HttpResponseParser(_SILENT).feed_data(head)
    except httptools.HttpParserUpgrade:
        raise BadResponse("switched protocols unasked") from None
    except httptools.HttpParserError as error:
        raise BadResponse(f"not a well-formed response head: {error}") from None
    response = ResponseHead()
    status = response.status = int(first[2])
    if status > 599:
        raise BadResponse("status above 599")
    response.keep_alive = first[1] == b"1"
    kept: list[bytes] = []
    look: list[bytes] = []
    named: list[bytes] = []
    memo = _MEMO
    for line in lines[1:]:
        kind = memo.get(line)
        if kind is None:
            kind = _classify(line)
        if kind == _KEEP:
            kept.append(line)
        elif kind == _LOOK:
            look.append(line)
        elif kind == _RATE_LIMIT and keep_rate_limit:
            kept.append(line)
    _look(response, look, kept, named)
    if named:
        kept = [line for line in kept if line.partition(b":")[0].lower() not in named]
    if kept:
        kept.append(b"")
        response.fields = b"\r\n".join(kept)
    if request_method == b"HEAD" or status in (204, 304) or status < 200:
        response.length = 0
    return response


def _classify(line: bytes) -> int:
    name = line.partition(b":")[0].lower()
    if name in _LOOKED_AT:
        kind = _LOOK
    elif name in _DROPPED:
        kind = _DROP
    elif name.startswith((b"x-ratelimit-", b"ratelimit", b"anthropic-ratelimit-")):
        return _RATE_LIMIT
    else:
        kind = _KEEP
        if name in _VARYING:
            return kind
    if len(_MEMO) >= _MEMO_LINES:
        _MEMO.clear()
    if len(line) <= 256:
        _MEMO[line] = kind
    return kind


def _look(
    response: ResponseHead, lines: list[bytes], kept: list[bytes], named: list[bytes]
) -> None:
    sized = False
    for line in lines:
        name, _, value = line.partition(b":")
        name = name.lower()
        value = value.strip(b" \t")
        if name == b"content-length":
            if sized or not value.isdigit() or len(value) > 18:
                raise BadResponse("Content-Length repeated or not a plain number")
            if response.length == CHUNKED:
                raise BadResponse("both Content-Length and Transfer-Encoding")
            sized = True
            response.length = int(value)
        elif name == b"transfer-encoding":
            if sized or response.length == CHUNKED or value.lower() != b"chunked":
                raise BadResponse("a transfer coding other than one chunked")
            response.length = CHUNKED
        elif name == b"connection":
            options = tokens(value)
            named.extend(options)
            if b"close" in options:
                response.keep_alive = False
            elif b"keep-alive" in options:
                response.keep_alive = True
        elif name == b"keep-alive":
            hint = _KEEP_ALIVE_TIMEOUT.search(value)
            if hint is not None:
                response.keep_for = int(hint[1])
        else:
            kept.append(line)
            if name == b"content-type":
                response.media = value.partition(b";")[0].strip().lower()
            else:
                coding = value.lower()
                response.encoding = b"" if coding == b"identity" else coding


class _Silent:
    """A sink without callbacks: the bytes are read here."""


_SILENT = _Silent()
