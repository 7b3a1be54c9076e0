"""The contract of a store: where counts live that survive a worker and are shared by all.

A store keeps for each account `used`, the last sequence that each writer settled there, and what
each writer holds there until when. It knows no windows; an account's name carries its own, and
`expires_at` says when it may be forgotten. One suite (tests/store/test_contract.py) holds every
store to this.

Debits are changes and guarded by their sequence. Holds are state: a writer says what it holds, and
saying it again replaces it. So there is no release that can be forgotten; the hold of a writer that
died lapses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fastgw.policy.ledger import MOST

if TYPE_CHECKING:
    from fastgw.model import Batch, Claim, Debit, Settled, Standing

UNUSABLE = -1

Sequences = dict[tuple[str, str], int]
"""By account and writer."""

SPARE_SHARE = 8
"""Of what is free on an account, one claim takes this part at most ahead of need."""


class Store(Protocol):
    """Four verbs. Every one raises StoreUnavailable, with nothing secret in its text."""

    shared: bool
    """Whether other processes may debit the same accounts."""
    remote: bool
    """Whether it is on a server, which may go and come while nobody calls."""

    async def open(self) -> None:
        """Connect and prepare. May be called again, and then asks whether the store is there; of
        one on a server that is a PING."""

    async def settle(self, batch: Batch) -> Settled:
        """Apply each debit whose sequence is new to its account, then decide each claim.

        All lines are applied or, on StoreUnavailable, possibly all: the same batch may be sent
        again and is then applied once. An amount of 0 reads and creates nothing; a negative one
        corrects, never below 0; above MOST nothing is counted. A line whose account holds no count
        (a key of another type, a number that is no integer) is left out, its answer is UNUSABLE;
        the others are applied. A hold that cannot be read is none. A claim counts against `used` as
        it is after the batch; on a line that is UNUSABLE, against what the writer knows. One that
        came before with the same sequence keeps what it was granted, an older one changes nothing.
        Returns or raises within the store's hard deadline.
        """

    async def accounts(
        self, usage: bool = False, settled: Sequences | None = None
    ) -> dict[str, Standing]:
        """Every live account of budgets, or of the usage report, by its name; for reports. Holds
        that lapsed are not counted. Where `settled` names an account and a writer, the last
        sequence that was settled is put there: what is in the sum, and what is not."""

    async def close(self) -> None:
        """Let go of connections and files. May be called twice."""


def granted(claim: Claim, free: int) -> int:
    """The hold of a claim where `free` is what the limit leaves beside `used`, the holds of others
    and the claim's floor. lua/settle.lua says the same."""
    if free <= 0:
        return min(claim.floor, MOST)
    needed = min(claim.need, free)
    if needed < claim.least:
        needed = 0
    return min(claim.floor + needed + min(claim.spare, (free - needed) // SPARE_SHARE), MOST)


def granted_alone(claim: Claim, debit: Debit) -> tuple[int, int]:
    """The answer to a claim on an account that cannot be used: its writer counts it alone."""
    return 0, granted(claim, claim.limit - debit.known - debit.amount - claim.floor)


def bounded(number: object) -> int | None:
    """A number as an account may hold it; None for what is none."""
    return min(max(number, 0), MOST) if type(number) is int else None
