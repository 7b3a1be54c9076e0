"""What a worker does beside its loop."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fastgw import clock, worker
from fastgw.config import AccessLog, Admin, Budget, Config, Key, Metrics, Server, Store
from fastgw.plan import Planner
from fastgw.store.memory import MemoryStore
from fastgw.worker import Worker

if TYPE_CHECKING:
    import pytest

    from fastgw.model import Batch, Settled, Standing
    from fastgw.store.base import Sequences


def config(keys: int) -> Config:
    return Config(
        server=Server(listen=("127.0.0.1:0",)),
        admin=Admin(listen=""),
        store=Store(url="memory:"),
        metrics=Metrics(),
        access_log=AccessLog(path=""),
        keys=tuple(
            Key(name=str(each), digest=hashlib.sha256(b"%d" % each).digest())
            for each in range(keys)
        ),
    )


def test_a_reload_makes_and_frees_keys_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100,000 either would hold all requests for as long as it takes."""
    threads: dict[str, int] = {}
    freed: list[Any] = []

    def plan(*arguments: Any) -> Planner:
        threads["made"] = threading.get_ident()
        return Planner(*arguments)

    def let_go(objects: list[Any]) -> None:
        threads["freed"] = threading.get_ident()
        freed.extend(type(each) for each in objects)

    async def main() -> None:
        served = Worker(config(3))
        await served.start()
        monkeypatch.setattr(worker, "Planner", plan)
        monkeypatch.setattr(worker, "let_go", let_go)
        await served.reload(config(5))
        assert served.status()["keys"] == 5
        await served.stop()

    asyncio.run(main())
    assert set(threads) == {"made", "freed"}
    assert threading.get_ident() not in threads.values()
    assert freed == [Key] * 6  # as configured, and in the ring


def test_a_scrape_gets_as_many_accounts_as_metrics_may_show() -> None:
    """And all that owe the store something, which the list of budgets needs."""

    async def main() -> None:
        settings = replace(
            config(0),
            budgets=(Budget(name="daily", per=("user_id",), limit=100),),
            metrics=Metrics(max_series=3),
        )
        served = Worker(settings)
        await served.start()
        (rule,) = served._planner.rules
        ledger, now = served._ledger, clock.wall()
        kept = [ledger.account(rule.limit, (str(each),), now) for each in range(10)]
        assert [row.account for row in served.account_rows()] == ["0", "1", "2"]
        ledger._add(kept[7].count, 5)
        assert [row.account for row in served.account_rows()] == ["0", "1", "2", "7"]
        (row,) = await served._budgets()
        assert (row["account"], row["used"]) == ({"user_id": "7"}, 5)
        await served.stop()

    asyncio.run(main())


def test_reports_count_no_debit_twice_that_is_on_its_way() -> None:
    """Whether the store had applied it when it was read, or its answer came meanwhile."""

    class Slow(MemoryStore):
        async def settle(self, batch: Batch) -> Settled:
            answer = await super().settle(batch)
            await gate.wait()
            return answer

        async def accounts(
            self, usage: bool = False, settled: Sequences | None = None
        ) -> dict[str, Standing]:
            found = await super().accounts(usage, settled)
            await reading.wait()
            return found

    async def main() -> None:
        settings = replace(config(0), budgets=(Budget(name="daily", per=("user_id",), limit=100),))
        served = Worker(settings)
        store = served._store = Slow()
        await served.start()
        (rule,) = served._planner.rules
        ledger = served._ledger
        alice = ledger.account(rule.limit, ("alice",), clock.wall())

        async def used() -> int:
            (row,) = await served._budgets()
            return int(row["used"])

        ledger._add(alice.count, 5)
        while not alice.count.sent:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert await used() == 5  # applied, not answered
        ledger._add(alice.count, 7)
        assert await used() == 12
        reading.clear()
        looking = asyncio.ensure_future(used())
        await asyncio.sleep(0.01)
        gate.set()
        while alice.count.pending or alice.count.sent:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        ledger._add(alice.count, 1)
        reading.set()
        assert await looking == 13  # what it found is older than what is known
        await served.stop()
        await store.close()

    gate, reading = asyncio.Event(), asyncio.Event()
    reading.set()
    asyncio.run(main())
