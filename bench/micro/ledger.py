"""The ledger: a decision with its debit, and a batch on its way to the store and back.

python -m bench.micro.ledger
"""

from __future__ import annotations

from bench.micro.timing import Row, show, timed
from fastgw.model import Settled, Usage
from fastgw.policy.account import Limit
from fastgw.policy.ledger import Ledger
from fastgw.policy.window import make_window

NOW = 1_790_000_000.0
USAGE = Usage(10, 9, source="reported")


def run(number: int = 20_000) -> list[Row]:
    """The rows of the report."""
    limits = [Limit(f"budget-{at}", "tokens", 10**15, make_window("day")) for at in range(3)]
    ledger = Ledger("bench", 0.1)
    accounts = tuple(ledger.account(limit, ("alice",), NOW) for limit in limits)
    many = [ledger.account(limits[0], (f"user-{at}",), NOW) for at in range(1000)]

    def settle() -> None:
        while (batch := ledger.take()) is not None:
            ledger.settled(Settled([0] * len(batch.debits), [], [], []), NOW)

    assert ledger.stale((*accounts, *many), NOW)
    settle()

    def decide(count: int) -> None:
        some = accounts[:count]
        assert not ledger.stale(some, NOW)
        assert ledger.refuses(some) is None
        ledger.debit(some, USAGE, NOW)

    def batch() -> None:
        ledger.debit(many, USAGE, NOW)
        settle()

    rows = [
        timed("decide and debit, one budget", lambda: decide(1), number),
        timed("decide and debit, three budgets", lambda: decide(3), number),
    ]
    settle()
    row = timed("", batch, max(1, number // 1000))
    rows.append(Row("debit and settle, for each of 1,000 accounts", row.microseconds / 1000))
    return rows


if __name__ == "__main__":
    show("Ledger", run())
