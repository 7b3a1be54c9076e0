"""Joins ledger, journal and store: opens a worker's book, and settles the books of the dead.

A worker that dies leaves a journal. Whoever starts next in the same folder takes the first one that
is free as its own and goes on with it; the others that owe something are settled here, each under
its own name, and removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import socket
from typing import TYPE_CHECKING

from fastgw import clock, journal
from fastgw.config.redis_url import SCHEMES, parse_redis_url
from fastgw.errors import StoreUnavailable
from fastgw.journal import Journal, JournalError
from fastgw.policy.ledger import Ledger
from fastgw.store import open_store

if TYPE_CHECKING:
    from fastgw.config.tables import Store as StoreSettings
    from fastgw.store.base import Store

log = logging.getLogger(__name__)

RETRY = 5.0
"""Seconds until the store is tried again for the debts of the dead."""
LOOK = 60.0
"""Seconds between two looks for journals whose owner died."""


def folder_of(settings: StoreSettings) -> str:
    """Where journals are kept, "" for nowhere."""
    if settings.journal != "auto":
        return settings.journal
    scheme, _, rest = settings.url.partition(":")
    if scheme == "memory":
        return ""
    if scheme == "sqlite":
        return f"{rest}.debits"
    return os.path.join(os.environ.get("STATE_DIRECTORY", "").partition(":")[0], "fastgw.debits")


def _names_of(settings: StoreSettings) -> tuple[str, ...]:
    """The store, a journal belongs to one; then the name that it had in older versions.

    Only what tells it from another: no credentials, no options, no way of writing the same.
    """
    scheme, _, rest = settings.url.partition(":")
    if scheme == "sqlite":
        return (f"sqlite:{os.path.realpath(rest)}",)
    older = f"{scheme}:{re.sub(r'//[^/]*@', '//', rest)} {settings.prefix}"
    if scheme not in SCHEMES:
        return (older,)
    url = parse_redis_url(settings.url)
    # Sentinels know the service by its name, whichever of them are asked.
    place = url.service or ",".join(sorted({_place(*host) for host in url.hosts}))
    return f"redis {url.topology} {place}/{url.db} {settings.prefix}", older


def _place(host: str, port: int) -> str:
    return f"{'127.0.0.1' if host == 'localhost' else host}:{port}"


def open_book(settings: StoreSettings, store: Store) -> tuple[Ledger, Journal | None]:
    """The ledger of this worker and the journal it writes. Raises JournalError if the folder that
    was asked for cannot be used; one that nobody asked for is done without."""
    staleness = settings.max_staleness if store.shared else float("inf")
    folder = folder_of(settings)
    kept = None
    if folder:
        try:
            kept = journal.claim(folder, *_names_of(settings))
        except JournalError as error:
            if settings.journal != "auto":
                raise
            log.warning("%s; a crash loses what the store does not have yet", error)
    if kept is None:
        writer = f"{socket.gethostname()[:32]}:{os.getpid()}:{secrets.token_hex(6)}"
        return Ledger(writer, staleness), None
    others = journal.strangers(folder, *_names_of(settings))
    if others:
        log.warning(
            "journal: %s in %s owe debits to another store than [store] url names now; to settle "
            "them start fastgw with the url and prefix of then, or remove the files",
            ", ".join(others[:10]) + (", …" if len(others) > 10 else ""),
            folder,
        )
    owing = sum(1 for each in kept.owed if each.sent or each.rest)
    if owing:
        log.warning("journal: %d account(s) of a process that died are settled now", owing)
    ledger = Ledger(kept.writer, staleness, slots=kept, sequence=kept.sequence, owed=kept.owed)
    kept.owed = []
    return ledger, kept


async def settle_orphans(settings: StoreSettings) -> None:
    """Settle what dead workers left, now and whenever one is found. Runs until it is cancelled."""
    folder = folder_of(settings)
    while folder:
        for orphan in journal.orphans(folder, *_names_of(settings)):
            try:
                await _settle(orphan, settings)
            except asyncio.CancelledError:
                orphan.close()
                raise
            except Exception:
                log.exception("journal: %s cannot be settled; it is kept", orphan.writer)
                orphan.close()
                continue
            log.warning("journal: %s of a process that died is settled", orphan.writer)
            orphan.remove()
        await asyncio.sleep(LOOK)


async def _settle(orphan: Journal, settings: StoreSettings) -> None:
    """Settle all that an orphan owes, under its name, over a connection of its own."""
    ledger = Ledger(
        orphan.writer,
        float("inf"),
        slots=orphan,
        sequence=orphan.sequence,
        owed=orphan.owed,
    )
    store = open_store(settings)
    try:
        while (batch := ledger.take()) is not None:
            try:
                answer = await store.settle(batch)
            except StoreUnavailable:
                await asyncio.sleep(RETRY)
            else:
                unusable = ledger.settled(answer, clock.wall())
                if unusable:
                    log.error(
                        "journal: the store cannot keep %d account(s), as %s: what %s owed there "
                        "is not counted",
                        len(unusable),
                        unusable[0],
                        orphan.writer,
                    )
    finally:
        with contextlib.suppress(StoreUnavailable):
            await store.close()
