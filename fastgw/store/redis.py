"""Budgets shared by hosts: Redis or Valkey, 6.2 and later.

Each account is one hash, `<prefix>:a:<account>`, with the fields `used` and `s:<writer>`: the last
sequence that this writer settled there. Beside the number it guards, so that both live and die
together. A batch is one EVALSHA of lua/settle.lua; the server runs it as a whole.

The connection is the store's own and carries one call at a time. After any failure, time-out or
cancellation it is closed and never used again: a late reply on it would be read as the answer to
the next call (CVE-2023-28858).
"""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from fastgw.errors import StoreUnavailable
from fastgw.store.base import UNUSABLE

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from fastgw.model import Batch

_SCRIPT = resources.files("fastgw.store").joinpath("lua/settle.lua").read_text("utf-8")
_SCAN_COUNT = 500
_REPORT_TIMEOUT = 10.0


class RedisStore:
    """See store/base and the module."""

    shared = True

    def __init__(self, url: str, prefix: str, timeout: float) -> None:
        """`timeout`: hard deadline of one settle in seconds, connecting included."""
        self._prefix = f"{prefix}:a:"
        self._timeout = timeout
        self._pool: ConnectionPool = ConnectionPool.from_url(
            url,
            max_connections=1,
            # A repeat by the client would pass the deadline; ours is made by the settlement.
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=timeout,
            decode_responses=True,
            health_check_interval=0,
            protocol=2,
        )
        self._redis: Redis = Redis(connection_pool=self._pool)
        self._sha = ""

    async def open(self) -> None:
        """Connect and load the script."""
        await self._guard(self._load(), self._timeout)

    async def settle(self, batch: Batch) -> list[int]:
        """See Store."""
        keys = []
        arguments: list[str | int] = [batch.writer, batch.sequence]
        prefix = self._prefix
        for account, amount, expires_at in batch.debits:
            keys.append(prefix + account)
            arguments += (amount, expires_at)
        used = await self._guard(self._evaluate(keys, arguments), self._timeout)
        try:
            return [UNUSABLE if value == "error" else int(value) for value in used]
        except (TypeError, ValueError):
            await self._pool.disconnect()
            raise StoreUnavailable("Redis: settle answered something else") from None

    async def accounts(self) -> dict[str, int]:
        """See Store. Scans: for reports, over a connection of its own."""
        reader: Redis = Redis(
            connection_pool=ConnectionPool(
                connection_class=self._pool.connection_class, **self._pool.connection_kwargs
            )
        )
        try:
            found: dict[str, int] = await self._guard(self._scan(reader), _REPORT_TIMEOUT)
            return found
        finally:
            await reader.connection_pool.disconnect()

    async def close(self) -> None:
        """See Store."""
        await self._pool.disconnect()

    async def _load(self) -> None:
        self._sha = await self._redis.script_load(_SCRIPT)

    async def _evaluate(self, keys: list[str], arguments: list[str | int]) -> list[str]:
        if not self._sha:
            await self._load()
        try:
            return await self._call(keys, arguments)
        except NoScriptError:
            await self._load()  # the server was restarted, or its scripts flushed
            return await self._call(keys, arguments)

    async def _call(self, keys: list[str], arguments: list[str | int]) -> list[str]:
        answer = await self._redis.evalsha(self._sha, len(keys), *keys, *arguments)
        return list(answer)

    async def _scan(self, reader: Redis) -> dict[str, int]:
        found: dict[str, int] = {}
        escaped = "".join(f"\\{c}" if c in "*?[]\\^-" else c for c in self._prefix)
        pattern = f"{escaped}*"
        names = [name async for name in reader.scan_iter(match=pattern, count=_SCAN_COUNT)]
        for at in range(0, len(names), _SCAN_COUNT):
            part = names[at : at + _SCAN_COUNT]
            pipe = reader.pipeline(transaction=False)
            for name in part:
                pipe.hget(name, "used")
            values = await pipe.execute(raise_on_error=False)
            for name, value in zip(part, values, strict=True):
                if isinstance(value, str):  # else gone meanwhile, or no count: settle tells
                    found[name.removeprefix(self._prefix)] = int(value)
        return found

    async def _guard(self, call: Awaitable[Any], within: float) -> Any:
        try:
            async with asyncio.timeout(within):
                return await call
        except TimeoutError:
            await self._drop()
            raise StoreUnavailable(f"Redis took longer than {within} s") from None
        except (RedisError, OSError, ValueError) as error:
            await self._drop()
            raise StoreUnavailable(f"Redis: {_without_secrets(error)}") from None
        except BaseException:
            await self._drop()
            raise

    async def _drop(self) -> None:
        await self._pool.disconnect(inuse_connections=True)


def _without_secrets(error: Exception) -> str:
    """What went wrong, in words that hold no part of the URL's user or password."""
    kind = type(error).__name__
    text = str(error)
    for known in ("WRONGPASS", "NOAUTH", "NOPERM", "READONLY", "OOM", "LOADING", "MISCONF"):
        if known in text or kind.upper().startswith(known):
            return known
    if isinstance(error, OSError) or kind == "ConnectionError":
        return "cannot connect"
    return kind
