"""TOML as tomllib reads it, and 100,000 `[[keys]]` in a tenth of the time.

1. A text is cut at its lines `[[keys]]`. A part that tomllib reads by itself leaves it between two
   statements, since TOML is read from left to right: so no cut was inside a text or a list.
2. Statements of two parts can only meet in a table of the same name. Where a name other than `keys`
   stands in two parts, the text is read as a whole; likewise where a part cannot be read.
3. A part that holds plain settings only, one in a line (texts, lists and tables of texts, true and
   false, a time in UTC), is read by an expression; whatever else by tomllib.

So there is nothing that tomllib would read otherwise or refuse; tests compare the two.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_CUT = "\n[[keys]]\n"
_TEXT = r"[^\"\\\x00-\x1f\x7f]*+"
_PAIR = rf'[A-Za-z0-9_-]++ = "{_TEXT}"'
_TIME = r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\dZ"
_VALUE = (
    rf'"{_TEXT}"|true|false|{_TIME}|\{{ {_PAIR}(?:, {_PAIR})* \}}|\["{_TEXT}"(?:, "{_TEXT}")*\]'
)
_LINE = rf"[A-Za-z0-9_-]++ = (?:{_VALUE})|#[^\x00-\x1f\x7f]*+"
_USUAL = re.compile(
    rf'name = "({_TEXT})"\n(key(?:_hash)?) = "({_TEXT})"'
    rf"(?:\nmetadata = \{{ ({_PAIR}(?:, {_PAIR})*) \}})?\n*"
)
_PLAIN = re.compile(rf"\n*(?:(?:{_LINE})(?:\n+|\Z))*", re.ASCII)
_SETTING = re.compile(r"^([A-Za-z0-9_-]+) = (.*)", re.MULTILINE)
_PAIRS = re.compile(r'([A-Za-z0-9_-]+) = "([^"]*)"')
_ITEMS = re.compile(r'"([^"]*)"')


def loads(text: str, plain: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    """What a text says. Raises what tomllib.loads raises: TOMLDecodeError, RecursionError.

    `plain` is handed elements of `[[keys]]` as they are read, though not all: what it returns
    stands in their place, unless that is None.
    """
    lines = "\n" + (text.replace("\r\n", "\n") if "\r" in text else text)
    found = _in_parts(lines, plain or _as_it_is) if _CUT in lines else None
    return tomllib.loads(text) if found is None else found


def _as_it_is(entry: dict[str, Any]) -> dict[str, Any]:
    return entry


def _in_parts(text: str, plain: Callable[[dict[str, Any]], Any]) -> dict[str, Any] | None:
    """None where the text must be read as a whole. One part at a time: the next takes its room."""
    keys: list[Any] = []
    find, size = text.find, len(_CUT)
    end = find(_CUT)
    try:
        found = tomllib.loads(text[:end])
        if "keys" in found:
            return None
        found["keys"] = keys
        while end >= 0:
            at = end + size
            end = find(_CUT, at)
            part = text[at:end] if end >= 0 else text[at:]
            entry = _entry(part)
            if entry is not None:
                keys.append(plain(entry) or entry)
                continue
            more = tomllib.loads(f"[[keys]]\n{part}")
            keys += more.pop("keys")
            if not found.keys().isdisjoint(more):
                return None
            found.update(more)
    except (ValueError, RecursionError):
        return None
    return found


def _entry(part: str) -> dict[str, Any] | None:
    """The settings of one element; None if it is not plain."""
    usual = _USUAL.fullmatch(part)
    if usual is not None:
        name, way, secret, pairs = usual.groups()
        entry: dict[str, Any] = {"name": name, way: secret}
        if pairs is not None:
            found = _PAIRS.findall(pairs)
            entry["metadata"] = table = dict(found)
            if len(table) != len(found):
                return None
        return entry
    if _PLAIN.fullmatch(part) is None:
        return None
    settings = _SETTING.findall(part)
    entry = {}
    for name, value in settings:
        first = value[0]
        if first == '"':
            entry[name] = value[1:-1]
        elif first == "{":
            found = _PAIRS.findall(value)
            entry[name] = table = dict(found)
            if len(table) != len(found):
                return None
        elif first == "[":
            entry[name] = _ITEMS.findall(value)
        elif first in "0123456789":
            entry[name] = datetime.datetime.fromisoformat(value)
        else:
            entry[name] = value == "true"
    return entry if len(entry) == len(settings) else None
