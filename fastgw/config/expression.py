"""Expressions: which fact of a request a budget counts by, or a metric label shows.

    EXPR    = FIELD | apiKey.FIELD | apiKey["FIELD"] | request.headers["NAME"]
            | request.path | llm.model | default(EXPR, "VALUE")

A bare FIELD is the same as apiKey.FIELD: a field of the key's metadata. The names are those of
agentgateway's CEL, so its expressions can be taken over; nothing is computed here but the reading.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal


@dataclass(frozen=True, slots=True)
class Expression:
    """One parsed expression.

    `name` is the metadata field (kind "key") or the header in lower case (kind "header"), otherwise
    "". `default` stands in where the fact is missing; None: there is no default.
    """

    source: str
    kind: Literal["key", "header", "path", "model"]
    name: str
    default: str | None


_STRING = r"""(?:"(?:[^"\\]|\\["\\])*"|'(?:[^'\\]|\\['\\])*')"""
_FIELD = re.compile(r"(apiKey\s*\.\s*)?([A-Za-z_][A-Za-z0-9_-]*)")
_INDEXED = re.compile(rf"(apiKey|request\s*\.\s*headers)\s*\[\s*({_STRING})\s*\]")
_DEFAULT = re.compile(rf"default\s*\((.*),\s*({_STRING})\s*\)", re.DOTALL)
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_RESERVED = ("apiKey", "request", "llm", "default")
_FORMS = 'user_id, apiKey.user_id, request.headers["x-team"], request.path, llm.model'


@lru_cache(maxsize=1024)  # `fastgw check` asks once for each key
def parse_expression(text: str) -> Expression:
    """Read one expression. Raises ValueError with what is wrong and what to write."""
    source = text.strip()
    wrapped = _DEFAULT.fullmatch(source)
    if wrapped is None:
        if source.startswith("default") and "(" in source:
            raise ValueError('write default(EXPR, "VALUE"), with the value in quotes')
        return _fact(source, source, None)
    inner = wrapped[1].strip()
    if inner.startswith("default") and "(" in inner:
        raise ValueError("default(…) inside default(…): only one default can apply")
    return _fact(source, inner, _unquote(wrapped[2]))


def _fact(source: str, text: str, default: str | None) -> Expression:
    if not text:
        raise ValueError(f"an expression is empty; write one of {_FORMS}")
    compact = re.sub(r"\s*\.\s*", ".", text)
    if compact == "request.path":
        return Expression(source, "path", "", default)
    if compact == "llm.model":
        return Expression(source, "model", "", default)
    field = _FIELD.fullmatch(text)
    if field is not None and (field[1] or field[2] not in _RESERVED):
        return Expression(source, "key", field[2], default)
    indexed = _INDEXED.fullmatch(text)
    if indexed is None:
        raise ValueError(_advice(compact))
    name = _unquote(indexed[2])
    if indexed[1] == "apiKey":
        if not name:
            raise ValueError('apiKey[""] names no field; write apiKey["user_id"]')
        return Expression(source, "key", name, default)
    if not _HEADER_NAME.fullmatch(name):
        raise ValueError('the header name is not a valid one; write request.headers["x-team"]')
    return Expression(source, "header", name.lower(), default)


def _unquote(literal: str) -> str:
    return re.sub(r"\\(.)", r"\1", literal[1:-1])


def _advice(text: str) -> str:
    if text.startswith("request.header"):
        return 'write a header as request.headers["x-team"]'
    if text.startswith("apiKey"):
        return 'write a metadata field as apiKey.user_id or apiKey["user_id"]'
    root, dot, rest = text.partition(".")
    near = difflib.get_close_matches(root, ("apiKey", "request", "llm"), 1, 0.5)
    if near and dot and root != near[0] and root.replace("_", "a").isalpha():
        return f"not an expression; did you mean {near[0]}.{rest}?"
    known = difflib.get_close_matches(text, ("request.path", "llm.model"), 1, 0.5)
    if known:
        return f"not an expression; did you mean {known[0]}?"
    return f"not an expression; write one of {_FORMS}"
