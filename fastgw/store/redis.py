"""Budgets shared by hosts: Redis or Valkey, 6.2 and later.

Each account is one hash, `<prefix>:a:<account>` (of the usage report `<prefix>:u:…`), with the
fields `used`, `s:<writer>`: the last sequence that this writer settled there, and `h:<writer>`:
what it holds there until when. Beside the number they guard, so that all live and die together. A
batch is one EVALSHA of lua/settle.lua; the server runs it as a whole.

How the server is reached, and what a failure there means, is the link's: see `link`.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from fastgw import clock
from fastgw.errors import StoreUnavailable
from fastgw.model import Settled, Standing
from fastgw.policy.ledger import MOST
from fastgw.policy.window import USAGE_KEYS
from fastgw.store.base import SPARE_SHARE, UNUSABLE, granted_alone
from fastgw.store.link import Call, Script
from fastgw.store.topology import open_link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgw.model import Batch
    from fastgw.store.base import Sequences

_SETTLE = Script(resources.files("fastgw.store").joinpath("lua/settle.lua").read_text("utf-8"))


class RedisStore:
    """See store/base and the module."""

    shared = True
    remote = True

    def __init__(self, url: str, prefix: str, timeout: float) -> None:
        """`timeout`: hard deadline of one settle in seconds, connecting included.

        Raises ValueError for a URL that is none."""
        self._prefix = f"{prefix}:a:"
        self._usage_prefix = f"{prefix}:u:"
        self._link = open_link(url, timeout)

    async def open(self) -> None:
        """See Store."""
        await self._link.open()

    async def settle(self, batch: Batch) -> Settled:
        """See Store."""
        debits = batch.debits
        answers = await self._link.evaluate(
            _SETTLE,
            [debit.account for debit in debits],
            lambda lines: self._encode(batch, lines),
        )
        settled = Settled([UNUSABLE] * len(debits), [(0, 0)] * len(batch.claims), [], [])
        try:
            for lines, values in answers:
                _decode(batch, lines, values, settled)
        except (TypeError, ValueError, IndexError):
            await self._link.drop()
            raise StoreUnavailable("Redis: settle answered something else") from None
        return settled

    def _encode(self, batch: Batch, lines: Sequence[int]) -> Call:
        """KEYS and ARGV of settle.lua for some lines of the batch and the claims on them."""
        prefix, tag = self._prefix, self._link.tag
        usage_prefix = self._usage_prefix
        keys = []
        arguments: list[str | int] = [batch.writer, batch.sequence, batch.lapse, SPARE_SHARE]
        for line in lines:
            account, amount, expires_at, settled, known = batch.debits[line]
            begin = usage_prefix if account.startswith(USAGE_KEYS) else prefix
            keys.append(begin + tag(account) + account)
            arguments += (amount, expires_at, settled, known)
        if batch.claims:
            place = {line: at for at, line in enumerate(lines, 1)}
            for line, *wanted in batch.claims:
                if line in place:
                    arguments += (place[line], *wanted)
        return Call(keys, arguments)

    async def accounts(
        self, usage: bool = False, settled: Sequences | None = None
    ) -> dict[str, Standing]:
        """See Store. Scans: for reports."""
        prefix = self._usage_prefix if usage else self._prefix
        escaped = "".join(f"\\{c}" if c in "*?[]\\^-" else c for c in prefix)
        now = clock.wall()
        found: dict[str, Standing] = {}
        for key, fields in (await self._link.hashes(f"{escaped}*")).items():
            account = self._link.untag(key.removeprefix(prefix))
            used = _number(fields.get("used", "0"))
            if used is not None:  # else no count: settle tells
                found[account] = Standing(used, _held(fields, now))
                if settled:
                    for name, value in fields.items():
                        if name.startswith("s:") and (account, name[2:]) in settled:
                            settled[account, name[2:]] = _number(value) or 0
        return found

    async def close(self) -> None:
        """See Store."""
        await self._link.close()


def _decode(batch: Batch, lines: Sequence[int], values: list[Any], into: Settled) -> None:
    """Enter what settle.lua returned for these lines, and for the claims on them."""
    for line, value in zip(lines, values, strict=False):
        if value == "error":
            continue
        mark = value[:1]
        if mark == "l":
            into.lost.append(line)
            value = value[1:]
        elif mark == "a":
            into.ahead.append(line)
            value = value[1:]
        into.used[line] = int(value)
    at = len(lines)
    if batch.claims:
        present = set(lines)
        for index, claim in enumerate(batch.claims):
            if claim.line in present:
                into.holds[index] = (int(values[at]), int(values[at + 1]))
                at += 2
                if into.used[claim.line] == UNUSABLE:
                    into.holds[index] = granted_alone(claim, batch.debits[claim.line])
    if at != len(values):
        raise ValueError


def _held(fields: dict[str, str], now: float) -> int:
    """What the writers of an account hold, by its fields."""
    held = 0
    for name, value in fields.items():
        if name.startswith("h:"):
            parts = [_number(part) for part in value.split(":")]
            if len(parts) == 3 and None not in parts:  # else none: somebody else wrote it
                _, amount, until = parts
                held += (amount or 0) if (until or 0) > now else 0
    return held


def _number(text: str) -> int | None:
    """A number as an account may hold it; None for what is none. lua/settle.lua says the same."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 19):
        return None
    return min(max(int(text), 0), MOST)
