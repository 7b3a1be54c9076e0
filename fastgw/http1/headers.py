"""Names and grammars that requests and responses share (RFC 9110, 5; RFC 9112, 5)."""

from __future__ import annotations

import re

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that end at the next hop (RFC 9110, 7.6.1), whatever Connection says."""

AUTHORITY = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~-]+)(?::[0-9]{1,5})?")
"""host[:port] as a Host field may hold it (RFC 9110, 7.2; RFC 3986, 3.2): no userinfo."""

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""token (RFC 9110, 5.6.2): field names, methods, codings."""

FIELD_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
"""Bytes a field value may hold (RFC 9110, 5.5): no CR, LF, NUL or other control byte."""

REQUEST_ID = re.compile(rb"[\x21\x23-\x5b\x5d-\x7e]{1,128}")
"""A request id we pass on: visible ASCII without `"` and `\\`, and short, so that it is safe in
headers and, as it is, in a string of JSON."""


def tokens(value: bytes) -> list[bytes]:
    """The members of a comma-separated list of tokens, in lower case, empty ones left out."""
    return [part.strip(b" \t").lower() for part in value.split(b",") if part.strip(b" \t")]
