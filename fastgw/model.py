"""The values that travel between the rooms: immutable, without behaviour of their own.

Named tuples: one is made for each exchange, and a frozen dataclass costs three times as much to
make (0.35 us against 1.1 us).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Unit = Literal["tokens", "input_tokens", "output_tokens", "requests", "usd", "parallel"]
"""What a budget counts; `usd` in nano-USD, `parallel` is requests that run at one time."""

UsageSource = Literal["reported", "drained", "counted", "none"]
"""Who said what an exchange cost: the provider (`drained`: after the client had left), fastgw's own
count, or nobody (not metered)."""


class Usage(NamedTuple):
    """Tokens of one exchange in the normal form, whatever dialect reported them.

    `input_tokens` includes cached and cache-write tokens; `output_tokens` includes reasoning.
    All values are LLM tokens, never negative. `cost` is in nano-USD, and filled in only where a
    budget in usd applies (see usage/pricing).
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = "none"
    cost: int = 0

    @property
    def total_tokens(self) -> int:
        """Input plus output: what a budget of unit `tokens` is debited."""
        return self.input_tokens + self.output_tokens


NO_USAGE = Usage()


class Debit(NamedTuple):
    """One line of a batch: raise `used` of `account` by `amount` (0 only reads it).

    `account` is the full store key of an account in one window, without the store's prefix
    (see `policy/window`). `expires_at` is the epoch second after which the store may forget it.
    `settled` is the last sequence that the store acknowledged to this writer on this account (0:
    none) and `known` what `used` was then: a store that holds an older sequence has lost data, and
    puts back `known` before it applies the line.
    """

    account: str
    amount: int
    expires_at: int
    settled: int = 0
    known: int = 0


class Claim(NamedTuple):
    """What a writer wants to hold on the account of a line, in the account's unit.

    It replaces what this writer held there. `floor` is promised already and always granted; of
    what `limit` leaves beside `used` and the holds of others, `need` is granted as far as it goes,
    and of what is left then at most an eighth as `spare`, for requests yet to come.
    """

    line: int
    limit: int
    floor: int
    need: int
    spare: int
    least: int = 0


class Batch(NamedTuple):
    """What one worker settles in one call.

    `writer` names the worker; `sequence` rises by one from batch to batch of a writer.
    A store keeps the last sequence of a writer beside each account and skips a line it has already
    applied: sending a batch again after an ambiguous time-out changes nothing.
    No account stands twice in a batch. Holds lapse after `lapse` seconds unless claimed again.
    """

    writer: str
    sequence: int
    debits: tuple[Debit, ...]
    claims: tuple[Claim, ...] = ()
    lapse: int = 30


class Settled(NamedTuple):
    """What a store answers to a batch.

    `used` line by line (UNUSABLE, -1, where the account cannot be kept); `holds` claim by claim:
    held by others, granted to us; `lost`: lines whose account the store had lost and got back from
    us; `ahead`: lines left out since the store holds a higher sequence of this writer: another
    process uses its name. `alone`: nobody else has written to the store since its last answer, so
    all that it said before holds still; False where a store cannot tell.
    """

    used: list[int]
    holds: list[tuple[int, int]]
    lost: list[int]
    ahead: list[int]
    alone: bool = False


class Standing(NamedTuple):
    """An account in the store, in its unit: `used` for good, `held` for exchanges in flight."""

    used: int
    held: int


class Owed(NamedTuple):
    """What a journal says of an account after its worker died: `sent` was in the batch of
    `sequence` and may have been applied, `rest` was in none. `slot` is its place in the journal;
    `settled` and `known`: see Debit."""

    key: str
    expires_at: int
    slot: int
    sequence: int
    sent: int
    rest: int
    settled: int
    known: int
