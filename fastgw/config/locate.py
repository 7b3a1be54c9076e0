"""Where in a TOML text each setting stands; tomllib does not tell.

A scanner over text that tomllib has already accepted: it needs to know where names and values begin
and end, not whether they are valid. A place is named by the path to it, with the index of each
element of an array: `[[keys]]` the second time is ("keys", 1), its name ("keys", 1, "name").
"""

from __future__ import annotations

import tomllib

Path = tuple[str | int, ...]

_SPACE = " \t"
_BLANK = " \t\n"


def locate(text: str) -> dict[Path, int]:
    """Line, from 1, of every table, element and setting of a valid TOML text, by path."""
    return _Scanner(text.replace("\r\n", "\n")).scan()


def line_of(lines: dict[Path, int], path: Path) -> int:
    """The line of a path, or of the nearest thing around it; 1 where there is none."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return 1


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.counted = 0
        """Up to where `line` has counted."""
        self.line = 1
        self.lines: dict[Path, int] = {}
        self.lists: dict[Path, int] = {}
        """How many elements each `[[list]]` has so far."""

    def scan(self) -> dict[Path, int]:
        table: Path = ()
        while self.skip(_BLANK):
            if self.text.startswith("[[", self.at):
                self.at += 2
                table = self.element(self.names())
                self.skip(_SPACE)
                self.at += 2
            elif self.text[self.at] == "[":
                self.at += 1
                table = self.resolve(self.names())
                self.skip(_SPACE)
                self.at += 1
            else:
                self.setting(table)
        return self.lines

    def resolve(self, names: Path) -> Path:
        """Names of a header as a path: a list on the way means its latest element."""
        path: Path = ()
        for name in names:
            path = (*path, name)
            self.mark(path)
            if path in self.lists:
                path = (*path, self.lists[path] - 1)
        return path

    def element(self, names: Path) -> Path:
        path = (*self.resolve(names[:-1]), names[-1])
        self.mark(path)
        index = self.lists.get(path, 0)
        self.lists[path] = index + 1
        self.mark((*path, index))
        return (*path, index)

    def setting(self, table: Path) -> None:
        path = table
        names = self.names()
        for name in names:
            path = (*path, name)
            self.mark(path)
        self.skip(_SPACE)
        self.at += 1  # the "="
        self.value(path)

    def names(self) -> Path:
        """The parts of a dotted name; stops before what follows it."""
        parts: list[str] = []
        while True:
            self.skip(_SPACE)
            start = self.at
            if self.text[start] in "\"'":
                self.string()
                literal = self.text[start : self.at]
                parts.append(str(tomllib.loads(f"x = {literal}")["x"]))
            else:
                while self.at < len(self.text) and self.text[self.at] not in " \t.=]":
                    self.at += 1
                parts.append(self.text[start : self.at])
            self.skip(_SPACE)
            if self.text[self.at] != ".":
                return tuple(parts)
            self.at += 1

    def value(self, path: Path) -> None:
        self.skip(_SPACE)
        first = self.text[self.at]
        if first in "\"'":
            self.string()
        elif first == "[":
            self.array(path)
        elif first == "{":
            self.inline_table(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in ",]}#\n":
                self.at += 1

    def array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self.skip(_BLANK) and self.text[self.at] != "]":
            self.mark((*path, index))
            self.value((*path, index))
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
            index += 1
        self.at += 1

    def inline_table(self, path: Path) -> None:
        self.at += 1
        while self.skip(_BLANK) and self.text[self.at] != "}":
            self.setting(path)
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
        self.at += 1

    def string(self) -> None:
        quote = self.text[self.at]
        fence = quote * 3
        if not self.text.startswith(fence, self.at):
            fence = quote
        self.at += len(fence)
        while not self.text.startswith(fence, self.at):
            self.at += 2 if quote == '"' and self.text[self.at] == "\\" else 1
        self.at += len(fence)
        if len(fence) == 3:
            # Up to two quotes may stand directly before the closing three.
            while self.text.startswith(quote, self.at):
                self.at += 1

    def skip(self, blank: str) -> bool:
        """Pass over blanks and, where lines may end, comments. False at the end of the text."""
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in blank:
                self.at += 1
            elif char == "#" and "\n" in blank:
                end = self.text.find("\n", self.at)
                self.at = len(self.text) if end < 0 else end
            else:
                return True
        return False

    def mark(self, path: Path) -> None:
        self.line += self.text.count("\n", self.counted, self.at)
        self.counted = self.at
        self.lines.setdefault(path, self.line)
