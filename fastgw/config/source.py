"""From paths to parsed files: folders, key files, encodings, syntax errors."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING

from fastgw.config.plain_keys import PlainKeys
from fastgw.config.problems import Place, Source
from fastgw.config.toml import loads
from fastgw.config.values import expand

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastgw.config.problems import Problems

_WHERE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


class Sources:
    """The files of one run in the order in which they count.

    `complete` says that every file could be read: only then can one know what is missing. In the
    `data` of a file a plain key is read already.
    """

    def __init__(self, environ: Mapping[str, str], problems: Problems) -> None:
        self.files: list[Source] = []
        self.complete = True
        self._environ = environ
        self.plain_keys = PlainKeys(environ)
        self._problems = problems
        self._seen: set[Path] = set()
        self._count = 0

    def add(self, paths: Iterable[str | Path]) -> None:
        """Read files, and the *.toml of folders by name; then the key files that each names."""
        for path in map(Path, paths):
            if not path.is_dir():
                self._file(path, keys_only=False)
                continue
            found = sorted(path.glob("*.toml"))
            if not found:
                self._failed(str(path), path, "a folder without *.toml; put config.toml there")
            for each in found:
                self._file(each, keys_only=False)

    def _file(self, path: Path, *, keys_only: bool) -> None:
        real = path.resolve()
        if real in self._seen:
            return
        self._seen.add(real)
        name = str(path)
        try:
            text = path.read_bytes().decode("utf-8")
        except OSError as error:
            reason = (error.strerror or "unknown reason").lower()
            self._failed(name, path, f"cannot be read: {reason}; check the path and its rights")
            return
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            self._failed(name, path, "is not UTF-8; save it in that encoding", line)
            return
        try:
            data = loads(text, self.plain_keys.read)
        except (ValueError, RecursionError) as error:  # ValueError: also numbers too long to read
            where = _WHERE.search(str(error))
            at_line = where is not None and where[1] is not None
            line = int(where[1]) if where and where[1] else text.rstrip().count("\n") + 1
            column = f" at column {where[2]}" if at_line and where else ""
            reason = _WHERE.sub("", str(error))
            if isinstance(error, RecursionError):
                reason = "nested too deeply"
            self._failed(
                name, path, f"not TOML{column}: {reason}; see https://toml.io for the syntax", line
            )
            return
        source = Source(name, path.parent, self._count, text, data, keys_only)
        self._count += 1
        self.files.append(source)
        self._key_files(source)

    def _failed(self, name: str, path: Path, message: str, line: int = 0) -> None:
        source = Source(name, path.parent, self._count)
        self._count += 1
        self.complete = False
        self._problems.add(Place(source), message, line)

    def _key_files(self, source: Source) -> None:
        auth = (source.data or {}).get("auth")
        patterns = auth.get("key_files", ()) if isinstance(auth, dict) else ()
        if isinstance(patterns, str):
            patterns = [patterns]
        if source.keys_only or not isinstance(patterns, list):
            return
        for index, raw in enumerate(patterns):
            try:
                pattern = expand(raw, self._environ)
            except (TypeError, ValueError):
                pattern = "\x00"
            if "\x00" in pattern:
                self.complete = False
                continue  # the reader of [auth] says what is wrong
            absolute = Path(pattern).is_absolute()
            full = pattern if absolute else str(Path(glob.escape(str(source.folder))) / pattern)
            found = sorted(glob.glob(full, recursive=True))
            if not found and not glob.has_magic(pattern):
                self.complete = False
                self._problems.add(
                    Place(source, ("auth",)).at("key_files", index),
                    "a key file that is not there; check the path, relative to this file",
                )
            for each in found:
                if Path(each).is_file():
                    self._file(Path(each), keys_only=True)
                elif not glob.has_magic(pattern):
                    self.complete = False
                    self._problems.add(
                        Place(source, ("auth",)).at("key_files", index),
                        'a folder; name the files in it, as "keys.d/*.toml"',
                    )
