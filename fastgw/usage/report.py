"""What the reports of one stream say together: of each member the last value that is not null.

1. A report covers the text before it, if it has a sound count of its own.
2. One that has none adds what it says, but spoils nothing: where the whole would be no report any
   more, it is left out.
3. A report that is like the last sound one is sound: a stream may report in each of its events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgw.usage.api import MAX_COUNT

if TYPE_CHECKING:
    from collections.abc import KeysView

    from fastgw.usage.api import Api


class Report:
    """See the module. `said`: all of it, one dict for good."""

    __slots__ = ("_api", "_names", "said")

    def __init__(self, api: Api) -> None:
        self._api = api
        self._names: KeysView[str] | None = None  # of the last report with a sound count
        self.said: dict[str, Any] = {}

    def add(self, usage: dict[str, Any]) -> bool:
        """Take the next report; returns whether it has a sound count."""
        said = self.said
        if usage.keys() == self._names and self._as_before(usage):
            for name, value in usage.items():
                if value is not None:
                    said[name] = value
            return True
        told = {name: value for name, value in usage.items() if value is not None}
        form = self._api.normal_form
        sound = form(told) is not None
        good = not said or form({**said, **told}) is not None
        if sound and not good and self._names is None:
            said.clear()  # of what came before nothing was sound
        if sound or good or self._names is None:
            said.update(told)
        if sound:
            self._names = usage.keys()
        return sound

    def _as_before(self, usage: dict[str, Any]) -> bool:
        """Whether a report with the names of the last sound one is as sound: for a third of what
        the format takes to tell."""
        get = self.said.get
        for name, value in usage.items():
            kind = type(value)
            if kind is int:
                if not 0 <= value <= MAX_COUNT:
                    return False
            elif kind is float or kind is not type(get(name)):
                return False
        return True
