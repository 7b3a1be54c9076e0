"""The values that travel between the rooms: immutable, without behaviour of their own.

Named tuples: one is made for each exchange, and a frozen dataclass costs three times as much to
make (0.35 us against 1.1 us).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Unit = Literal["tokens", "input_tokens", "output_tokens", "requests"]
"""What a budget counts."""

UsageSource = Literal["reported", "counted", "none"]
"""Who said what an exchange cost: the provider, fastgw's own count, or nobody (not metered)."""


class Usage(NamedTuple):
    """Tokens of one exchange in the normal form, whatever dialect reported them.

    `input_tokens` includes cached and cache-write tokens; `output_tokens` includes reasoning.
    All values are LLM tokens, never negative.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = "none"

    @property
    def total_tokens(self) -> int:
        """Input plus output: what a budget of unit `tokens` is debited."""
        return self.input_tokens + self.output_tokens


NO_USAGE = Usage()


class Debit(NamedTuple):
    """One line of a batch: raise `used` of `account` by `amount` (0 only reads it).

    `account` is the full store key of an account in one window, without the store's prefix
    (see `policy/window`). `expires_at` is the epoch second after which the store may forget it.
    """

    account: str
    amount: int
    expires_at: int


class Batch(NamedTuple):
    """What one worker settles in one call.

    `writer` names the worker and its boot; `sequence` rises by one from batch to batch of a writer.
    A store keeps the last sequence of a writer beside each account and skips a line it has already
    applied: sending a batch again after an ambiguous time-out changes nothing.
    No account stands twice in a batch.
    """

    writer: str
    sequence: int
    debits: tuple[Debit, ...]
