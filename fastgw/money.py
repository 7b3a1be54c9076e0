"""Dollars as integers: read exactly, kept as nano-USD, shown exactly.

1 USD = 10^9 nano-USD. A price is in nano-USD for a million tokens, so whatever a provider lists
with up to nine decimals is a whole number. No float ever holds money.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, Final

NANO: Final = 10**9
"""Nano-USD of a dollar."""

MICRO = 1000
"""Nano-USD of a micro-USD: the unit of the x-ratelimit-* headers of a budget in dollars."""

MOST_DIGITS = 40


def read_usd(value: object) -> int:
    """An amount in dollars, as 12.5 or "12.50", in nano-USD. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        raise ValueError('not an amount in dollars; write 12.5 or "12.50"')
    text = str(value).strip()
    # A float prints as it was written, up to 15 digits.
    try:
        amount = Decimal(text) if len(text) <= MOST_DIGITS else Decimal("NaN")
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or "_" in text or abs(amount) >= 10**15:
        raise ValueError('not an amount in dollars; write 12.5 or "12.50"')
    if amount < 0:
        raise ValueError("dollars below zero; write 0 or more")
    nano = amount.scaleb(9)
    if nano != nano.to_integral_value():
        raise ValueError("finer than a nano-USD; write 9 decimals at most")
    return int(nano)


def usd(nano: int) -> str:
    """Nano-USD as a decimal number of dollars, exactly: 12.5, 0.000004, 0."""
    sign = "-" if nano < 0 else ""
    whole, part = divmod(abs(nano), NANO)
    return f"{sign}{whole}.{part:09d}".rstrip("0").rstrip(".")


def dollars(nano: int) -> str:
    """The same for people: $12.50, $0.000004."""
    text = usd(nano)
    point, part = text.find("."), text.partition(".")[2]
    if point < 0:
        text += ".00"
    elif len(part) == 1:
        text += "0"
    return f"-${text[1:]}" if text.startswith("-") else f"${text}"


def in_dollars(row: dict[str, Any]) -> dict[str, Any]:
    """A row about a budget; one in usd gets `usd`: its amounts as decimal numbers of dollars."""
    if row["unit"] == "usd":
        amounts = ("used", "held", "limit", "remaining")
        row["usd"] = {name: usd(row[name]) for name in amounts if name in row}
    return row


def amount(number: int, unit: str) -> str:
    """An amount of a budget in words: "100 tokens", "3 requests at one time", "$1.25"."""
    if unit == "usd":
        return dollars(number)
    if unit == "parallel":
        return f"{number} requests at one time"
    return f"{number} {unit.replace('_', ' ')}"
