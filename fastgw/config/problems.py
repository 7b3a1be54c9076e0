"""What is wrong with a configuration: every problem of a run, one line each, in file order."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastgw.config.locate import line_of, locate

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from fastgw.config.locate import Path as TomlPath


@dataclass(slots=True, eq=False)
class Source:
    """One file, read. `name` is how the user named it, `folder` where its relative paths begin."""

    name: str
    folder: Path
    order: int
    text: str = field(default="", repr=False)
    data: dict[str, Any] | None = field(default=None, repr=False)
    """None where the file could not be parsed. Plain [[keys]] may be read already."""
    keys_only: bool = False
    _lines: dict[TomlPath, int] | None = field(default=None, repr=False)
    _raw_keys: list[dict[str, Any]] | None = field(default=None, repr=False)

    def line_of(self, path: TomlPath) -> int:
        """The line of what stands there, from 1; 0 where the file could not be parsed.

        Lines are looked for when the first is asked for: they take longer than the text to read,
        and a file without a problem needs none.
        """
        if self.data is None:
            return 0
        if self._lines is None:
            try:
                self._lines = locate(self.text)
            except RecursionError:
                self._lines = {}
        return line_of(self._lines, path)

    def raw_keys(self) -> list[dict[str, Any]]:
        """All [[keys]] as they stand in the file."""
        if self._raw_keys is None:
            self._raw_keys = list(tomllib.loads(self.text)["keys"])
        return self._raw_keys


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: a file, a table or an element of a list, a setting in it."""

    source: Source
    table: TomlPath = ()
    setting: TomlPath = ()

    def at(self, *setting: str | int) -> Place:
        """A setting of this table."""
        return Place(self.source, self.table, setting)

    @property
    def line(self) -> int:
        """From 1; 0 where the file could not be parsed."""
        return self.source.line_of((*self.table, *self.setting))

    @property
    def label(self) -> str:
        """`[server] listen`, `[[keys]] metadata.tier`."""
        parts = []
        if self.table:
            name = shown_name(str(self.table[0]))
            parts.append(f"[[{name}]]" if len(self.table) > 1 else f"[{name}]")
        names = [shown_name(part) for part in self.setting if isinstance(part, str)]
        if names:
            parts.append(".".join(names))
        return " ".join(parts)

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}" if self.line else self.source.name


class Problems:
    """Collects problems and puts them in order."""

    def __init__(self) -> None:
        self._found: list[tuple[int, int, int, str]] = []

    def add(self, place: Place, message: str, line: int = 0) -> None:
        """Note one problem. `line` is for files that could not be parsed, so have no places."""
        line = line or place.line
        where = f"{place.source.name}:{line}" if line else place.source.name
        label = f" {place.label}:" if place.label else ""
        entry = (place.source.order, line, len(self._found), f"{where}:{label} {message}")
        self._found.append(entry)

    def lines(self) -> list[str]:
        """All problems in file order."""
        return [text for _, _, _, text in sorted(self._found)]


def quoted(text: str) -> str:
    """A text in double quotes, on one line whatever it holds, cut at 60 characters."""
    if len(text) > 60:
        text = text[:59] + "…"
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text) + '"'


def shown_name(name: str) -> str:
    """A name as TOML writes it: bare where it can be."""
    bare = name and all(c.isascii() and (c.isalnum() or c in "_-") for c in name)
    return name if bare else quoted(name)


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that `word` was probably meant to be."""
    by_lower = {name.lower().replace("-", "_"): name for name in names}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), by_lower, 1, 0.6)
    return by_lower[found[0]] if found else None


def meant(word: str, names: Iterable[str]) -> str:
    """`did you mean "x"?`, or the names there are."""
    names = list(names)
    near = nearest(word, names)
    if near is not None:
        return f"did you mean {quoted(near)}?"
    if not names:
        return "there is none"
    return "there is " + ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
