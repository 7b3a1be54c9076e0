"""What a client is told of its budgets: the limit headers of an answer, the reason of a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw.errors import BudgetExceeded

if TYPE_CHECKING:
    from fastgw.policy.ledger import Account

LONG = 60
"""Seconds to the reset past which an SDK is told not to wait: several sleep for all of it."""


def limit_fields(accounts: tuple[Account, ...], now: float) -> bytes:
    """x-ratelimit-* of the tightest budget that can refuse, as header lines with CRLF; b"" if none
    can. The tightest has the smallest share left. `now` in epoch seconds."""
    tightest = None
    if len(accounts) == 1:
        if not accounts[0].limit.shadow:
            tightest = accounts[0]
    else:
        share = 2.0
        for account in accounts:
            limit = account.limit
            if not limit.shadow:
                left = account.remaining / limit.amount if limit.amount else 0.0
                if left < share:
                    share = left
                    tightest = account
    if tightest is None:
        return b""
    return b"%b%d\r\nx-ratelimit-reset: %d\r\n" % (
        tightest.limit.fields,
        tightest.remaining,
        max(0, tightest.end - int(now)),
    )


def exceeded(account: Account, now: float) -> BudgetExceeded:
    """The refusal of a request whose `account` is used up."""
    limit = account.limit
    reset = max(1, int(account.end - now) + 1)
    who = f" ({', '.join(account.values)})" if account.values else ""
    headers = [
        ("x-ratelimit-limit", str(limit.amount)),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", str(reset)),
        ("retry-after", str(reset)),
    ]
    if reset > LONG:
        headers.append(("x-should-retry", "false"))
    return BudgetExceeded(
        f"rate limit exceeded: budget '{limit.name}'{who} has used {account.count.spent} of "
        f"{limit.amount} {limit.unit.replace('_', ' ')}, held 0; it resets in {reset} s",
        tuple(headers),
    )
