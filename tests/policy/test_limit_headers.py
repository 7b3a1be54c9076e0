"""What a client is told of its budgets."""

from __future__ import annotations

from fastgw.policy.account import Account, Limit
from fastgw.policy.limit_headers import exceeded, limit_fields
from fastgw.policy.window import make_window

NOW = 1_790_000_000.0


def account(amount: int, used: int, window: str = "day", *, shadow: bool = False) -> Account:
    limit = Limit(f"b{amount}", "tokens", amount, make_window(window), shadow=shadow)
    made = Account(limit, ("alice",), NOW)
    made.count.used = used
    return made


def test_the_tightest_is_the_one_with_the_smallest_share_left() -> None:
    roomy, tight = account(100, 50), account(10_000, 9_000)
    assert b"x-ratelimit-limit: 10000\r\nx-ratelimit-remaining: 1000\r\n" in limit_fields(
        (roomy, tight), NOW
    )


def test_a_shadow_budget_is_not_told() -> None:
    assert limit_fields((account(10, 10, shadow=True),), NOW) == b""
    assert b"limit: 100\r\n" in limit_fields((account(10, 10, shadow=True), account(100, 1)), NOW)


def test_remaining_is_never_negative_and_reset_is_the_rest_of_the_window() -> None:
    fields = limit_fields((account(100, 130),), NOW).decode()
    assert "x-ratelimit-remaining: 0\r\n" in fields
    assert f"x-ratelimit-reset: {86_400 - int(NOW) % 86_400}\r\n" in fields


def test_a_refusal_explains_itself() -> None:
    full = account(100, 114)
    refusal = exceeded(full, NOW)
    headers = dict(refusal.headers)
    assert headers["retry-after"] == headers["x-ratelimit-reset"]
    assert int(headers["retry-after"]) >= full.end - NOW  # never too early
    assert headers["x-should-retry"] == "false"
    for part in ("rate limit exceeded", "'b100'", "alice", "114", "100 tokens"):
        assert part in refusal.message


def test_a_near_reset_may_be_waited_for() -> None:
    assert "x-should-retry" not in dict(exceeded(account(10, 10, "second"), NOW).headers)
