"""What the ends of a JSON object say of it, where the rest cannot be read: its first members and
its last ones, and only those that are its own.

1. What a client or a model wrote stands deeper, in strings or in objects of its own, and may look
   like a usage or the name of a model.
2. The start of an object, up to a comma between two of its members, is an object once a brace
   closes it. So is its end, from the name of a member on, once a brace opens it: of a member that
   stands deeper that is no JSON, since more braces close than open.
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

from fastgw.sse import BOM
from fastgw.usage.payload import read_object

EDGE = 8 * 1024
"""Bytes of a start that are looked at."""

MOST_TRIES = 128
"""Names of members that an end is read from at most, each in 10 us."""

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_WITHIN = rb'(?:[^"{}\[\]]++|%b)*+' % _STRING
for _ in range(6):
    _WITHIN = rb'(?:[^"{}\[\]]++|%b|[{\[]%b[}\]])*+' % (_STRING, _WITHIN)
_MEMBER = rb'\s*+%b\s*+:\s*+(?:(?:%b|[{\[]%b[}\]])\s*+|[^"{}\[\],]++),' % (
    _STRING,
    _STRING,
    _WITHIN,
)
_FIRST: Final = re.compile(rb"(?s)\{(?:%b)*+" % _MEMBER)
_NAME: Final = re.compile(rb'[,{]\s*+("[^"\\]{1,64}"\s*+:)')
_BLANKS = BOM + b" \t\r\n"


def is_object(start: bytes) -> bool:
    """Whether these are the first bytes of a JSON object."""
    return start.lstrip(_BLANKS).startswith(b"{")


def first_members(start: bytes) -> dict[str, Any]:
    """The members that are whole in the first bytes of an object."""
    match = _FIRST.match(start[:EDGE].lstrip(_BLANKS))
    if match is None:
        return {}
    return read_object(match[0].removesuffix(b",") + b"}") or {}


def last_members(end: bytes) -> dict[str, Any]:
    """The members that are whole in the last bytes of an object, which ends there."""
    names = [match.start(1) for match in _NAME.finditer(end)]
    for at in names[-MOST_TRIES:]:
        try:
            found: dict[str, Any] = orjson.loads(b"{%b" % end[at:])
        except orjson.JSONDecodeError:
            continue
        return found
    return {}
