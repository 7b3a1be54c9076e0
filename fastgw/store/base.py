"""The contract of a store: where counts live that survive a worker and are shared by all.

A store keeps, for each account, `used` and the last sequence that each writer settled there. It
knows neither limits nor windows; an account's name carries both, and `expires_at` says when it may
be forgotten. One suite (tests/store/test_contract.py) holds every store to this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from fastgw.model import Batch


UNUSABLE = -1


class Store(Protocol):
    """Four verbs. Every one raises StoreUnavailable, with nothing secret in its text."""

    shared: bool
    """Whether other processes may debit the same accounts."""

    async def open(self) -> None:
        """Connect and prepare. May be called again after a failure."""

    async def settle(self, batch: Batch) -> list[int]:
        """Apply each debit whose sequence is new to its account; return `used` line by line.

        All lines are applied or, on StoreUnavailable, possibly all: the same batch may be sent
        again and is then applied once. An amount of 0 reads and creates nothing; a negative one
        corrects, never below 0. A line whose account cannot hold a count (a key of another type) is
        left out, its answer is UNUSABLE; the others are applied. Returns or raises within the
        store's hard deadline.
        """

    async def accounts(self) -> dict[str, int]:
        """`used` of every live account, by its name; for reports."""

    async def close(self) -> None:
        """Let go of connections and files. May be called twice."""
