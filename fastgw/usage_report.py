"""Who used what, from the tallies in the store (policy/tallies) to rows that people and programs
read.

A day is one in UTC. Fields to sum by: `day`, `key`, `upstream`, `model`, a metric label of the time
when it was counted, or a metadata field that the key has in the present configuration.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from fastgw import clock
from fastgw.money import usd
from fastgw.policy.tallies import OTHER, UNITS
from fastgw.policy.window import USAGE, read_account_key
from fastgw.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fastgw.config.tables import Config, Key

DEFAULT_BY = ("key",)
DEFAULT_SINCE = "7d"
DAY = 86_400
_FIXED = ("day", "key", "upstream", "model")
_SPANS = {"h": 3600, "d": DAY, "w": 7 * DAY}
NONE = "-"
"""Shown where a key has no such field."""


def read_since(text: str, now: float) -> float:
    """The epoch second that "7d", "24h" or "2026-11-01" means. Raises ValueError."""
    number, unit = text[:-1], text[-1:]
    if number.isascii() and number.isdigit() and len(number) < 6 and unit in _SPANS:
        return now - int(number) * _SPANS[unit]
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no time; write 7d, 24h or 2026-11-01") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def usage_rows(
    used: Mapping[str, int], keys: Iterable[Key], by: Sequence[str], since: float
) -> list[dict[str, Any]]:
    """Sums of the days that are not over at `since`, sorted by the fields of `by`.

    `used`: what the accounts of tallies hold. A row: the fields, `requests` (exchanges that used
    tokens), `input_tokens`, `output_tokens`, `cached_input_tokens` (part of input), `cost` in
    nano-USD and `cost_usd` as a decimal number. Raises ValueError for a field that neither a tally
    nor a key has.
    """
    metadata = {key.name: key.metadata for key in keys}
    known = {*_FIXED, *(name for fields in metadata.values() for name in fields)}
    sums: dict[tuple[str, ...], dict[str, int]] = {}
    for account, amount in used.items():
        name = read_account_key(account)
        if name is None or name.budget != USAGE or name.unit not in UNITS or len(name.values) < 3:
            continue
        key, upstream, model, *labels = name.values
        fields = dict(label.partition("=")[::2] for label in labels)
        known.update(fields)
        if name.start + DAY <= since:
            continue
        facts = {
            **metadata.get(key, {}),
            **fields,
            "day": clock.timestamp(name.start)[:10],
            "key": key or NONE,
            "upstream": upstream,
            "model": model,
        }
        lacks = OTHER if key == OTHER and not labels else NONE
        group = tuple(facts.get(field, lacks) for field in by)
        row = sums.setdefault(group, dict.fromkeys(UNITS, 0))
        row[name.unit] += amount
    for field in by:
        if field not in known:
            raise ValueError(f"no usage is known by {field!r}; there is {', '.join(sorted(known))}")
    rows: list[dict[str, Any]] = []
    for group, row in sorted(sums.items()):
        cost = row.pop("usd")
        rows.append(
            {**dict(zip(by, group, strict=True)), **row, "cost": cost, "cost_usd": usd(cost)}
        )
    return rows


async def read_usage(config: Config, by: Sequence[str], since: float) -> list[dict[str, Any]]:
    """The rows of `usage_rows`, read from the configured store. Raises StoreUnavailable."""
    store = open_store(config.store)
    try:
        await store.open()
        found = await store.accounts(usage=True)
    finally:
        await store.close()
    used = {account: each.used for account, each in found.items()}
    return usage_rows(used, config.keys, by, since)


def render_usage(rows: Sequence[Mapping[str, Any]], by: Sequence[str], style: str) -> str:
    """Rows as `table`, `csv` or `json`; ends in a newline."""
    if style == "json":
        return orjson.dumps(list(rows), option=orjson.OPT_INDENT_2).decode() + "\n"
    columns = (*by, *UNITS[:-1], "cost_usd")
    flat = [[str(row[column]) for column in columns] for row in rows]
    if style == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([columns, *flat])
        return out.getvalue()
    if not flat:
        return "nothing was used in this time, as far as the store knows\n"
    lines = [[column.upper().replace("_", " ") for column in columns], *flat]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    return "".join(
        "  ".join(
            cell.ljust(width) if at < len(by) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        + "\n"
        for line in lines
    )
