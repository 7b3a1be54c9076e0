"""Windows: the period in which an account's count lives, and the name it is stored under.

Epoch windows are aligned as envoyproxy/ratelimit does: start = floor(now / unit) * unit in UTC,
a week is 7 days, a month 30, a year 365. Calendar windows follow the civil calendar of a time zone,
summer time included. The start is part of the account's name: a new window is a new count, so that
nothing ever has to be reset.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import quote, unquote
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from fastgw.config.tables import CalendarWindow as CalendarSetting

UNITS = {
    "second": 1,
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "week": 7 * 86_400,
    "month": 30 * 86_400,
    "year": 365 * 86_400,
}
"""Length in seconds of each epoch-aligned window."""

FAR: Final = 2**53
"""An epoch second that will not come."""

GRACE = 3600
"""Seconds that the store keeps a count after its window: late debits and reports find it."""


USAGE = "usage/"
"""Stands for a budget's name in the accounts of the usage report; no budget can have it."""

USAGE_KEYS = "usage/|"
"""How the keys of those accounts begin."""


class Window(Protocol):
    """A rule that cuts time into periods."""

    @property
    def name(self) -> str:
        """Part of the account's name: two rules never share counts."""

    def bounds(self, now: float) -> tuple[int, int]:
        """Epoch seconds of the first moment of the window that holds `now` and of the next."""


class EpochWindow:
    """second, minute, hour, day, week, month, year, counted from the epoch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._length = UNITS[name]

    def bounds(self, now: float) -> tuple[int, int]:
        """See Window."""
        start = int(now // self._length) * self._length
        return start, start + self._length


class CalendarWindow:
    """A civil day, week (from Monday), month or year in a time zone."""

    def __init__(self, unit: str, timezone: str) -> None:
        self.name = f"{unit}@{timezone}"
        self._unit = unit
        self._zone = ZoneInfo(timezone)

    def bounds(self, now: float) -> tuple[int, int]:
        """See Window."""
        local = datetime.fromtimestamp(now, self._zone)
        start = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        if self._unit == "week":
            start -= timedelta(days=start.weekday())
            end = start + timedelta(days=7)
        elif self._unit == "month":
            start = start.replace(day=1)
            end = (start + timedelta(days=32)).replace(day=1)
        elif self._unit == "year":
            start = start.replace(month=1, day=1)
            end = start.replace(year=start.year + 1)
        else:
            end = start + timedelta(days=1)
        return int(start.timestamp()), int(end.timestamp())


def reset_seconds(end: int, now: float) -> int:
    """Seconds until a window that ends at `end` is over, rounded up; 0 where it never is."""
    return max(0, int(end - now) + 1) if end < FAR else 0


class NoWindow:
    """For what runs at one time: nothing is counted up, so nothing is reset."""

    name = "now"

    def bounds(self, now: float) -> tuple[int, int]:
        """See Window."""
        return 0, FAR


def make_window(setting: str | CalendarSetting) -> Window:
    """The window that a budget's setting names."""
    if isinstance(setting, str):
        return EpochWindow(setting)
    return CalendarWindow(setting.calendar, setting.timezone)


class AccountName(NamedTuple):
    """What is counted: a budget's unit, in a window, for one value of each of its `per`."""

    budget: str
    unit: str
    window: str
    start: int
    values: tuple[str, ...]


def account_key(name: AccountName) -> str:
    """The name as one string for the store. Parts are percent-encoded, so that two different
    accounts can never share a key."""
    parts = (name.budget, name.unit, name.window, str(name.start), *name.values)
    return "|".join(quote(part, safe="@/:.,=+ ") for part in parts)


def read_account_key(key: str) -> AccountName | None:
    """The name that `account_key` wrote, or None if it is none of ours."""
    parts = [unquote(part) for part in key.split("|")]
    if len(parts) < 4 or not parts[3].isdigit():
        return None
    return AccountName(parts[0], parts[1], parts[2], int(parts[3]), tuple(parts[4:]))
