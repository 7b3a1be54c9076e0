"""What a client is told of its budgets: the limit headers of an answer, the reason of a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw.errors import BudgetExceeded
from fastgw.policy.window import FAR

if TYPE_CHECKING:
    from fastgw.policy.account import Account, Limit

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
                part = account.remaining / limit.amount if limit.amount else 0.0
                if part < share:
                    share = part
                    tightest = account
    if tightest is None:
        return b""
    limit, count, end = tightest.limit, tightest.count, tightest.end
    left = limit.amount - count.used - count.pending - count.sent - count.held - count.others
    if limit.scale != 1:
        left = limit.shown(left)
    left = left if left > 0 else 0
    reset = end - int(now) if now < end < FAR else 0
    return b"%b%d\r\nx-ratelimit-reset: %d\r\n" % (limit.fields, left, reset)


def _reset(account: Account, now: float) -> int:
    """Seconds to the reset of an account in whole numbers; 0 for one that is never reset."""
    return max(0, account.end - int(now)) if account.end < FAR else 0


def _state(account: Account) -> str:
    """19 of 100 tokens, held 0; $0.0125 of $5.00, held $0.00."""
    limit, used, held = account.limit, account.count.spent, account.held
    if limit.unit == "usd":
        return f"{limit.words(used)} of {limit.words(limit.amount)}, held {limit.words(held)}"
    return f"{used} of {limit.words(limit.amount)}, held {held}"


def _unit(limit: Limit) -> tuple[tuple[str, str], ...]:
    return (("x-ratelimit-unit", "micro-usd"),) if limit.unit == "usd" else ()


def _no_room(account: Account, who: str, now: float) -> BudgetExceeded:
    """Running requests hold what is left: they may give it back at any time."""
    limit = account.limit
    return BudgetExceeded(
        f"rate limit exceeded: budget '{limit.name}'{who} has used {_state(account)}; "
        "what is left is held by running requests",
        (
            *_unit(limit),
            ("x-ratelimit-limit", str(limit.shown(limit.amount))),
            ("x-ratelimit-remaining", str(limit.shown(account.remaining))),
            ("x-ratelimit-reset", str(_reset(account, now))),
            ("retry-after", "1"),
        ),
    )


def exceeded(account: Account, now: float) -> BudgetExceeded:
    """The refusal of a request whose `account` is used up, or has too little room for it."""
    limit = account.limit
    who = f" ({', '.join(account.values)})" if account.values else ""
    if not account.used_up:
        return _no_room(account, who, now)
    reset = max(1, int(account.end - now) + 1)
    headers = [
        *_unit(limit),
        ("x-ratelimit-limit", str(limit.shown(limit.amount))),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", str(reset)),
        ("retry-after", str(reset)),
    ]
    if reset > LONG:
        headers.append(("x-should-retry", "false"))
    return BudgetExceeded(
        f"rate limit exceeded: budget '{limit.name}'{who} has used {_state(account)}; "
        f"it resets in {reset} s",
        tuple(headers),
    )
