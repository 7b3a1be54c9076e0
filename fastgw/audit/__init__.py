"""The checker: do the store's accounts hold what the provider reported?

Three books are compared. The provider's log says what it reported for each exchange (the stub
writes one, see demo/stub_log). The access log says what the gateway charged for it. The store says
what each account has used.

1. An exchange of both logs is joined by its request id and judged by `disagreement`: a report must
   be charged as it is, what nobody reported may be charged by count, within what was written.
2. The store must hold, for each account and window, the sum of what is certain, and at most what is
   possible besides: an exchange without a line in the access log (its worker was killed, or it came
   as the window changed) may have been charged in full, in part or not at all.
3. Without an access log the provider's tag of each exchange (`account`, a key's name) says whom to
   charge, and an answer that went out whole is certain. Exact where no client leaves.

Both logs are read line by line, in the order of their times; what is kept is what has not met its
other half yet.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from fastgw import clock
from fastgw.audit.books import NOTHING, UNITS, Books, Cost
from fastgw.audit.findings import Audit, render
from fastgw.audit.judge import Join, least, most
from fastgw.audit.logs import Charged, Unreadable, read_access_log, read_stub_log
from fastgw.store import open_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgw.config.tables import Config

__all__ = ["audit", "render"]


async def audit(config: Config, stub_logs: Sequence[str], access_logs: Sequence[str]) -> Audit:
    """Compare. Raises OSError for a file that cannot be read, StoreUnavailable."""
    found = Audit()
    # Only the access log tells of requests that were let in and never reached the provider.
    units = set(UNITS) if access_logs else set(UNITS) - {"requests"}
    books = Books(config, found, clock.wall(), units)
    lines = [read_stub_log(each) for each in stub_logs]
    lines += [read_access_log(each) for each in access_logs]
    join = Join(books, found)
    for line in heapq.merge(*lines, key=lambda each: each.time):
        if isinstance(line, Unreadable):
            found.unreadable += 1
        elif isinstance(line, Charged):
            join.charge(line)
        elif access_logs:
            join.ask(line)
        else:
            found.compared += 1
            certain, bound = NOTHING, NOTHING if line.whole else most(line)
            if line.whole and line.status == 200:
                certain = bound = Cost(line.given, line.made, 1)
                if not line.reported:
                    certain, bound = least(line), most(line)
            books.add_unlogged(line, certain, bound)
    join.close()
    store = open_store(config.store)
    try:
        await store.open()
        standing = await store.accounts()
    finally:
        await store.close()
    books.close({name: each.used for name, each in standing.items()})
    return found
