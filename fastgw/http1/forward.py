"""Which fields of a client's head a provider gets, and what a head says of its body."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastgw.http1.headers import HOP_BY_HOP, tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastgw.http1.request import RequestHead

_DROPPED = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-goog-api-key",
    b"accept-encoding",
    b"x-request-id",
    b"request-id",
    b"forwarded",
    b"via",
    b"x-real-ip",
    b"http2-settings",
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
}
"""Fields of the client that never reach a provider as they are."""

_NO_IDENTITY = re.compile(rb"(?:identity|\*)[ \t]*;[ \t]*q=0(?:\.0*)?[ \t]*(?:,|$)", re.IGNORECASE)
"""A client that insists on a compressed answer (RFC 9110, 12.5.3)."""

_RANGES = frozenset({b"range", b"if-range"})
"""A part of an answer cannot be edited."""


def may_name_model(request: RequestHead, below: str) -> bool:
    """Whether a body is of a sort that names a model: JSON, and forms other than files."""
    kind = (request.get(b"content-type") or b"").lower()
    return b"json" in kind or (
        kind.startswith(b"multipart/form-data")
        and not below.lower().startswith(("/files", "/uploads"))
    )


def signature(request: RequestHead) -> bytes:
    """The client's own signature for AWS. It covers Host and body, so it holds only where the
    client signs for the provider's host and the body is sent on as it is."""
    for lower, name, value in request.fields:
        if lower == b"authorization" and value.startswith(b"AWS4-HMAC-SHA256 "):
            return b"%b: %b\r\n" % (name, value)
    return b""


def client_fields(
    request: RequestHead,
    carriers: frozenset[bytes],
    ours: Iterable[str],
    read: bool,
    edited: bool,
) -> bytes:
    """The client's end-to-end fields, as lines that may be sent on: without `carriers` of its
    credential, and those that we send ourselves. `read`: we read the answer, so ask for one that is
    not compressed. `edited`: and change it, so ask for all of it, as it is."""
    dropped = (
        _DROPPED
        | (_RANGES if edited else frozenset())
        | carriers
        | {name.lower().encode() for name in ours}
    )
    named = {
        option
        for lower, _, value in request.fields
        if lower == b"connection"
        for option in tokens(value)
    }
    lines: list[bytes] = []
    accept_encoding = b""
    for lower, name, value in request.fields:
        if lower == b"accept-encoding" and lower not in named:
            accept_encoding = value if not accept_encoding else accept_encoding + b", " + value
        elif (
            lower not in dropped
            and lower not in named
            and not lower.startswith((b"proxy-", b"x-forwarded-"))
            and b"_" not in lower
        ):
            lines.append(b"%b: %b\r\n" % (name, value))
    if edited:
        accept_encoding = b"identity"
    elif read:
        # Of what a client may insist on, gzip is what we can read.
        insists = _NO_IDENTITY.search(accept_encoding) and b"gzip" in accept_encoding.lower()
        accept_encoding = b"gzip" if insists else b"identity"
    if accept_encoding:
        lines.append(b"accept-encoding: %b\r\n" % accept_encoding)
    return b"".join(lines)
