"""Budgets shared by hosts: Redis or Valkey, 6.2 and later.

Each account is one hash, `<prefix>:a:<account>`, with the fields `used` and `s:<writer>`: the last
sequence that this writer settled there. Beside the number it guards, so that both live and die
together. A batch is one EVALSHA of lua/settle.lua; the server runs it as a whole.

How the server is reached, and what a failure there means, is the link's: see `link`.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from fastgw.config.redis_url import parse_redis_url
from fastgw.errors import StoreUnavailable
from fastgw.store.base import UNUSABLE
from fastgw.store.link import Call, Script, single

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgw.model import Batch
    from fastgw.store.link import Link

_SETTLE = Script(resources.files("fastgw.store").joinpath("lua/settle.lua").read_text("utf-8"))


class RedisStore:
    """See store/base and the module."""

    shared = True

    def __init__(self, url: str, prefix: str, timeout: float) -> None:
        """`timeout`: hard deadline of one settle in seconds, connecting included.

        Raises ValueError for a URL that is none."""
        self._prefix = f"{prefix}:a:"
        self._link: Link = single(parse_redis_url(url), timeout)

    async def open(self) -> None:
        """Connect."""
        await self._link.open()

    async def settle(self, batch: Batch) -> list[int]:
        """See Store."""
        debits = batch.debits
        answers = await self._link.evaluate(
            _SETTLE,
            [debit.account for debit in debits],
            lambda lines: self._encode(batch, lines),
        )
        used = [UNUSABLE] * len(debits)
        try:
            for lines, values in answers:
                for line, value in zip(lines, _decode(values), strict=True):
                    used[line] = value
        except (TypeError, ValueError):
            await self._link.drop()
            raise StoreUnavailable("Redis: settle answered something else") from None
        return used

    def _encode(self, batch: Batch, lines: Sequence[int]) -> Call:
        """KEYS and ARGV of settle.lua for some lines of the batch."""
        prefix, tag = self._prefix, self._link.tag
        keys = []
        arguments: list[str | int] = [batch.writer, batch.sequence]
        for line in lines:
            account, amount, expires_at = batch.debits[line]
            keys.append(prefix + tag(account) + account)
            arguments += (amount, expires_at)
        return Call(keys, arguments)

    async def accounts(self) -> dict[str, int]:
        """See Store. Scans: for reports."""
        prefix = self._prefix
        escaped = "".join(f"\\{c}" if c in "*?[]\\^-" else c for c in prefix)
        found: dict[str, int] = {}
        for key, fields in (await self._link.hashes(f"{escaped}*")).items():
            account = self._link.untag(key.removeprefix(prefix))
            used = fields.get("used", "")
            if used.isdecimal():  # else no count: settle tells
                found[account] = int(used)
        return found

    async def close(self) -> None:
        """See Store."""
        await self._link.close()


def _decode(values: list[Any]) -> list[int]:
    """What settle.lua returned, line by line."""
    return [UNUSABLE if value == "error" else int(value) for value in values]
