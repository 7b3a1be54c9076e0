"""Hard caps: who runs, who waits for running requests, and who is refused at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from bench.micro.exchange import Bench
from fastgw import clock
from fastgw.config.tables import Rates
from fastgw.errors import BudgetExceeded
from fastgw.model import Usage
from fastgw.policy.account import Account, Limit, Promise
from fastgw.policy.window import FAR, EpochWindow, NoWindow
from fastgw.reservation import Reservation
from fastgw.usage.bedrock import BEDROCK
from fastgw.usage.gemini import GEMINI
from fastgw.usage.openai import OPENAI
from fastgw.usage.pricing import Price

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastgw.usage.api import Api

PROMPT = 10
WAIT = 0.2


class Ends:
    """A window that ends so many seconds after these tests began."""

    def __init__(self, seconds: int) -> None:
        self.name = f"of {seconds} s"
        self._end = int(clock.wall()) + seconds

    def bounds(self, _: float) -> tuple[int, int]:
        return 0, self._end


HOUR, DAY, YEAR = Ends(3600), Ends(86_400), Ends(31_536_000)


def cap(amount: int, name: str = "cap", unit: str = "tokens", **more: Any) -> Limit:
    window = NoWindow() if unit == "parallel" else more.pop("window", DAY)
    return Limit(name, unit, amount, window, **({"reserves": True, "wait": WAIT} | more))


def asks(
    output: int,
    prompt: int = PROMPT,
    *,
    api: Api = OPENAI,
    operation: str = "chat",
    message: dict[str, Any] | None = None,
    bounded: bool = True,
) -> Reservation:
    """What a request asks for that may cost so many tokens."""
    found = Reservation(Usage(prompt, output), api, operation, message)
    found.bounded = bounded
    return found


class Desk:
    """Where requests ask: a whole gateway but the sockets."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.waited = 0
        self.running: list[Promise] = []

    def account(self, limit: Limit) -> Account:
        return self.bench.ledger.account(limit, (), clock.wall())

    async def spend(self, account: Account, tokens: int) -> None:
        """An exchange came and went. In usd the tokens are nano-USD."""
        self.bench.ledger.debit((account,), Usage(tokens, 0, cost=tokens), clock.wall())
        await asyncio.sleep(0.01)  # the store has it: all of it is in memory
        assert not self.bench.ledger.has_work

    async def ask(self, request: Reservation, *accounts: Account) -> list[Promise]:
        """Until it may run. Raises BudgetExceeded."""
        called = asyncio.Event()

        class Waiter:
            admit = staticmethod(called.set)
            fail = staticmethod(called.set)

        self.waited = 0
        while not request.decide(self.bench.engine, Waiter(), accounts, clock.wall()):
            self.waited += 1
            await called.wait()
            called.clear()
        self.running += request.promises
        return request.promises

    async def refused(self, request: Reservation, *accounts: Account) -> BudgetExceeded:
        with pytest.raises(BudgetExceeded) as found:
            await self.ask(request, *accounts)
        return found.value

    def end(self, promises: list[Promise], tokens: int) -> None:
        self.bench.ledger.charge(promises, Usage(tokens, 0), clock.wall(), final=True)
        self.bench.ledger.release(promises)


def run(main: Callable[[Desk], Awaitable[None]]) -> None:
    async def whole() -> None:
        desk = Desk()
        await main(desk)
        desk.bench.ledger.release(desk.running)
        await desk.bench.close()

    asyncio.run(whole())


def says_to_wait_for_the_reset(refusal: BudgetExceeded, account: Account) -> bool:
    headers = dict(refusal.headers)
    seconds = account.end - clock.wall()
    return (
        seconds <= int(headers["retry-after"]) <= seconds + 2
        and headers["x-ratelimit-reset"] == headers["retry-after"]
        and headers["x-should-retry"] == "false"
        and f"it resets in {headers['retry-after']} s" in refusal.message
    )


def test_what_is_used_comes_not_back_so_it_is_not_waited_for() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100))
        await desk.spend(account, 19)
        refusal = await desk.refused(asks(72), account)
        assert desk.waited == 0
        assert says_to_wait_for_the_reset(refusal, account)
        assert dict(refusal.headers)["x-ratelimit-remaining"] == "81"
        assert "has used 19 of 100 tokens, held 0; " in refusal.message
        assert (
            "may cost 82 tokens, what is left is 81 tokens; send a smaller max_tokens, or wait"
            in (refusal.message)
        )
        assert account.limit.refusals == 1
        assert await desk.ask(asks(71), account)

    run(main)


def test_what_running_requests_hold_is_waited_for_where_it_would_be_enough() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100))
        await desk.spend(account, 19)
        running = await desk.ask(asks(50), account)
        refusal = await desk.refused(asks(71), account)
        assert desk.waited > 1
        headers = dict(refusal.headers)
        assert (headers["retry-after"], headers["x-ratelimit-remaining"]) == ("1", "21")
        assert "x-should-retry" not in headers
        assert "held 60; what is left is held by running requests" in refusal.message
        refusal = await desk.refused(asks(72), account)
        assert desk.waited == 0
        assert says_to_wait_for_the_reset(refusal, account)
        assert dict(refusal.headers)["x-ratelimit-remaining"] == "21"
        assert "held 60; this request may cost 82 tokens, what is left is 81" in refusal.message

        asyncio.get_running_loop().call_later(WAIT / 4, desk.end, running, 0)
        assert await desk.ask(asks(71), account)

    run(main)


def test_who_waits_is_refused_as_soon_as_what_was_held_is_spent() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100, wait=30.0))
        running = await desk.ask(asks(80), account)
        asyncio.get_running_loop().call_later(WAIT, desk.end, running, 60)
        refusal = await desk.refused(asks(40), account)
        assert says_to_wait_for_the_reset(refusal, account)

    run(main)


def test_a_request_that_may_cost_more_than_the_limit_is_the_first_of_its_window() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100))
        (promise,) = await desk.ask(asks(4096, bounded=False), account)
        assert promise.held == 100
        refusal = await desk.refused(asks(4096, bounded=False), account)
        assert dict(refusal.headers)["retry-after"] == "1"  # the other may give all back
        desk.end([promise], 19)
        refusal = await desk.refused(asks(4096, bounded=False), account)
        assert says_to_wait_for_the_reset(refusal, account)
        assert (
            "may cost 4106 tokens, what is left is 81 tokens; send a max_tokens, without which "
            in (refusal.message)
        )
        assert "4096 output tokens are assumed, or wait" in refusal.message

    run(main)


def test_of_several_budgets_the_one_that_is_reset_last_is_told_and_none_has_changed() -> None:
    async def main(desk: Desk) -> None:
        day = desk.account(cap(100, "day"))
        year = desk.account(cap(100, "year", window=YEAR))
        hour = desk.account(cap(5, "hour", reserves=False, window=HOUR))
        roomy = desk.account(cap(1000, "roomy", "requests"))
        shadow = desk.account(cap(20, "shadow", shadow=True))
        for account in (day, year, shadow):
            await desk.spend(account, 19)
        await desk.spend(hour, 5)
        refusal = await desk.refused(asks(90), roomy, day, year, hour, shadow)
        assert desk.waited == 1  # for the store, that was never asked for all of them
        assert "'year'" in refusal.message
        assert says_to_wait_for_the_reset(refusal, year)
        assert (day.limit.refusals, year.limit.refusals) == (0, 1)
        assert "'hour'" in (await desk.refused(asks(20), roomy, year, hour)).message
        assert (roomy.count.spent, roomy.count.held, year.count.held) == (0, 0, 0)
        # who could wait for one budget does not do so in vain for another
        await desk.ask(asks(20), day)
        await desk.spend(year, 1)
        assert "'year'" in (await desk.refused(asks(71), day, year)).message
        assert desk.waited == 0
        assert "held 30; what is left is held" in (await desk.refused(asks(70), day, year)).message

    run(main)


def test_dollars_are_told_in_dollars() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100_000, unit="usd"))
        await desk.spend(account, 90_000)
        price = Price([Rates(0, 500_000_000, 1_500_000_000)])
        request = asks(100)
        request.price(price)
        refusal = await desk.refused(request, account)
        assert says_to_wait_for_the_reset(refusal, account)
        assert dict(refusal.headers)["x-ratelimit-remaining"] == "10"  # micro-USD
        assert dict(refusal.headers)["x-ratelimit-unit"] == "micro-usd"
        assert "may cost $0.000155, what is left is $0.00001; send a smaller" in refusal.message
        request = asks(1, 100)
        request.price(price)
        assert "send a shorter prompt" in (await desk.refused(request, account)).message

    run(main)


@pytest.mark.parametrize(
    ("unit", "prompt", "output", "mend"),
    [
        ("tokens", 90, 1, "send a shorter prompt, or wait: it resets"),
        ("input_tokens", 90, 1, "send a shorter prompt, or wait: it resets"),
        ("output_tokens", 90, 90, "send a smaller max_tokens, or wait: it resets"),
    ],
)
def test_what_can_be_done_is_told(unit: str, prompt: int, output: int, mend: str) -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100, unit=unit))
        usage = Usage(19, 0 if unit == "tokens" else 19)
        desk.bench.ledger.debit((account,), usage, clock.wall())
        refusal = await desk.refused(asks(output, prompt), account)
        assert f"may cost 9{prompt + output - 90 if unit == 'tokens' else 0} " in refusal.message
        assert mend in refusal.message

    run(main)


def test_what_is_not_read_is_told_of_no_option() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100))
        await desk.spend(account, 19)
        refusal = await desk.refused(asks(4096, operation="", bounded=False), account)
        assert "what is left is 81 tokens; it resets in" in refusal.message
        assert says_to_wait_for_the_reset(refusal, account)

    run(main)


def test_an_answer_that_can_be_limited_is() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100, clamps=True))
        await desk.spend(account, 19)
        message: dict[str, Any] = {"max_tokens": 4096}
        (promise,) = await desk.ask(asks(4096, message=message), account)
        assert message == {"max_tokens": 71}
        message = {"generationConfig": {"maxOutputTokens": 4096}}
        waits = asks(4096, api=GEMINI, operation="generate_content", message=message)
        asyncio.get_running_loop().call_later(WAIT / 4, desk.end, [promise], 60)
        await desk.ask(waits, account)
        assert message == {"generationConfig": {"maxOutputTokens": 11}}

    run(main)


@pytest.mark.parametrize(
    ("request_", "mend"),
    [
        (asks(4096, 81, message={}), "send a shorter prompt, or wait: it"),
        (asks(9000, 79, message={"n": 3, "max_tokens": 3000}), "send a smaller max_tokens, or"),
        (
            asks(4096, api=BEDROCK, operation="text_completion", message={}),
            "room for it; send a smaller limit of output tokens; it",
        ),
        (asks(0, 101, operation="embeddings", message={}), "no window has room for it; send a sh"),
        (asks(4096, 101, message={}), "no window has room for it; send a shorter prompt; it"),
    ],
)
def test_an_answer_that_cannot_be_limited_so_far_is_refused_at_once(
    request_: Reservation, mend: str
) -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100, clamps=True))
        await desk.spend(account, 19)
        before = dict(request_.message or {})
        refusal = await desk.refused(request_, account)
        assert desk.waited == 0
        assert says_to_wait_for_the_reset(refusal, account)
        assert mend in refusal.message
        assert (request_.message, request_.clamped) == (before, False)

    run(main)


def test_with_the_store_away_it_is_said_the_same_and_answers_are_limited() -> None:
    async def main(desk: Desk) -> None:
        capped = desk.account(cap(100))
        clamping = desk.account(cap(100, "clamps", clamps=True))
        for account in (capped, clamping):
            await desk.spend(account, 19)
        desk.bench.settlement.up = False
        assert says_to_wait_for_the_reset(await desk.refused(asks(72), capped), capped)
        message: dict[str, Any] = {}
        await desk.ask(asks(4096, message=message), clamping)
        assert message == {"max_tokens": 71}
        assert desk.waited == 0
        refusal = await desk.refused(asks(4096, message={}), clamping)
        assert "what is left is held by running requests" in refusal.message
        desk.bench.settlement.up = True

    run(main)


def test_a_short_window_may_be_waited_for_unless_none_has_room() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100, window=Ends(30), clamps=True))
        await desk.spend(account, 100 - PROMPT)
        refusal = await desk.refused(asks(9, message={}), account)
        assert "x-should-retry" not in dict(refusal.headers)
        assert 1 <= int(dict(refusal.headers)["retry-after"]) <= 31
        refusal = await desk.refused(asks(9, 100, message={}), account)
        assert dict(refusal.headers)["x-should-retry"] == "false"

    run(main)


def test_where_nothing_may_run_at_one_time_nobody_is_told_of_a_reset() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(0, unit="parallel"))
        refusal = await desk.refused(asks(9), account)
        headers = dict(refusal.headers)
        assert account.end == FAR
        assert (headers["x-ratelimit-reset"], headers["retry-after"]) == ("0", "60")
        assert headers["x-should-retry"] == "false"
        assert refusal.message.endswith("0 requests at one time, held 0; it is never reset")

    run(main)


def test_prompts_of_a_list_that_cannot_be_limited_are_not_waited_for() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(1000, clamps=True))
        await desk.spend(account, 64)
        message = {"prompt": ["a"] * 2000, "max_tokens": 5}
        request = asks(10_000, 2000, operation="text_completion", message=message)
        refusal = await desk.refused(request, account)
        assert desk.waited <= 1
        assert "held by running requests" not in refusal.message

    run(main)


def test_who_waits_for_long_takes_no_account_back_to_the_window_in_which_it_began() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100, window=EpochWindow("minute"), wait=600))
        holder = await desk.ask(asks(80), account)
        asking = asks(80)
        minute = account.start

        class Waiter:
            def admit(self) -> None: ...

            def fail(self) -> None: ...

        began = clock.wall()
        while account.start == minute:
            assert not asking.decide(desk.bench.engine, Waiter(), (account,), began)
            await asyncio.sleep(0.01)
            for later in (60, 120):  # as others ask
                desk.bench.ledger.stale((account,), began + later)
        assert not asking.decide(desk.bench.engine, Waiter(), (account,), began + 120)
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert account.start == minute + 120
        desk.end(holder, 5)

    run(main)


def test_a_clock_that_was_set_back_a_little_keeps_nobody_asking() -> None:
    async def main(desk: Desk) -> None:
        account = desk.account(cap(100, window=EpochWindow("minute"), wait=0))
        later = account.end + 1.0
        desk.bench.ledger.stale((account,), later)
        await desk.ask(asks(80), account)
        assert account.start > later - 10
        asking, called = asks(80), asyncio.Event()

        class Waiter:
            admit = staticmethod(called.set)
            fail = staticmethod(called.set)

        async def ask() -> None:
            for _ in range(20):
                assert not asking.decide(desk.bench.engine, Waiter(), (account,), later - 10)
                await called.wait()
                called.clear()

        with pytest.raises(BudgetExceeded):
            await ask()

    run(main)
