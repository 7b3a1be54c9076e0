"""The meter of a stream that may be cut: it can say at any time what the answer has cost so far,
exactly, and what it costs at most without counting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw.usage.answer import EventMeter
from fastgw.usage.payload import read_objects

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgw.model import Usage
    from fastgw.usage.api import Api
    from fastgw.usage.endings import Ending
    from fastgw.usage.framing import Framer


class WatchedMeter(EventMeter):
    """Watches a stream; `ending` is shown its events as they are counted."""

    __slots__ = ("ending",)

    def __init__(self, api: Api, *, strip: bool, framer: Framer, ending: Ending) -> None:
        super().__init__(api, strip=strip, framer=framer)
        self.ending = ending

    @property
    def framer(self) -> Framer:
        """What cuts the stream into events."""
        return self._framer

    @property
    def waits(self) -> bool:
        """Whether whole events wait to be counted."""
        return bool(self._blocks)

    def reports(self, data: bytes) -> bool:
        """Whether `data` may hold a report of the provider, or a part of one."""
        return self._framer.held > 0 or self._search(data) is not None

    def at_most(self, more: int = 0) -> int:
        """A bound of the output tokens, were `more` bytes to follow: no token is shorter than a
        byte. Counts nothing."""
        bound = self._waiting + self._framer.held + more
        if self._counter is not None:
            bound += self._counter.at_most()
        if self._usage:
            usage = self._api.normal_form(self._usage)
            if usage is not None and usage.output_tokens:
                bound += usage.output_tokens - self._at_report
        return bound

    def exact(self, prompt: Callable[[], int]) -> Usage:
        """What the whole events so far have cost: what `finish` would say, were the stream to
        break off here."""
        usage = self._api.normal_form(self._usage) if self._usage else None
        return self._counted(usage, False, prompt)

    def answered(self) -> str:
        """The model that answers, "" where that is not known."""
        return self._model()

    def _count(self, blocks: list[bytes]) -> None:
        super()._count(blocks)
        for message in read_objects(self._framer.payloads(b"".join(blocks))):
            self.ending.see(message)
