"""Cuts a stream at the event that crosses a budget: `[[budgets]] cutoff = "mid_stream"`.

1. The bytes that came, and all that wait uncounted, are a bound of what they cost. While that fits
   into what is left, they pass uncounted.
2. Else all is counted and charged, so that others see it: the next bound is nearer to the truth.
   Near the limit that is done event by event, so the cut does not depend on how bytes arrive.
3. What is left is what the budget has now, others' debits and holds taken off. A stream counts
   more often the less is left, so streams that share a budget see each other where it matters.
4. The event that crosses passes, the rest does not. An answer that has ended is not cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgw.errors import render, render_event
from fastgw.model import NO_USAGE
from fastgw.sse import EventFramer
from fastgw.usage.framing import ArrayFramer
from fastgw.usage.payload import rewritten

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fastgw.errors import Refusal
    from fastgw.model import Usage
    from fastgw.policy.account import Account, Promise
    from fastgw.usage.watched import WatchedMeter

_SOME = 1000
"""Tokens by which the price of one is found."""


def watched(promises: Sequence[Promise], bound: Usage | None) -> list[Promise]:
    """Those of `promises` whose budgets cut and can be overrun. `bound`: what an exchange costs
    that limits its answer; a budget that holds all of it cannot, since nobody else may have it."""
    return [
        promise
        for promise in promises
        if promise.account.limit.cuts
        and not (bound and promise.held and promise.held >= promise.account.limit.cost(bound))
    ]


class Watch:
    """Of one stream. `full` is the account whose limit was crossed; None: go on."""

    __slots__ = ("_charge", "_costs", "_made", "_meter", "_priced", "_prices", "_promises",
                 "_prompt", "answered", "full")  # fmt: skip

    def __init__(
        self,
        meter: WatchedMeter,
        promises: Sequence[Promise],
        prompt: Callable[[], int],
        priced: Callable[[Usage, str], Usage],
        charge: Callable[[], None],
    ) -> None:
        """`priced`: a usage with its cost by the model that answers. `charge` charges what `count`
        says, to all accounts."""
        self._meter = meter
        self._promises = promises
        self._prompt = prompt
        self._priced = priced
        self._charge = charge
        self._made = -1  # output tokens that were charged; -1: nothing yet
        self._prices = [1] * len(promises)  # of an output token at most, in the limit's unit
        self._costs = [0] * len(promises)  # of what was counted last
        self.answered = ""
        self.full: Account | None = None

    def feed(self, data: bytes) -> bytes:
        """Look at `data`; return what may go to the client. With `full` set, that is the end."""
        meter = self._meter
        if meter.ending.over or (not meter.reports(data) and self._fits(len(data))):
            return meter.feed(data)
        passed: list[bytes] = []
        for piece in self._pieces(data):
            passed.append(meter.feed(piece))
            if meter.waits and not self._fits(0):
                self._charge()
                self.full = self._crossed()
                if self.full is not None:
                    break
        out = b"".join(passed)
        return data if out == data else out

    def _pieces(self, data: bytes) -> list[bytes]:
        """`data`, cut wherever an event may end."""
        if isinstance(self._meter.framer, ArrayFramer):
            *cut, rest = data.split(b"}")
            return [*(each + b"}" for each in cut), *([rest] if rest else ())]
        return data.splitlines(keepends=True)

    def _fits(self, more: int) -> bool:
        """Whether all that came and `more` bytes cannot cross a limit."""
        if self._made < 0:
            return False
        made = self._meter.at_most(more) - self._made
        for promise, price, cost in zip(self._promises, self._prices, self._costs, strict=True):
            if made * price > _left(promise, cost):
                return False
        return True

    def _crossed(self) -> Account | None:
        ending = self._meter.ending
        if ending.over:
            return None
        if not ending.events(NO_USAGE, False) and (
            not self._made or isinstance(self._meter.framer, ArrayFramer)
        ):
            return None  # nothing that could be ended has begun
        for promise, cost in zip(self._promises, self._costs, strict=True):
            if _left(promise, cost) < 0:
                return promise.account
        return None

    def count(self) -> Usage:
        """What the answer has cost so far, with its price; it is charged now."""
        meter = self._meter
        usage = meter.exact(self._prompt)
        self._made = usage.output_tokens
        if not self.answered:
            self.answered = meter.answered()
        usage = self._priced(usage, self.answered)
        for at, promise in enumerate(self._promises):
            self._costs[at] = promise.account.limit.cost(usage)
            if promise.account.limit.unit == "usd":
                more = usage._replace(output_tokens=usage.output_tokens + _SOME)
                price = self._priced(more, self.answered).cost - usage.cost
                self._prices[at] = -(-price // _SOME) + 1  # costs are rounded
        return usage

    def final(self, refusal: Refusal, usage: Usage, asked: bool, shape: str) -> bytes:
        """What ends the stream that was cut. `asked`: the client wants its usage told; `shape`: the
        dialect of an error event, where the format has no other end."""
        ending, framer = self._meter.ending, self._meter.framer
        events = ending.events(usage, asked)
        if isinstance(framer, ArrayFramer):
            return b"".join(b",\r\n" + _json(data) for _, data in events) + b"]"
        if not isinstance(framer, EventFramer):
            lines = [_json(data) for _, data in events] or [render(refusal, shape)]
            return b"\n".join((*lines, b""))
        out = []
        if ending.comments:
            out.append(b": %b %b\n\n" % (refusal.code.encode(), _line(refusal.message)))
        for kind, data in events:
            name = b"event: %b\n" % kind.encode() if kind else b""
            text = b"[DONE]" if data is None else _json(data)
            out.append(b"%bdata: %b\n\n" % (name, text))
        if not events:
            out.append(render_event(refusal, shape))
        return b"".join(out)


def _json(data: dict[str, Any] | None) -> bytes:
    """An event of ours; it may hold a name that the provider gave its answer, whatever that is."""
    return rewritten(data) or b"{}"


def _left(promise: Promise, cost: int) -> int:
    """What an exchange that has cost `cost` may still spend on the account, in the window that it
    is charged to; below 0 where it has crossed the limit. Not all of its cost need be charged."""
    count = promise.charged_in
    own = promise.held if promise.count is count else 0
    spent = count.spent - promise.charged + cost
    return promise.account.limit.amount - spent - count.others - count.held + own


def _line(text: str) -> bytes:
    """A text that cannot end the line it stands in."""
    return " ".join(text.split()).encode("utf-8", "replace")
