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
from fastgw.worker import Worker

if TYPE_CHECKING:
    import pytest


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
        await served.stop()

    asyncio.run(main())
