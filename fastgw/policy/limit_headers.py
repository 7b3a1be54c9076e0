"""What a client is told of its budgets: the limit headers of an answer, the reason of a refusal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw.errors import BudgetExceeded
from fastgw.policy.window import FAR

if TYPE_CHECKING:
    from fastgw.policy.account import Account, Limit

LONG = 60
"""Seconds to the reset past which an SDK is told not to wait: several sleep for all of it."""
NOT_AGAIN = ("x-should-retry", "false")


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


def _spent(account: Account) -> str:
    limit = account.limit
    who = f" ({', '.join(account.values)})" if account.values else ""
    return f"rate limit exceeded: budget '{limit.name}'{who} has used {_state(account)}"


def _headers(account: Account, reset: int, retry_after: int) -> tuple[tuple[str, str], ...]:
    """What a request may have at this moment is `remaining`: less than this one needs."""
    limit = account.limit
    return (
        *_unit(limit),
        ("x-ratelimit-limit", str(limit.shown(limit.amount))),
        ("x-ratelimit-remaining", str(limit.shown(account.remaining))),
        ("x-ratelimit-reset", str(reset)),
        ("retry-after", str(retry_after)),
    )


def _no_room(account: Account, now: float) -> BudgetExceeded:
    """Running requests hold what is left: they may give it back at any time."""
    return BudgetExceeded(
        f"{_spent(account)}; what is left is held by running requests",
        _headers(account, _reset(account, now), 1),
    )


def _for_good(account: Account, now: float, why: str, *, hope: bool = True) -> BudgetExceeded:
    """Whatever running requests give back, the reset has to be waited for; without `hope` that does
    not help either."""
    if account.end >= FAR:
        reset, after, when = 0, LONG, "it is never reset"
        hope = False
    else:
        reset = after = max(1, int(account.end - now) + 1)
        when = f"it resets in {reset} s"
    headers = _headers(account, reset, after)
    if reset > LONG or not hope:
        headers = (*headers, NOT_AGAIN)
    return BudgetExceeded(f"{_spent(account)}; {why}{when}", headers)


def exceeded(account: Account, now: float) -> BudgetExceeded:
    """The refusal of a request whose `account` is used up, or has too little room for it."""
    return _for_good(account, now, "") if account.used_up else _no_room(account, now)


def too_large(
    account: Account, now: float, cost: int, mend: str, *, hope: bool = True
) -> BudgetExceeded:
    """The refusal of a request that may cost more than its `account`, a hard cap, has not used:
    nothing that running requests hold is enough for it. `cost` in the limit's unit; `mend`: what
    the client can do but wait, "" if there is nothing. `hope`: whether the next window has room."""
    limit = account.limit
    left = limit.words(max(0, limit.amount - account.count.spent))
    why = f"this request may cost {limit.words(cost)}, what is left is {left}; "
    if not hope:
        why += "no window has room for it; "
    if mend:
        why += f"{mend}, or wait: " if hope else f"{mend}; "
    return _for_good(account, now, why, hope=hope)
