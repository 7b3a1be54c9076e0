"""One TOML value to one value in base units, by the kind of its setting.

Numbers, sizes, durations and flags may also come from the environment, as "${PORT_LIMIT}".
"""

from __future__ import annotations

import datetime
import re
import zoneinfo
from typing import TYPE_CHECKING, Any

from fastgw.config.formats import PAIRS, TEXTS
from fastgw.config.problems import meant, quoted
from fastgw.config.tables import AUTO, CalendarWindow, Rates
from fastgw.money import dollars, read_usd

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fastgw.config.tables import Setting

BAD: Any = object()
"""Stands for a value that could not be read; its problem has been reported."""

MOST_WHOLE = 2**53 - 1
"""Largest whole number: Redis scripts count in doubles, which are exact up to here."""

LONGEST = 366 * 86_400
"""Longest duration: a year. A timer beyond that is a mistake in the unit."""

_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Za-z_][A-Za-z0-9_]*)(?:(:-)([^}]*))?\}|(\{))")
_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([A-Za-z]*)")

_SIZES = {
    "": 1, "b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3,
    "kb": 1000, "mb": 1000**2, "gb": 1000**3,
}  # fmt: skip
_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

WINDOWS = ("second", "minute", "hour", "day", "week", "month", "year")
CALENDARS = ("day", "week", "month", "year")


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Put in `${VAR}` and `${VAR:-default}`; `$$` is one `$`; any other `$` stays.

    A default stands in for a variable that is unset or empty. Raises ValueError that names every
    unset variable, never a value.
    """
    unset: list[str] = []

    def put(match: re.Match[str]) -> str:
        dollar, name, has_default, default, broken = match.groups()
        if dollar:
            return "$"
        if broken:
            raise ValueError('has a "${" that is no ${VAR}; for the two characters write "$${"')
        value = environ.get(name)
        if has_default:
            return value or default
        if value is None:
            unset.append(name)
            return ""
        return value

    expanded = _VARIABLE.sub(put, text)
    if unset:
        names = ", ".join(dict.fromkeys(unset))
        raise ValueError(
            f"environment variable {names} is not set; set it, or write ${{{unset[0]}:-default}}"
        )
    return expanded


class ValueReader:
    """Reads the value of one setting; `say(where, what)` is told of each thing wrong."""

    def __init__(
        self,
        setting: Setting,
        place: str,
        environ: Mapping[str, str],
        say: Callable[[tuple[str | int, ...], str], None],
    ) -> None:
        self.setting = setting
        self.place = place
        """Table and setting, as `server.listen`."""
        self.environ = environ
        self.say = say

    def read(self, raw: Any) -> Any:
        """The value in base units, or BAD after at least one problem has been told.

        A list or table with a wrong item is returned with BAD in its place, so that its sound items
        can still be compared with the rest of the configuration.
        """
        kind = self.setting.kind
        if kind == "tiers":
            return self._tiers(raw)
        if kind == "list" or self.setting.many:
            return self._list(raw)
        if kind == "table":
            return self._table(raw)
        if kind == "window" and isinstance(raw, dict):
            return self._calendar(raw)
        from_environment = isinstance(raw, str) and _VARIABLE.search(raw) is not None
        shown = self._shown(raw)
        try:
            value = expand(raw, self.environ) if isinstance(raw, str) else raw
            if kind == "workers":
                return self._workers(value, shown, from_environment)
            if kind == "number":
                return self._number(value, shown, from_environment)
            if kind == "usd":
                return self._usd(value, shown)
            if kind == "size":
                return self._size(value, shown, from_environment)
            if kind == "duration":
                return self._duration(value, shown, from_environment)
            if kind == "flag":
                return _flag(value, shown, from_environment)
            if kind == "time":
                return _time(value, shown)
            if not isinstance(value, str):
                raise ValueError(f"must be text in quotes, not {_type(value)}; {self._example()}")
            if kind == "choice":
                return self._choice(value, shown)
            if kind == "window":
                return _one_of(value, shown, WINDOWS)
            return self._text(value, shown)
        except ValueError as error:
            self.say((), str(error))
            return BAD

    def _shown(self, raw: Any) -> str:
        """How a message may show a value: as it stands in the file, and no credential at all."""
        if self.setting.private or (isinstance(raw, int) and raw.bit_length() > 200):
            return "the value"
        return quoted(raw if isinstance(raw, str) else str(raw))

    def _example(self) -> str:
        default = self.setting.default
        if isinstance(default, str) and default:
            return f"for example {quoted(default)}"
        return self.setting.doc

    def _text(self, value: str, shown: str) -> str:
        if "\x00" in value:
            raise ValueError("holds a NUL character; write the text without it")
        check = TEXTS.get(self.place)
        return check(value, shown) if check else value

    def _choice(self, value: str, shown: str) -> str:
        if value in self.setting.later:
            use = " or ".join(quoted(choice) for choice in self.setting.choices)
            raise ValueError(f"{quoted(value)} is not available in this version; use {use}")
        return _one_of(value, shown, self.setting.choices)

    def _list(self, raw: Any) -> Any:
        items = [raw] if isinstance(raw, str) else raw
        if not isinstance(items, list):
            self.say((), f'must be a list of texts, not {_type(raw)}; write ["…", "…"]')
            return BAD
        values = []
        for index, item in enumerate(items):
            where = () if isinstance(raw, str) else (index,)
            try:
                if not isinstance(item, str):
                    raise ValueError(f"a list of texts holds {_type(item)}; put each into quotes")
                values.append(self._text(expand(item, self.environ), self._shown(item)))
            except ValueError as error:
                self.say(where, str(error))
                values.append(BAD)
        return tuple(values)

    def _table(self, raw: Any) -> Any:
        if not isinstance(raw, dict):
            self.say((), f'must be a table, not {_type(raw)}; write {{ name = "value" }}')
            return BAD
        check = PAIRS.get(self.place)
        values = {}
        for name, item in raw.items():
            try:
                if isinstance(item, bool):
                    text = "true" if item else "false"
                elif isinstance(item, int):
                    text = str(item)
                elif isinstance(item, str):
                    text = expand(item, self.environ)
                else:
                    raise ValueError(f"must be text in quotes, not {_type(item)}")
                if not name:
                    raise ValueError("an entry has no name; give it one")
                values[name] = check(name, text, self._shown(item)) if check else text
            except ValueError as error:
                self.say((name,), str(error))
                values[name] = BAD
        return values

    def _calendar(self, raw: dict[str, Any]) -> Any:
        sound = True
        for name in raw:
            if name not in ("calendar", "timezone"):
                self.say((name,), f"unknown setting; {meant(name, ('calendar', 'timezone'))}")
                sound = False
        found: dict[str, str] = {}
        for name, default in (("calendar", None), ("timezone", "UTC")):
            item = raw.get(name, default)
            try:
                if not isinstance(item, str):
                    raise ValueError('write { calendar = "month", timezone = "Europe/Berlin" }')
                value = expand(item, self.environ)
                check = _zone if name == "timezone" else _calendar_unit
                found[name] = check(value, quoted(item))
            except ValueError as error:
                self.say((name,) if name in raw else (), str(error))
                sound = False
        return CalendarWindow(found["calendar"], found["timezone"]) if sound else BAD

    def _workers(self, value: Any, shown: str, from_environment: bool) -> int | float:
        if value == "auto":
            return AUTO
        if isinstance(value, str) and not (from_environment and value.isdigit()):
            raise ValueError(f'{shown} is not a number of workers; write 4, or "auto"')
        return self._number(value, shown, from_environment)

    def _number(self, value: Any, shown: str, from_environment: bool) -> int | float:
        if from_environment and re.fullmatch(r"[+-]?[0-9]+", value):
            value = int(value)
        elif from_environment and not self.setting.whole:
            value = _float(value, shown)
        sort = "a whole number" if self.setting.whole else "a number"
        if isinstance(value, str):
            digits = re.fullmatch(r"[0-9]+", value)
            hint = (
                f"write {value} without quotes"
                if digits and not from_environment
                else ("write digits without quotes")
            )
            raise ValueError(f"must be {sort}, not text; {hint}")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be {sort}, not {_type(value)}; write digits without quotes")
        if self.setting.whole and isinstance(value, float):
            hint = f"; write {int(value)}" if value.is_integer() else ""
            raise ValueError(f"must be a whole number, not one with a point{hint}")
        least = 1 if self.setting.least is None else self.setting.least
        most = MOST_WHOLE if self.setting.most is None else self.setting.most
        if not least <= value <= most:
            raise ValueError(f"{shown.strip(chr(34))} is out of range; write {least} to {most}")
        return value

    def _usd(self, value: Any, shown: str) -> int:
        try:
            nano = read_usd(value)
        except ValueError as error:
            raise ValueError(f"{shown.strip(chr(34))}: {error}") from None
        if nano > MOST_WHOLE:
            raise ValueError(
                f"{shown.strip(chr(34))} is out of range; write {dollars(MOST_WHOLE)} at most"
            )
        return nano

    def _tiers(self, raw: Any) -> Any:
        if not isinstance(raw, list) or not all(isinstance(item, dict) for item in raw):
            self.say((), "must be a list of tables; write [{ above = 200_000, input = 5 }]")
            return BAD
        known = Rates._fields
        tiers = []
        sound = True
        for index, item in enumerate(raw):
            found: dict[str, int | None] = dict.fromkeys(known)
            for name, value in item.items():
                try:
                    if name not in known:
                        raise ValueError(f"unknown setting; {meant(name, known)}")
                    if name != "above":
                        price = expand(value, self.environ) if isinstance(value, str) else value
                        found[name] = self._usd(price, quoted(str(value)))
                    elif type(value) is not int or not 0 < value <= MOST_WHOLE:
                        raise ValueError("must be a number of tokens; write above = 200_000")
                    else:
                        found[name] = value
                except ValueError as error:
                    self.say((index, name), str(error))
                    sound = False
            if "above" not in item:
                self.say((index,), "has no `above`: input tokens from which on it holds")
                sound = False
            elif sound:
                tiers.append(Rates(found["above"] or 0, *(found[name] for name in known[1:])))
        return tuple(sorted(tiers, key=lambda tier: tier.above)) if sound else BAD

    def _size(self, value: Any, shown: str, from_environment: bool) -> int:
        if isinstance(value, str):
            parts = _NUMBER_AND_UNIT.fullmatch(value)
            if (
                parts is None
                or parts[2].lower() not in _SIZES
                or (not parts[2] and not from_environment)
            ):
                raise ValueError(f'{shown} is not a size; write 65536, "64KiB" or "32MiB"')
            value = int(float(parts[1]) * _SIZES[parts[2].lower()])
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f'must be a size, not {_type(value)}; write 65536, "64KiB" or "32MiB"')
        if not 1 <= value <= MOST_WHOLE:
            raise ValueError(f"{shown.strip(chr(34))} is out of range; write 1 byte or more")
        return value

    def _duration(self, value: Any, shown: str, from_environment: bool) -> float:
        if isinstance(value, str):
            parts = _NUMBER_AND_UNIT.fullmatch(value)
            unit = parts[2] if parts else ""
            if parts is None or (unit not in _DURATIONS and not (from_environment and not unit)):
                raise ValueError(f'{shown} is not a duration; write 1.5, "1500ms", "10s" or "5m"')
            value = float(parts[1]) * _DURATIONS.get(unit, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f'must be a duration, not {_type(value)}; write 1.5, "1500ms", "10s" or "5m"'
            )
        least = self.setting.least
        lowest = "more than 0" if least is None else f"{least:g}"
        # Written so that nan is out of range, too.
        if not (least or 0) <= value <= LONGEST or (value == 0 and least is None):
            raise ValueError(
                f"{shown.strip(chr(34))} is out of range; write {lowest} to {LONGEST} seconds"
            )
        return float(value)


def _float(text: str, shown: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{shown} does not give a number; write one such as 0.8") from None


def _flag(value: Any, shown: str, from_environment: bool) -> bool:
    if from_environment and value in ("true", "false"):
        return bool(value == "true")
    if not isinstance(value, bool):
        hint = (
            f"write {value} without quotes"
            if value in ("true", "false")
            else ("write true or false without quotes")
        )
        raise ValueError(f"must be true or false, not {_type(value)}; {hint}")
    return value


def _time(value: Any, shown: str) -> float:
    example = "write 2026-12-31T00:00:00Z"
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{shown} is not a date and time; {example}") from None
    if not isinstance(value, datetime.datetime):
        raise ValueError(f"must be a date and time, not {_type(value)}; {example}")
    if value.tzinfo is None:
        raise ValueError(f"{shown} has no time zone; {example}, with Z or +01:00 at the end")
    seconds = value.timestamp()
    if seconds <= 0:
        raise ValueError(f"{shown} is before 1970; {example}")
    return seconds


def _one_of(value: str, shown: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"unknown choice {shown}; {meant(value, choices)}")
    return value


def _calendar_unit(value: str, shown: str) -> str:
    return _one_of(value, shown, CALENDARS)


def _zone(value: str, shown: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        zones = zoneinfo.available_timezones()
        if not zones:
            hint = 'this system has no time zone data: install tzdata, or write "UTC"'
        else:
            near = meant(value, zones)
            hint = near if near.startswith("did") else 'write one such as "Europe/Berlin"'
        raise ValueError(f"unknown time zone {shown}; {hint}") from None
    return value


def _type(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    for kind, words in (
        (str, "text"),
        (int | float, "a number"),
        (list, "a list"),
        (dict, "a table"),
        (datetime.datetime, "a date and time"),
        (datetime.date, "a date"),
        (datetime.time, "a time of day"),
    ):
        if isinstance(value, kind):
            return words
    return "something else"
