"""Everything breaks at once, and the books must agree to the token.

    python -m tests.adversity.chaos --seconds 60 --workers 2 --store redis

A stub provider that keeps its book, a Redis that keeps what it acknowledged (behind a proxy that
can break) or SQLite, the gateway with so many workers, clients of which one in five leaves in the
middle. Meanwhile workers and Redis are killed, Redis is stopped, its connections are reset, its
replies lost, its scripts flushed. Then everything comes to rest and `fastgw audit` compares.

Wrong is: any disagreement of the books; a 429 of an account that was not full; a 5xx, but for 503
while the store is away and `on_failure` is closed; an answer that broke off though no worker died;
an answer that hangs; one that a client has whole, and nobody was charged for. A report in JSON ends
it; the exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from fastgw import tasks
from fastgw.audit.findings import UNLOGGED
from fastgw.audit.judge import most
from fastgw.audit.logs import Asked, Unreadable, read_access_log, read_stub_log
from tests.adversity.chaos_clients import Crowd, Seen
from tests.adversity.chaos_faults import KEYS, SMALL, Faults, House
from tests.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

SERVED = "was served"

LAST_PAUSE = 10.0
"""Seconds after which a supervisor starts a worker again at the latest."""

FILL = 600
"""Limit of the accounts that fill, in tokens for each second of the run."""


def run(
    folder: Path,
    *,
    seconds: float,
    workers: int = 1,
    store: str = "redis",
    clients: int = 200,
    kills: int = 0,
    on_failure: str = "local",
    seed: int = 1,
    forget: bool = False,
) -> dict[str, Any]:
    """One run; returns its report, whose `wrong` is empty if all is well. `forget`: the SQLite file
    is taken away before the audit, which must find that."""
    house = House(
        folder, store=store, workers=workers, on_failure=on_failure, small=int(seconds * FILL)
    )
    try:
        faults = Faults(house, seconds, kills, seed, empties=workers == 1 and not kills)
        crowd = Crowd(house.port, KEYS, seed)
        began = time.monotonic()
        asyncio.run(_storm(crowd, faults, clients, seconds))
        took = time.monotonic() - began
        (folder / "served").write_text("\n".join(sorted(crowd.seen.served)))  # for who looks on
        wrong = list(crowd.seen.wrong)
        try:
            house.rest()
        except AssertionError as error:
            wrong.append(str(error))
        if (code := house.end()) != 0:
            wrong.append(f"the gateway ended with {code}")
        wrong += _tracebacks((folder / "gateway.log").read_text())
        if forget:
            house.database.unlink()
        books = _audit(house)
        vanished = let_in_and_lost(crowd.seen, house) if kills else Counter[str]()
        if not agree(books, vanished):
            wrong.append("the books disagree")
        short = shortfall(books, crowd.seen.served)
        wrong += [f"{name} {SERVED} {tokens} tokens too much" for name, tokens in short.items()]
        wrong += [f"{name}: {number} requests not counted" for name, number in uncounted(books)]
        books["exchanges"] = {kind: some[:5] for kind, some in books["exchanges"].items()}
        books["accounts"] = [row for row in books["accounts"] if row["difference"]]
        false = false_refusals(crowd.seen, house)
        wrong += [f"refused though not full: {each}" for each in false]
        wrong += _unexplained(crowd.seen, faults, on_failure)
        return {
            "store": store,
            "workers": workers,
            "on_failure": on_failure,
            "seconds": round(took, 1),
            "seed": seed,
            "outcomes": dict(sorted(crowd.seen.outcomes.items())),
            "unreachable": len(crowd.seen.unreachable),
            "faults": dict(faults.done),
            "replies_lost": house.proxy.lost if house.proxy is not None else 0,
            "false_refusals": len(false),
            "audit": books,
            "wrong": wrong[:50],
            "wrong_count": len(wrong),
        }
    finally:
        house.close()


def _tracebacks(log: str) -> list[str]:
    """The last line of each traceback."""
    return [
        f"in the log: {part}"
        for part in re.findall(r"^Traceback .*\n(?:^[ \n].*\n?)*^(\S.*)$", log, re.MULTILINE)
    ]


async def _storm(crowd: Crowd, faults: Faults, clients: int, seconds: float) -> None:
    crowd_runs = tasks.spawn(crowd.run(clients), "chaos crowd")
    faults.start()
    try:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(faults.stop)
        await asyncio.sleep(1.0)  # with all faults over, all must be well
    finally:
        crowd.stop()
        await crowd_runs


def _audit(house: House) -> dict[str, Any]:
    """What `fastgw audit` says."""
    command = ["audit", "--config", str(house.config), "--stub-log", str(house.stub_log)]
    command += ["--access-log", str(house.access_log), "--format", "json"]
    done = subprocess.run(
        [sys.executable, "-m", "fastgw", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if not done.stdout:
        return {"equal": False, "error": done.stderr, "exchanges": {}, "accounts": []}
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def let_in_and_lost(seen: Seen, house: House) -> Counter[str]:
    """By key, the requests without an answer that are in no log: a worker may have let them in, and
    counted them, and been killed before the provider had them."""
    logs = (read_stub_log(str(house.stub_log)), read_access_log(str(house.access_log)))
    known = {line.request_id for log in logs for line in log if not isinstance(line, Unreadable)}
    return Counter(name for name, number in seen.unanswered if number not in known)


def agree(books: dict[str, Any], vanished: Counter[str]) -> bool:
    """Whether the audit finds the books equal, but for requests that no log can tell of."""
    if books.get("equal"):
        return True
    counts = books.get("counts")
    if counts is None or set(counts) - {UNLOGGED}:
        return False
    return all(
        row["budget"] == "calls" and 0 < row["difference"] <= vanished[row["account"]]
        for row in books["accounts"]
        if row["difference"]
    )


def uncounted(books: dict[str, Any]) -> list[tuple[str, int]]:
    """By key, the requests that reached the provider and that no account of requests has. They are
    counted as they are let in: none may be missing, whatever became of worker and log."""
    reached = Counter(each["key"] for each in books["exchanges"].get(UNLOGGED, ()))
    return [
        (row["account"], missing)
        for row in books["accounts"]
        if row["budget"] == "calls"
        and (missing := row["provider"] + reached[row["account"]] - row["used"]) > 0
    ]


def shortfall(books: dict[str, Any], served: set[str]) -> dict[str, int]:
    """By key, the tokens of answers that a client has whole, and no account. Whoever has the end of
    an answer has been charged for it, whatever became of the worker and its log."""
    owed: dict[str, int] = {}
    for each in books["exchanges"].get(UNLOGGED, ()):
        provider = each["provider"]
        if each["request_id"] in served and provider["reported"]:
            tokens = provider["input_tokens"] + provider["output_tokens"]
            owed[each["key"]] = owed.get(each["key"], 0) + tokens
    for row in books["accounts"]:
        if row["budget"] in ("big", "small") and row["account"] in owed:
            owed[row["account"]] -= row["used"] - row["provider"]
    return {name: tokens for name, tokens in owed.items() if tokens > 0}


def false_refusals(seen: Seen, house: House) -> list[tuple[float, str, str, str]]:
    """The 429s of accounts that cannot have been full: all that was asked for until then would not
    have filled them."""
    asked: dict[str, list[Asked]] = {name: [] for name in SMALL}
    for line in read_stub_log(str(house.stub_log)):
        if isinstance(line, Asked) and line.key in asked:
            asked[line.key].append(line)
    times: dict[str, list[float]] = {}
    sums: dict[str, list[int]] = {}
    for name, several in asked.items():
        several.sort(key=lambda each: each.began)
        times[name] = [each.began for each in several]
        sums[name] = [0, *accumulate(sum(most(each)[:2]) for each in several)]
    return [
        refusal
        for refusal in seen.refusals
        if refusal[1] not in asked
        or sums[refusal[1]][bisect.bisect(times[refusal[1]], refusal[0])] < house.small
    ]


def _unexplained(seen: Seen, faults: Faults, on_failure: str) -> list[str]:
    """Failures and broken answers that no fault explains."""
    found = []
    for failure in seen.failures:
        closed = on_failure == "closed" and failure[3] == "503 store_unavailable"
        if not (closed and _within(failure[0], faults.away)):
            found.append(f"failed: {failure}")
    found += [f"broke off: {each}" for each in seen.broken if not _within(each[0], faults.killed)]
    paused = [(began, ended + LAST_PAUSE) for began, ended in faults.killed]
    found += [f"unreachable at {each}" for each in seen.unreachable if not _within(each, paused)]
    return found


def _within(moment: float, spans: Sequence[tuple[float, float]]) -> bool:
    return any(began <= moment <= ended for began, ended in spans)


def main() -> int:
    """`python -m tests.adversity.chaos`."""
    parser = argparse.ArgumentParser(description="Everything breaks, and the books must agree.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--store", choices=("redis", "sqlite"), default="redis")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10, help="workers killed; 0: none")
    parser.add_argument("--on-failure", choices=("local", "closed", "open"), default="local")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--json", metavar="FILE", help="write the report there as well")
    parser.add_argument("--keep", metavar="FOLDER", help="leave logs and store there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastgw-chaos-") as folder:
        if options.keep:
            Path(options.keep).mkdir(parents=True, exist_ok=True)
        report = run(
            Path(options.keep or folder),
            seconds=options.seconds,
            workers=options.workers,
            store=options.store,
            clients=options.clients,
            kills=options.kills,
            on_failure=options.on_failure,
            seed=options.seed,
        )
    text = orjson.dumps(report, option=orjson.OPT_INDENT_2).decode() + "\n"
    if options.json:
        Path(options.json).write_text(text)
    sys.stdout.write(text)
    return 1 if report["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
