"""What an exchange asks of budgets with a hard cap before it runs, and what it is charged until it
ends.

A reservation is made on the worker's hold if there is room: no waiting. Where there is none, the
next batch asks the store for more, and all who wait share that one call. What the store does not
grant is held by running requests: they are waited for, `wait` seconds at most, and if the budget
says so the answer is limited to what is left. What would not fit though they gave all back (it is
used, not held) is refused at once: only the next window has room for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from fastgw.policy.account import Account, Promise
from fastgw.policy.limit_headers import exceeded, too_large
from fastgw.usage.request import limit_output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgw.engine import Engine
    from fastgw.model import Usage
    from fastgw.settlement import Waiter
    from fastgw.usage.api import Api
    from fastgw.usage.pricing import Price


class Reservation:
    """Of one exchange. `estimate`: what it may cost; `promises`: what it was promised; `clamped`:
    whether `message`, the request body, was changed to ask for less; `bounded`: whether the request
    limits its answer by itself, or was made to."""

    __slots__ = ("_api", "_asked", "_began", "_operation", "_price", "_since", "bounded", "clamped",
                 "estimate", "message", "promises")  # fmt: skip

    def __init__(
        self, estimate: Usage, api: Api, operation: str, message: dict[str, Any] | None
    ) -> None:
        """`api` and `operation` say where `message` limits the output; it is None where it is not
        ours to change."""
        self._api = api
        self.estimate = estimate
        self.message = message
        self.clamped = self.bounded = False
        self.promises: list[Promise] = []
        self._operation = operation
        self._price: Price | None = None
        self._began = 0.0
        self._since = 0.0  # the moment, in the present window, as of which accounts are known
        self._asked = 0  # what `ledger.ask` returned; 0: nothing asked

    def price(self, price: Price | None) -> None:
        """Where a budget counts dollars: what the estimate costs. None costs nothing."""
        self._price = price
        if price is not None:
            self.estimate = self.estimate._replace(cost=price.most(self.estimate))

    def decide(
        self, engine: Engine, waiter: Waiter, accounts: Sequence[Account], now: float
    ) -> bool:
        """Whether the request may run. False: `waiter.admit()` is called later, decide then.
        Raises BudgetExceeded."""
        ledger, settlement = engine.ledger, engine.settlement
        alone = not settlement.up
        if alone and engine.on_failure == "open":
            self.promises = ledger.promise(accounts, self.estimate)
            return True
        if not self._began:
            self._began = now
        if not self._since or any(
            now >= account.end or self._since < account.start <= now for account in accounts
        ):
            self._since = now
            self._asked = 0
            if ledger.stale(accounts, now) and not alone:
                self._ask(engine, waiter, accounts)
                return False
        found = ledger.reserve(accounts, self.estimate, alone=alone)
        if isinstance(found, Account):
            self._refuse_for_good(accounts, now)
            answered = alone or (bool(self._asked) and not ledger.unanswered(accounts, self._asked))
            if answered and self._clamp(accounts, alone):
                found = ledger.reserve(accounts, self.estimate, alone=alone)
            if isinstance(found, Account) and not alone:
                if not answered:
                    self._ask(engine, waiter, accounts)
                    return False
                if now - self._began < found.limit.wait:
                    self._asked = 0
                    settlement.park(waiter)
                    return False
        if isinstance(found, Account):
            found.limit.refusals += 1
            raise exceeded(found, now)
        self.promises = found
        settlement.wake()
        return True

    def _ask(self, engine: Engine, waiter: Waiter, accounts: Sequence[Account]) -> None:
        self._asked = engine.ledger.ask(accounts, self.estimate)
        engine.settlement.wait(waiter, accounts, self._since, self._asked)

    def _refuse_for_good(self, accounts: Sequence[Account], now: float) -> None:
        """Raise BudgetExceeded if an account has no room for the request before its reset, whatever
        running requests give back. Of several the one that is reset last is told: who comes again
        at the reset of another would be refused again."""
        last = None
        for account in accounts:
            if not self._fits(account, account.limit.amount - account.count.spent) and (
                last is None or account.end > last.end
            ):
                last = account
        if last is None:
            return
        last.limit.refusals += 1
        if last.used_up:
            raise exceeded(last, now)
        limit = last.limit
        raise too_large(
            last,
            now,
            limit.cost(self.estimate),
            self._mend(last),
            hope=self._fits(last, limit.amount),
        )

    def _fits(self, account: Account, left: int) -> bool:
        """Whether the request, or what may be made of it, could run if so much were left."""
        limit = account.limit
        if limit.shadow:
            return True
        if left <= 0:
            return False
        if not limit.reserves or limit.claim(self.estimate) <= left:
            return True
        return limit.clamps and self._can_ask_for(self._output(account, left))

    def _can_ask_for(self, room: int) -> bool:
        """Whether the request can be made to ask for so few output tokens."""
        message = self.message
        if message is None or not 0 < room < self.estimate.output_tokens:
            return False
        api, operation = self._api, self._operation
        members = {
            name.partition(".")[0] for name in (*api.LIMITS.get(operation, ()), *api.CHOICES)
        }
        # a copy of what counts: the request itself stays as it is
        probe = orjson.loads(
            orjson.dumps({name: message[name] for name in members if name in message})
        )
        probe["prompt"] = message.get("prompt")  # their number counts, too
        return limit_output(api, operation, probe, room) > 0

    def _mend(self, account: Account) -> str:
        """What a client can do whose request may cost too much; "" if that is not known."""
        if self._output(account, account.limit.amount - account.count.spent) < 1:
            return "send a shorter prompt"
        names = self._api.LIMITS.get(self._operation)
        if not names:
            return ""
        name = names[-1] or "limit of output tokens"
        if self.bounded:
            return f"send a smaller {name}"
        output = self.estimate.output_tokens
        return f"send a {name}, without which {output} output tokens are assumed"

    def _output(self, account: Account, left: int) -> int:
        """Output tokens that an answer may have of which `left` is to pay; below 1: not even one
        beside the prompt."""
        unit = account.limit.unit
        if unit == "usd" and self._price is not None:
            return self._price.room(self.estimate.input_tokens, left)
        return left if unit == "output_tokens" else left - self.estimate.input_tokens

    def _clamp(self, accounts: Sequence[Account], alone: bool) -> bool:
        """Limit the answer to the least room there is; False if that is none or not wanted."""
        message, estimate = self.message, self.estimate
        room = estimate.output_tokens
        for account in accounts:
            limit = account.limit
            if not limit.reserves or limit.shadow or limit.unit in ("requests", "parallel"):
                continue
            left = account.remaining if alone else account.count.room
            if limit.claim(estimate) > left:
                if not limit.clamps:
                    return False
                room = min(room, self._output(account, left))
        if message is None or room < 1 or room == estimate.output_tokens:
            return False
        allowed = limit_output(self._api, self._operation, message, room)
        if not allowed:
            return False
        self.estimate = estimate._replace(output_tokens=allowed)
        self.price(self._price)
        self.clamped = self.bounded = True
        return True
