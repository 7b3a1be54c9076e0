"""Redis or Valkey Cluster: accounts spread over its masters, a batch over as many calls.

A script may touch keys of one hash slot only (of 16,384, each with one master). One slot for each
account would be one call for each line; so accounts fall into 16 groups by the CRC-32 of their
name, and the group's hash tag in the key, `<prefix>:a:{<tag>}:<account>`, puts a whole group into
one slot. The tags are chosen to lie evenly over the slots: up to 16 masters share the work.

A batch is one call for each group that it touches. Those for one master travel together, masters
work at the same time. A line is guarded by its sequence wherever it runs, so a batch that failed in
part is sent again as a whole.

The cluster says where slots are (CLUSTER SLOTS), and corrects us as it goes:

    MOVED     the slot is elsewhere for good: noted, the call goes there
    ASK       the slot is on its way and these keys have left: this call goes there, once
    TRYAGAIN  some keys have left: the lines go one by one, each finds its key here or there

After any other failure it is asked anew: by whichever known node answers first.
"""

from __future__ import annotations

import asyncio
import binascii
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from redis.exceptions import RedisError, ResponseError

from fastgw.errors import StoreUnavailable
from fastgw.store.link import REPORT_TIMEOUT, Answer, Wire, accepted, code, first, reason, within

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from fastgw.config.redis_url import RedisUrl
    from fastgw.store.link import Address, Encode, Script

_T = TypeVar("_T")

SLOTS = 16384
TAGS = "10 3 61 43 11 2 60 42 12 1 63 41 13 0 62 40".split()
"""The hash tag of each group. Never to change: counts would be looked for elsewhere."""

_MOVES = 8
"""Redirections that one batch follows at most."""


def group(account: str) -> int:
    """Which of the groups an account is in; the same in every process and version."""
    return zlib.crc32(account.encode()) % len(TAGS)


def slot(tag: str) -> int:
    """The hash slot of keys with this tag (Redis Cluster specification, "Key distribution")."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


class _Part(NamedTuple):
    """Lines of one group on their way."""

    group: int
    lines: Sequence[int]
    to: Address
    asking: bool = False


class ClusterLink:
    """See Link and the module."""

    def __init__(self, url: RedisUrl, timeout: float) -> None:
        """`timeout`: hard deadline in seconds of a whole batch, whatever it has to go through."""
        self._url = url
        self._timeout = timeout
        self._owners: list[Address] = []  # by group; empty: to be asked
        self._wires: dict[Address, Wire] = {}

    def tag(self, account: str) -> str:
        """See Link."""
        return f"{{{TAGS[group(account)]}}}:"

    def untag(self, name: str) -> str:
        """See Link."""
        return name.partition("}:")[2]

    async def open(self) -> None:
        """See Link."""
        await self._guarded(self._greet())

    async def evaluate(
        self, script: Script, accounts: Sequence[str], encode: Encode
    ) -> list[Answer]:
        """See Link."""
        return await self._guarded(self._evaluate(script, accounts, encode))

    async def hashes(self, pattern: str) -> dict[str, dict[str, str]]:
        """See Link."""
        return await within(REPORT_TIMEOUT, self._read(pattern))

    async def drop(self) -> None:
        """See Link."""
        wires, self._wires, self._owners = self._wires, {}, []
        for wire in wires.values():
            await wire.drop()

    async def close(self) -> None:
        """See Link."""
        await self.drop()
        await asyncio.sleep(0)  # the loop closes an aborted socket in its next turn

    # the map

    async def _locate(self) -> list[Address]:
        """The master of each group, as the first node says that answers."""
        known = dict.fromkeys((*self._wires, *self._url.hosts))
        return await first([self._ask(address) for address in known])

    async def _ask(self, address: Address) -> list[Address]:
        wire = Wire(self._url, address)
        try:
            ranges = accepted((await wire.exchange(("CLUSTER", "SLOTS")))[0])
        except (RedisError, OSError, ValueError) as error:
            raise _failure(address, error) from None
        finally:
            await wire.drop()
        owners: dict[int, Address] = {}
        for begin, end, master, *_ in ranges:
            for number, tag in enumerate(TAGS):
                if begin <= slot(tag) <= end:
                    # a node that does not know its own name says none: it is where we asked
                    owners[number] = (str(master[0] or address[0]), int(master[1]))
        if len(owners) < len(TAGS):
            raise StoreUnavailable("Redis: the cluster has no master for some accounts")
        return [owners[number] for number in range(len(TAGS))]

    async def _refresh(self) -> None:
        self._owners = await self._locate()
        for address in set(self._wires) - set(self._owners):
            await self._wires.pop(address).drop()

    def _wire(self, address: Address) -> Wire:
        wire = self._wires.get(address)
        if wire is None:
            wire = self._wires[address] = Wire(self._url, address)
        return wire

    # the work

    async def _greet(self) -> None:
        if not self._owners:  # as at first, and after each failure
            await self._refresh()
        await _all(self._ping(address) for address in set(self._owners))

    async def _ping(self, address: Address) -> None:
        try:
            accepted((await self._wire(address).exchange(("PING",)))[0])
        except (RedisError, OSError, ValueError) as error:
            raise _failure(address, error) from None

    async def _evaluate(
        self, script: Script, accounts: Sequence[str], encode: Encode
    ) -> list[Answer]:
        if not self._owners:
            await self._refresh()
        groups: dict[int, list[int]] = {}
        for line, account in enumerate(accounts):
            groups.setdefault(group(account), []).append(line)
        parts = [_Part(number, lines, self._owners[number]) for number, lines in groups.items()]
        answers: list[Answer] = []
        for _ in range(_MOVES):
            calls: dict[tuple[Address, bool], list[_Part]] = {}
            for part in parts:
                calls.setdefault((part.to, part.asking), []).append(part)
            replies = await _all(
                self._send(script, encode, to, together, asking=asking)
                for (to, asking), together in calls.items()
            )
            parts = []
            for together, values in zip(calls.values(), replies, strict=True):
                for part, reply in zip(together, values, strict=True):
                    if isinstance(reply, ResponseError):
                        parts += self._redirected(part, reply)
                    else:
                        answers.append(Answer(part.lines, reply))
            if not parts:
                return answers
        raise StoreUnavailable("Redis: the cluster sends from one node to another without end")

    async def _send(
        self, script: Script, encode: Encode, to: Address, parts: list[_Part], *, asking: bool
    ) -> list[Any]:
        calls = [encode(part.lines) for part in parts]
        try:
            return await self._wire(to).run(script, calls, asking=asking)
        except (RedisError, OSError, ValueError) as error:
            raise _failure(to, error) from None

    def _redirected(self, part: _Part, reply: ResponseError) -> list[_Part]:
        """Where a part goes next, or StoreUnavailable."""
        kind = code(reply)
        if kind == "MOVED":
            self._owners[part.group] = to = _named(reply, part.to)
            return [part._replace(to=to, asking=False)]
        if kind == "ASK":
            to = _named(reply, part.to)
            return [part._replace(lines=(line,), to=to, asking=True) for line in part.lines]
        if kind == "TRYAGAIN" and len(part.lines) > 1:
            return [part._replace(lines=(line,)) for line in part.lines]
        raise _failure(part.to, reply)

    async def _read(self, pattern: str) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        owners = set(await self._locate())
        for hashes in await _all(self._hashes(address, pattern) for address in owners):
            found |= hashes
        return found

    async def _hashes(self, address: Address, pattern: str) -> dict[str, dict[str, str]]:
        wire = Wire(self._url, address)
        try:
            return await wire.hashes(pattern)
        finally:
            await wire.drop()

    async def _guarded(self, work: Coroutine[Any, Any, _T]) -> _T:
        try:
            return await within(self._timeout, work)
        except BaseException:
            # Wires that failed have closed themselves; the others are in step and are kept.
            self._owners = []
            raise


async def _all(works: Iterable[Coroutine[Any, Any, _T]]) -> list[_T]:
    """All results. One failure lets the others end, so that their connections stay in step."""
    results: list[_T] = []
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results


def _named(redirection: ResponseError, asked: Address) -> Address:
    """The node in `MOVED 3999 127.0.0.1:6381`; without a host it is the one that was asked."""
    host, _, port = str(redirection).rpartition(" ")[2].rpartition(":")
    return host or asked[0], int(port)


def _failure(address: Address, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"Redis at {address[0]}:{address[1]}: {reason(error)}")
