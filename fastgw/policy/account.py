"""What is counted: a limit, an account of it, its count in one window, what an exchange has of it.

Amounts are integers in the limit's unit, dollars in nano-USD. The ledger (policy/ledger) is the
only one that changes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw import money
from fastgw.compiled import mypyc_attr
from fastgw.policy.window import GRACE, AccountName, Window, account_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastgw.model import Usage

NEVER = float("-inf")

SLICES = 16
"""Of what is free on an account a worker holds this part at most ahead of its requests; where that
is less than a request, nothing."""

MOST_WINDOWS = 60
"""Windows of which a stream remembers what it was charged there."""


class Limit:
    """A budget as the ledger sees it: name, unit, amount, window, whether and how it refuses."""

    __slots__ = (
        "amount",
        "clamps",
        "cuts",
        "fields",
        "name",
        "refusals",
        "reserves",
        "scale",
        "shadow",
        "unit",
        "wait",
        "warn_at",
        "window",
    )

    def __init__(
        self,
        name: str,
        unit: str,
        amount: int,
        window: Window,
        *,
        shadow: bool = False,
        warn_at: float = 0.0,
        reserves: bool = False,
        wait: float = 0.0,
        clamps: bool = False,
        cuts: bool = False,
    ) -> None:
        """`reserves`: a request needs a promise of what it may cost before it runs. `wait`: seconds
        that it waits for one while running requests hold what is left. `clamps`: rather than that,
        its answer is limited to what is left. `cuts`: a stream ends where it crosses the limit."""
        self.name = name
        self.unit = unit
        self.amount = amount
        self.scale = money.MICRO if unit == "usd" else 1
        fields = b"x-ratelimit-limit: %d\r\nx-ratelimit-remaining: " % self.shown(amount)
        self.fields = b"x-ratelimit-unit: micro-usd\r\n" + fields if unit == "usd" else fields
        self.window = window
        self.shadow = shadow
        self.warn_at = warn_at
        self.reserves = reserves or unit == "parallel"
        self.wait = wait
        self.clamps = clamps
        self.cuts = cuts and not shadow
        self.refusals = 0
        """Requests that it refused (or, in shadow, would have refused)."""

    def cost(self, usage: Usage) -> int:
        """What an exchange of this usage is debited here at its end."""
        unit = self.unit
        if unit == "tokens":
            return usage.input_tokens + usage.output_tokens
        if unit == "input_tokens":
            return usage.input_tokens
        if unit == "output_tokens":
            return usage.output_tokens
        if unit == "usd":
            return usage.cost
        return 0  # requests: debited as they are admitted; parallel: held only

    def claim(self, estimate: Usage) -> int:
        """What a request with this estimate needs here before it runs: never above the limit, or
        it could never run, unless its answer will be limited."""
        if self.unit == "requests" or self.unit == "parallel":
            return 1
        cost = estimate[0] + estimate[1] if self.unit == "tokens" else self.cost(estimate)
        return self.amount if cost > self.amount and not self.clamps else cost

    def shown(self, number: int) -> int:
        """An amount as x-ratelimit-* show it: in the unit, dollars in micro-USD rounded up, so that
        0 means none."""
        return -(-number // self.scale)

    def words(self, number: int) -> str:
        """An amount for people: "19 tokens", "$0.0125"."""
        return money.amount(number, self.unit)


@mypyc_attr(allow_interpreted_subclasses=True)  # policy/kept
class Count:
    """An account in one window, as this worker knows it.

    used = what the store last said; pending = debited here, not yet sent; sent = in the batch under
    way. hold = what the store granted us for requests that have no debit yet; held = the part of it
    that is promised to exchanges in flight; others = what other workers hold.
    """

    __slots__ = (
        "active",
        "answered",
        "asked",
        "expires_at",
        "held",
        "hold",
        "key",
        "known_at",
        "least",
        "limit",
        "need",
        "others",
        "pending",
        "queued",
        "sent",
        "settled",
        "slot",
        "step",
        "used",
    )

    def __init__(self, key: str, expires_at: int) -> None:
        self.key = key
        self.expires_at = expires_at
        self.used = 0
        self.pending = 0
        self.sent = 0
        self.known_at = NEVER
        self.queued = False  # waits for the next batch
        self.asked = False  # is in the batch under way
        self.answered = 0  # sequence of the last batch that the store answered
        self.settled = 0  # sequence of the last debit that the store acknowledged
        self.slot = 0  # its place in the journal; 0: none
        self.limit: Limit | None = None  # where requests need a promise: whose
        self.hold = 0
        self.held = 0
        self.others = 0
        self.need = 0  # of requests that wait for the next batch
        self.least = 0  # the smallest of them
        self.step = 0  # the last claim of a request
        self.active = False  # a request claimed since the last refresh

    @property
    def spent(self) -> int:
        """What a decision looks at."""
        return self.used + self.pending + self.sent

    @property
    def room(self) -> int:
        """What may be promised without asking the store."""
        return self.hold - self.held - self.pending

    def slice(self) -> int:
        """What to hold ahead of need, as far as we know."""
        limit = self.limit
        if limit is None or not self.step or limit.unit == "parallel":
            return 0
        free = limit.amount - self.spent - self.others - self.held
        part = free // SLICES
        return part if part >= self.step else 0

    def __repr__(self) -> str:
        return (
            f"<Count {self.key} used={self.used} pending={self.pending} sent={self.sent} "
            f"held={self.held} of {self.hold}>"
        )


@mypyc_attr(allow_interpreted_subclasses=True)  # policy/kept
class Account:
    """One limit for one value of its `per`. `count` is the count of the current window."""

    __slots__ = ("_count_of", "count", "end", "limit", "start", "values", "warned_at")

    def __init__(
        self,
        limit: Limit,
        values: tuple[str, ...],
        now: float,
        count_of: Callable[[str, int], Count] = Count,
    ) -> None:
        """`count_of`: finds the count of a key, or makes it, with its expiry. An account that was
        forgotten and is made again finds the count that still waits for the store: one key never
        has two."""
        self.limit = limit
        self.values = values
        self._count_of = count_of
        self.warned_at = 0
        self.roll(now)

    def roll(self, now: float) -> None:
        """Begin the window that holds `now` (epoch seconds)."""
        limit = self.limit
        self.start, self.end = limit.window.bounds(now)
        name = AccountName(limit.name, limit.unit, limit.window.name, self.start, self.values)
        expires_at = self.end + GRACE if limit.unit != "parallel" else 0  # lives by its holds
        count = self._count_of(account_key(name), expires_at)
        count.limit = limit if limit.reserves else None
        self.count = count

    @property
    def held(self) -> int:
        """What exchanges in flight may still spend, here and elsewhere."""
        return self.count.held + self.count.others

    @property
    def remaining(self) -> int:
        """What is left of the limit, never negative; 0 means refused."""
        count = self.count
        return max(0, self.limit.amount - count.spent - count.held - count.others)

    @property
    def used_up(self) -> bool:
        """Whether nothing is left, whatever running requests give back."""
        return self.count.spent >= self.limit.amount


class Promise:
    """What one exchange has of one account: `most` was promised in `count` and `held` of it is not
    spent yet; `charged` so far, the last of it in `charged_in`. What was promised is charged where
    that was, or a cap could be passed in the window after it."""

    __slots__ = ("_before", "_moved", "account", "charged", "charged_in", "count", "held", "most")

    def __init__(self, account: Account) -> None:
        self.account = account
        self.count = self.charged_in = account.count
        self.held = self.most = 0
        self.charged = 0
        self._before: list[tuple[Count, int]] | None = None  # what windows before were charged
        self._moved = 0  # the sum of it, and of what is not remembered

    def move(self, count: Count) -> None:
        """Another window has begun: what comes is charged to `count`."""
        here = self.charged - self._moved
        if here:
            before = self._before
            if before is None:
                before = self._before = []
            elif len(before) >= MOST_WINDOWS:
                before.pop(1)  # the first, which was charged the prompt, stands for it
            before.append((self.charged_in, here))
            self._moved += here
        self.charged_in = count

    def take_back(self, amount: int) -> list[tuple[Count, int]]:
        """What of a correction, `amount` < 0, goes to other windows than `charged_in`: none gives
        back more than it was charged, or its sum would lack what others spent there; but for the
        first, which is long over where some are not remembered."""
        parts: list[tuple[Count, int]] = []
        before = self._before
        rest = amount + self.charged - self._moved  # below 0: more than was charged here
        while before and rest < 0:
            count, here = before.pop()
            part = max(rest, -here) if before else rest
            if here + part or not before:
                before.append((count, here + part))
            rest -= part
            self._moved += part
            parts.append((count, part))
        return parts
