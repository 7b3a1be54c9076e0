"""`load`: files in, one checked `Config` out, or every problem at once."""

from __future__ import annotations

import hashlib
import os
import ssl
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastgw.config.catalogs import read_catalog
from fastgw.config.consistency import Draft, Entry, check
from fastgw.config.heap import many_made
from fastgw.config.problems import Place, Problems, Source, meant, nearest, quoted
from fastgw.config.secret import credential_in, read_digests
from fastgw.config.source import Sources
from fastgw.config.tables import (
    LATER_SETTINGS,
    LISTED_TABLES,
    REQUIRED,
    SINGLE_TABLES,
    Config,
    Key,
    settings_of,
    spellings,
)
from fastgw.config.values import BAD, ValueReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fastgw.config.tables import Listed, Setting

from fastgw.errors import ConfigError

_TABLES = SINGLE_TABLES | LISTED_TABLES
_READ_FILES = {"server.tls_cert", "server.tls_key", "upstreams.ca_file"}
"""Files that fastgw reads: PEM, relative to the file that names them."""
_SECRET_FILES = {"admin.token_file", "upstreams.api_key_file"}
"""Files that hold a credential of ours, likewise."""


def load(paths: Sequence[str | Path], environ: Mapping[str, str] = os.environ) -> Config:
    """Read and check a configuration.

    `paths` are files or folders; a folder stands for its *.toml in the order of their names. Files
    are merged: listed tables add up, a setting of a single table may stand in one file only.
    `environ` is what `${VAR}` refers to.

    Raises ConfigError with every problem of the run: a line each, in file order, with file, line,
    setting, what is wrong and what to write. No problem holds a credential.
    """
    if not paths:
        raise ConfigError(["no configuration file is named; give one with --config config.toml"])
    with many_made():
        return _load(paths, environ)


def _load(paths: Sequence[str | Path], environ: Mapping[str, str]) -> Config:
    problems = Problems()
    sources = Sources(environ, problems)
    sources.add(paths)
    draft = _Reader(environ, problems).read(sources)
    check(draft, problems)
    found = problems.lines()
    if found:
        raise ConfigError(found)
    values: dict[str, Any] = {
        name: SINGLE_TABLES[name](**entry.values) for name, entry in draft.single.items()
    }
    for name, entries in draft.listed.items():
        values[name] = tuple(LISTED_TABLES[name](**entry.values) for entry in entries)
    values["keys"] = tuple(key if isinstance(key, Key) else Key(**key.values) for key in draft.keys)
    return Config(**values, catalog=tuple(draft.catalog), digest=_digest(sources.files))


def _digest(files: Sequence[Source]) -> str:
    total = hashlib.sha256()
    for source in files:
        # The length keeps a text that moves from one file to the next from giving the same digest.
        encoded = source.text.encode()
        total.update(b"%d\n" % len(encoded))
        total.update(encoded)
    return total.hexdigest()


class _Reader:
    def __init__(self, environ: Mapping[str, str], problems: Problems) -> None:
        self.environ = environ
        self.problems = problems
        self.single: dict[str, dict[str, tuple[Any, Place]]] = {name: {} for name in SINGLE_TABLES}
        self.listed: dict[str, list[Entry]] = {name: [] for name in LISTED_TABLES if name != "keys"}
        self.keys: list[Key | Entry] = []
        self._known = {
            name: (settings_of(table), spellings(table)) for name, table in _TABLES.items()
        }
        self._starts: list[tuple[int, Source]] = []
        """The first key of each file, and the file."""
        self.catalog: list[Listed] = []
        self.sources: Sources

    def read(self, sources: Sources) -> Draft:
        self.sources = sources
        for source in sources.files:
            for name, value in (source.data or {}).items():
                self._table(source, name, value)
        # What is missing is said of the first file, at its first line.
        first = sources.files[0] if sources.files else Source("", Path(), 0)
        single = {
            name: self._entry(name, found, Place(first, (name,)))
            for name, found in self.single.items()
        }
        complete = sources.complete and bool(sources.files)
        return Draft(single, self.listed, self.keys, self._key, complete, self.catalog)

    def _table(self, source: Source, name: str, value: Any) -> None:
        place = Place(source, (name,))
        if name not in _TABLES:
            self._unknown_table(source, name, value)
        elif source.keys_only and name != "keys":
            self.problems.add(
                place, "a key file holds [[keys]] only; move this into the file that names it"
            )
        elif name in SINGLE_TABLES:
            if not isinstance(value, dict):
                self.problems.add(place, f"is one table; write [{name}]")
                return
            for setting, raw in value.items():
                earlier = self.single[name].setdefault(setting, (raw, place.at(setting)))
                if earlier[1].source is not source:
                    self.problems.add(
                        place.at(setting), f"is already set at {earlier[1]}; keep one of the two"
                    )
        elif not isinstance(value, list) or not all(isinstance(item, dict | Key) for item in value):
            self.problems.add(place, f"may stand many times; write [[{name}]] above each entry")
        elif name == "keys":
            self._keys(source, value)
        else:
            for index, item in enumerate(value):
                self.listed[name].append(self._element(source, name, index, item))

    def _element(self, source: Source, name: str, index: int, item: dict[str, Any]) -> Entry:
        home = Place(source, (name, index))
        raws = {setting: (raw, home.at(setting)) for setting, raw in item.items()}
        return self._entry(name, raws, home)

    def _keys(self, source: Source, items: list[Key | dict[str, Any]]) -> None:
        self._starts.append((len(self.keys), source))
        read = self.sources.plain_keys.read
        self.keys += [
            item
            if isinstance(item, Key)
            else read(item) or self._element(source, "keys", index, item)
            for index, item in enumerate(items)
        ]

    def _key(self, number: int) -> Entry:
        """The entry of a key, by its place in `keys`."""
        key = self.keys[number]
        if not isinstance(key, Key):
            return key
        start, source = self._starts[
            bisect_right(self._starts, number, key=lambda each: each[0]) - 1
        ]
        item = source.raw_keys()[number - start]
        return self._element(source, "keys", number - start, item)

    def _unknown_table(self, source: Source, name: str, value: Any) -> None:
        if isinstance(value, dict | list):
            near = nearest(name, _TABLES)
            brackets = "[[{}]]" if near in LISTED_TABLES else "[{}]"
            known = ", ".join(f"[{n}]" for n in SINGLE_TABLES)
            known += ", " + ", ".join(f"[[{n}]]" for n in LISTED_TABLES)
            hint = f"did you mean {brackets.format(near)}?" if near else f"there is {known}"
            place = Place(source, (name, 0) if isinstance(value, list) else (name,))
            self.problems.add(place, f"unknown table; {hint}")
            return
        homes = [table for table in SINGLE_TABLES if name in spellings(SINGLE_TABLES[table])]
        hint = f"put it under [{homes[0]}]" if homes else "put it under its table, as [server]"
        self.problems.add(Place(source, (), (name,)), f"stands outside of any table; {hint}")

    def _entry(self, table: str, raws: dict[str, tuple[Any, Place]], home: Place) -> Entry:
        """Read one table. Fields that are wrong are BAD in the entry, and reported."""
        settings, written = self._known[table]
        for name, (_, place) in raws.items():
            if name not in written:
                self.problems.add(place, _unknown_setting(table, name, tuple(written)))
        entry = Entry({}, {}, home, {name: raw for name, (raw, _) in raws.items()})
        for name, setting in settings.items():
            if setting.spelled:
                given = [way for way in setting.spelled if way in raws]
                if given:
                    entry.places[name] = raws[given[0]][1]
                if table != "keys":  # whose secrets are read below
                    entry.values[name] = self._either(table, setting, given, raws)
            elif name in raws:
                raw, place = raws[name]
                entry.places[name] = place
                if name == "limit" and entry.values.get("unit") == "usd":
                    setting = setting._replace(kind="usd")
                entry.values[name] = self._value(f"{table}.{name}", setting, raw, place)
            elif setting.default is REQUIRED:
                self.problems.add(home.at(name), f"missing; add it: {setting.doc}")
                entry.values[name] = BAD
            else:
                entry.values[name] = setting.default
        if table == "keys":
            digests = read_digests(entry.written, home, self.environ, self.problems)
            entry.values["digest"], entry.values["previous_digest"] = digests
        return entry

    def _either(
        self, table: str, setting: Setting, given: list[str], raws: dict[str, tuple[Any, Place]]
    ) -> Any:
        """The value of a field that may be written in one of several ways."""
        if not given:
            return setting.default
        raw, place = raws[given[-1]]
        if len(given) > 1:
            self.problems.add(place, f"here are {' and '.join(given)}; keep one")
            return BAD
        return self._value(f"{table}.{given[0]}", setting, raw, place)

    def _value(self, path: str, setting: Setting, raw: Any, place: Place) -> Any:
        def say(below: tuple[str | int, ...], message: str) -> None:
            self.problems.add(place.at(*place.setting, *below), message)

        value = ValueReader(setting, path, self.environ, say).read(raw)
        if path in _READ_FILES and isinstance(value, str) and value:
            return self._pem(value, place)
        if path in _SECRET_FILES and value is not BAD:
            try:
                return credential_in(value, place)
            except ValueError as error:
                self.problems.add(place, str(error))
                return BAD
        if path == "pricing.catalogs" and isinstance(value, tuple):
            raws = [raw] if isinstance(raw, str) else raw
            pairs = zip(value, raws, strict=True)
            return tuple(
                self._catalog(name, quoted(raw), place) for name, raw in pairs if name is not BAD
            )
        return value

    def _catalog(self, name: str, shown: str, place: Place) -> str:
        path = place.source.folder / name
        try:
            self.catalog += read_catalog(path.read_bytes())
        except OSError as error:
            reason = (error.strerror or "unknown reason").lower()
            self.problems.add(
                place, f"{shown} cannot be read: {reason}; check the path, relative to this file"
            )
        except ValueError as error:
            self.problems.add(place, f"{shown}: {error}; see docs/pricing.md")
        return str(path)

    def _pem(self, value: str, place: Place) -> Any:
        path = place.source.folder / value
        try:
            content = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = (getattr(error, "strerror", None) or "not a path").lower()
            self.problems.add(
                place, f"the file cannot be read: {reason}; check the path, relative to this file"
            )
            return BAD
        if b"-----BEGIN " not in content:
            self.problems.add(place, "the file is not PEM; convert it with: openssl")
            return BAD
        if place.setting[-1:] == ("ca_file",):
            try:
                ssl.create_default_context(cafile=path)
            except OSError:  # SSLError is one
                self.problems.add(
                    place, "no certificate in it can be read; look whether it is whole"
                )
                return BAD
        return str(path)


def _unknown_setting(table: str, name: str, known: tuple[str, ...]) -> str:
    later = LATER_SETTINGS.get(f"{table}.{name}")
    if later is not None:
        return f"is not available in this version; {later}"
    if nearest(name, known) is None:
        homes = [other for other, cls in _TABLES.items() if name in spellings(cls)]
        if homes:
            brackets = "[[{}]]" if homes[0] in LISTED_TABLES else "[{}]"
            return f"unknown setting; it belongs under {brackets.format(homes[0])}"
    return f"unknown setting; {meant(name, known)}"
