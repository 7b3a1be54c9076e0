"""Accounts and counts that are forgotten with the last who uses them: they are referenced weakly.

A module of its own, and never compiled: mypyc makes no class that can be referenced weakly, but an
interpreted subclass of a compiled one can be, and its members are read as fast.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from fastgw.policy.account import Account, Count


class KeptCount(Count):
    """See the module."""

    __slots__ = ("__weakref__",)


class KeptAccount(Account):
    """See the module."""

    __slots__ = ("__weakref__",)


class Counts(WeakValueDictionary[str, Count]):
    """The counts that live, by key. One key never has two."""

    def of(self, key: str, expires_at: int) -> Count:
        """The count of a key; one that is made now may be forgotten by the store at `expires_at`,
        in epoch seconds."""
        count = self.get(key)
        if count is None:
            count = self[key] = KeptCount(key, expires_at)
        return count
