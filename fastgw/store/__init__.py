"""Where counts are kept: one contract (`base`), three stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw.config.redis_url import SCHEMES as REDIS_SCHEMES
from fastgw.store.memory import MemoryStore
from fastgw.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from fastgw.config.tables import Store as StoreSettings
    from fastgw.store.base import Store

__all__ = ["open_store"]

SQLITE_TIMEOUT = 5.0
"""A disk that flushes may take longer than a server that answers."""


def open_store(settings: StoreSettings) -> Store:
    """The store that `[store] url` names; does no I/O yet. Raises ValueError for another scheme."""
    scheme, _, rest = settings.url.partition(":")
    if scheme == "memory":
        return MemoryStore()
    if scheme == "sqlite":
        return SqliteStore(rest, max(settings.timeout, SQLITE_TIMEOUT))
    if scheme in REDIS_SCHEMES:
        from fastgw.store.redis import RedisStore  # 7 MiB and 50 ms for those who need it

        return RedisStore(settings.url, settings.prefix, settings.timeout)
    raise ValueError(f"no store for {scheme}:")
