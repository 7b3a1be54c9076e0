"""What an audit finds, and how it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from fastgw import clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgw.audit.logs import Asked, Charged
    from fastgw.policy.window import AccountName

KEPT = 1000
"""Exchanges that are listed of each kind; all are counted."""

SHOWN = 20
"""Those that a table shows."""

NEVER_CHARGED = "reported, never charged"
NO_PROVIDER = "charged, never asked of the provider"
DIFFERS = "charged otherwise"
UNLOGGED = "no line in the access log"


@dataclass
class Row:
    """One account in one window, amounts in its unit. `provider`: by the provider's books;
    `charged`: by the access log; `open`: what may have been charged besides; `used`: the store."""

    provider: int = 0
    charged: int = 0
    open: int = 0
    used: int = 0

    @property
    def difference(self) -> int:
        """By how much `used` is outside of what it may be; 0 is right."""
        if self.used < self.provider:
            return self.used - self.provider
        return max(0, self.used - self.provider - self.open)


@dataclass
class Audit:
    """What was found. `exchanges`: of each kind the first ones; `counts`: all of them."""

    rows: dict[AccountName, Row] = field(default_factory=dict)
    exchanges: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    """Exchanges that stand in both logs (without an access log: in the provider's)."""
    unreadable: int = 0
    """Lines that are none, as the last one before a kill."""
    skipped: list[str] = field(default_factory=list)
    """Budgets whose unit no log tells."""

    @property
    def equal(self) -> bool:
        """Whether the books agree."""
        wrong = (self.counts.get(kind) for kind in (NEVER_CHARGED, NO_PROVIDER, DIFFERS))
        return not any(wrong) and not any(row.difference for row in self.rows.values())

    def note(self, kind: str, asked: Asked | None, charged: Charged | None) -> None:
        """List an exchange."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        listed = self.exchanges.setdefault(kind, [])
        if len(listed) < KEPT:
            listed.append(_shown(asked, charged))


def _shown(asked: Asked | None, charged: Charged | None) -> dict[str, Any]:
    either = asked or charged
    assert either is not None
    provider = asked and {
        "reported": asked.reported,
        "input_tokens": asked.given,
        "output_tokens": asked.made,
        "end": asked.end,
    }
    gateway = charged and {
        "usage_source": charged.source,
        "input_tokens": charged.given,
        "output_tokens": charged.made,
        "reason": charged.reason,
    }
    key = charged.key if charged is not None else either.key
    return {"request_id": either.request_id, "key": key, "provider": provider, "gateway": gateway}


def _row_dicts(found: Audit) -> list[dict[str, Any]]:
    return [
        {
            "budget": name.budget,
            "account": ",".join(name.values),
            "window_start": clock.timestamp(name.start),
            "unit": name.unit,
            "provider": row.provider,
            "charged": row.charged,
            "open": row.open,
            "used": row.used,
            "difference": row.difference,
        }
        for name, row in sorted(found.rows.items())
    ]


def render(found: Audit, style: str) -> str:
    """The findings as `table` or `json`; ends in a newline."""
    rows = _row_dicts(found)
    if style == "json":
        facts = {
            "equal": found.equal,
            "compared": found.compared,
            "unreadable": found.unreadable,
            "skipped_budgets": found.skipped,
            "accounts": rows,
            "counts": found.counts,
            "exchanges": found.exchanges,
        }
        return orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode() + "\n"
    lines = _aligned(rows) if rows else ["no account has been used"]
    for kind, number in found.counts.items():
        lines += ["", f"{number} exchanges: {kind}"]
        lines += [f"  {_line(each)}" for each in found.exchanges[kind][:SHOWN]]
        if number > SHOWN:
            lines.append(f"  … {number - SHOWN} more; --format json has up to {KEPT}")
    lines.append("")
    if found.unreadable:
        lines.append(f"{found.unreadable} lines could not be read and were left out")
    if found.skipped:
        lines.append(f"not compared, since no log tells: {', '.join(found.skipped)}")
    wrong = sum(1 for row in rows if row["difference"])
    lines.append(
        f"equal: {found.compared} exchanges, {len(rows)} accounts"
        if found.equal
        else f"NOT EQUAL: {wrong} of {len(rows)} accounts, {found.compared} exchanges compared"
    )
    return "\n".join(_printable(line) for line in lines) + "\n"


def _line(each: dict[str, Any]) -> str:
    parts = [each["request_id"], each["key"] or "-"]
    for side in ("provider", "gateway"):
        book = each[side]
        if book is None:
            parts.append(f"{side}: nothing")
            continue
        how = book.get("usage_source") or ("reported" if book["reported"] else "not reported")
        end = book.get("reason") or book["end"]
        parts.append(f"{side}: {how} {book['input_tokens']}+{book['output_tokens']} ({end})")
    return "  ".join(parts)


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in line)


def _aligned(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [[column.upper().replace("_", " ") for column in rows[0]]]
    cells += [[str(value) or "-" for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
