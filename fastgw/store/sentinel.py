"""Redis behind Sentinels: one server at a time takes writes, and they say which.

All Sentinels of the URL are asked at once; the first that names a server counts, if that server
says itself that it is a master (its ROLE): a Sentinel cut off from the others may name one that was
demoted. One Sentinel that is down or silent costs nothing.

They are asked anew after every failure, READONLY among them, so a failover costs the calls that
fall into it and no more. While all goes well they are asked once a second, beside the calls: after
a failover in order the old master takes writes for another ten seconds, which all are lost when it
is told.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from fastgw import clock, tasks
from fastgw.errors import StoreUnavailable
from fastgw.store.link import SingleLink, Wire, accepted, first, reason, within

if TYPE_CHECKING:
    import asyncio

    from fastgw.config.redis_url import RedisUrl
    from fastgw.store.link import Address

LOOK_AGAIN = 1.0
"""Seconds after which a master that answers is asked for again."""


class SentinelLink(SingleLink):
    """See Link and the module. All accounts are on the master that the Sentinels name."""

    def __init__(self, url: RedisUrl, timeout: float) -> None:
        """`timeout`: hard deadline of a call in seconds, asking and connecting included."""
        super().__init__(self._look, timeout)
        self._url = url
        self._looked_at = 0.0
        self._looking: asyncio.Task[Any] | None = None

    async def close(self) -> None:
        """See Link."""
        if self._looking is not None:
            self._looking.cancel()
        await super().close()

    async def _look(self) -> Wire:
        wire = Wire(self._url, await self._master())
        self._looked_at = clock.monotonic()
        return wire

    async def _master(self) -> Address:
        return await first([_master(self._url, host) for host in self._url.hosts])

    async def _wired(self) -> Wire:
        wire = await super()._wired()
        if clock.monotonic() - self._looked_at >= LOOK_AGAIN:
            self._looked_at = clock.monotonic()
            if self._looking is None or self._looking.done():
                self._looking = tasks.spawn(self._look_again(wire), "sentinel")
        return wire

    async def _look_again(self, wire: Wire) -> None:
        """Leave a master that is none any more. Without an answer, stay."""
        with contextlib.suppress(StoreUnavailable):
            if await within(self._timeout, self._master()) != wire.address:
                if self._wire is wire:
                    self._wire = None
                await wire.retire()


async def _master(url: RedisUrl, host: Address) -> Address:
    """Where one Sentinel says the master is, if that agrees."""
    address = await _named(url, host)
    wire = Wire(url, address)
    try:
        role = accepted((await wire.exchange(("ROLE",)))[0])
    except (RedisError, OSError, ValueError) as error:
        raise StoreUnavailable(f"Redis at {address[0]}:{address[1]}: {reason(error)}") from None
    finally:
        await wire.drop()
    if role[0] != "master":
        raise StoreUnavailable(
            f"Redis at {address[0]}:{address[1]}: Sentinel calls it the master, itself a replica"
        )
    return address


async def _named(url: RedisUrl, host: Address) -> Address:
    login = replace(url, username=url.sentinel_username, password=url.sentinel_password, db=0)
    wire = Wire(login, host)
    try:
        ask = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", url.service)
        named = accepted((await wire.exchange(ask))[0])
    except (RedisError, OSError, ValueError) as error:
        why = reason(error)
        if "NOAUTH" in why:
            why += "; give it as sentinel_password"
        raise StoreUnavailable(f"Sentinel at {host[0]}:{host[1]}: {why}") from None
    finally:
        await wire.drop()
    if not named:
        raise StoreUnavailable(f"Sentinel at {host[0]}:{host[1]}: knows no service of that name")
    return str(named[0]), int(named[1])
