"""Who used what: sums without a limit, for each day, key, upstream, model and label.

1. A tally is five counts: requests, tokens in, out and cached, nano-USD. They are accounts of the
   ledger like a budget's, so they reach the store by the same batches, the journal keeps them and
   nothing counts twice.
2. Nobody decides by them, so they are in no hurry: what is dirty goes out once a second, whatever
   the traffic. Until then it stands in the journal.
3. A day (UTC) is part of an account's name. The store keeps it `retention` seconds.
4. Past `most` tallies of a day the models and labels of new ones count under `other`, past twice
   as many their keys, too. So the store holds 10 times `most` counts of a worker and day at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw.policy.window import USAGE, USAGE_KEYS, AccountName, EpochWindow, account_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastgw.policy.account import Count
    from fastgw.policy.ledger import Ledger

UNITS = ("requests", "input_tokens", "output_tokens", "cached_input_tokens", "usd")
"""What a tally counts, in this order."""

OTHER = "other"
SWEEP = 500
"""Counts of past days that one refresh looks at."""

_DAY = EpochWindow("day")


class Tally:
    """What one key used of one model in one day; made by Tallies."""

    __slots__ = ("counts", "dirty", "end", "kept", "values")

    def __init__(self, values: tuple[str, ...]) -> None:
        self.values = values
        self.counts: tuple[Count, ...] = ()
        self.end = 0
        self.dirty = False
        self.kept = False  # all five stand in the journal


class Tallies:
    """All tallies of a worker. Times are epoch seconds."""

    def __init__(self, ledger: Ledger, retention: float, most: int) -> None:
        self._ledger = ledger
        self._retention = int(retention)
        self._most = most
        self._tallies: dict[tuple[str, ...], Tally] = {}
        self._dirty: list[Tally] = []
        self._ended = ledger.counts_of(USAGE_KEYS)
        """Counts without a tally: of past days, and what a worker before us left. They go when they
        owe nothing."""
        self._current: set[Count] = set()
        """Counts of tallies: some may be among those that ended, left by the worker before us."""
        self._day = 0

    def find(self, key: str, upstream: str, model: str, labels: Iterable[str]) -> Tally:
        """The tally of these; `labels` as `name=value`."""
        wanted = (key, upstream, model, *labels)
        found = self._tallies.get(wanted)
        if found is not None:
            return found
        if len(self._tallies) >= self._most:
            wanted = (key, OTHER, OTHER)
            if len(self._tallies) >= 2 * self._most and wanted not in self._tallies:
                wanted = (OTHER, OTHER, OTHER)
            found = self._tallies.get(wanted)
        if found is None:
            found = self._tallies[wanted] = Tally(wanted)
        return found

    def add(self, tally: Tally, sums: tuple[int, int, int, int, int], now: float) -> None:
        """What exchanges came to, in the order of UNITS."""
        if now >= tally.end:
            self._roll(tally, now)
        if not tally.dirty:
            tally.dirty = True
            self._dirty.append(tally)
        slots = self._ledger.slots if tally.kept else None
        for count, amount in zip(tally.counts, sums, strict=True):
            if amount:
                count.pending += amount
                if slots is not None:
                    slots.add(count.slot, amount)

    def _roll(self, tally: Tally, now: float) -> None:
        """Begin the day that holds `now`."""
        for count in tally.counts:
            if count.pending and not count.queued:
                self._ledger.enqueue(count)
        self._end(tally)
        start, tally.end = _DAY.bounds(now)
        tally.counts = tuple(
            self._ledger.count(
                account_key(AccountName(USAGE, unit, _DAY.name, start, tally.values)),
                tally.end + self._retention,
            )
            for unit in UNITS
        )
        self._current.update(tally.counts)
        tally.kept = all(count.slot for count in tally.counts)

    def _end(self, tally: Tally) -> None:
        self._current.difference_update(tally.counts)
        self._ended += tally.counts

    def refresh(self, now: float) -> None:
        """Hand what is dirty to the ledger, and let go of days that are over. Once a second."""
        self.flush()
        if now >= self._day:
            self._day = _DAY.bounds(now)[1]
            for values, tally in list(self._tallies.items()):
                if now >= tally.end:
                    self._end(tally)
                    del self._tallies[values]
        some = self._ended[-SWEEP:]
        self._ended[-SWEEP:] = [
            count for count in some if count not in self._current and not self._ledger.let_go(count)
        ]

    def flush(self) -> None:
        """Hand all that is dirty to the ledger."""
        for tally in self._dirty:
            tally.dirty = False
            for count in tally.counts:
                if count.pending and not count.queued:
                    self._ledger.enqueue(count)
        self._dirty.clear()
