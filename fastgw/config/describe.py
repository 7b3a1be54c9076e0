"""A configuration in words: what it does about each key and budget, and docs/settings.md.

`python -m fastgw.config.describe > docs/settings.md` renews the latter.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastgw import clock
from fastgw.config.expression import parse_expression
from fastgw.config.tables import (
    LISTED_TABLES,
    REQUIRED,
    SINGLE_TABLES,
    CalendarWindow,
    settings_of,
)
from fastgw.money import dollars

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastgw.config.tables import Budget, Config, Key, Route, Setting, Upstream


def describe(config: Config, now: float | None = None) -> list[str]:
    """Plain lines for `fastgw check`: each key, each budget, each route, then warnings.

    `now` (epoch seconds) decides which keys count as expired; without it the clock does.
    """
    moment = clock.wall() if now is None else now
    lines = [_key_line(key, config.budgets, moment) for key in config.keys]
    lines += [_budget_line(budget, config.keys) for budget in config.budgets]
    upstreams = {upstream.name: upstream for upstream in config.upstreams}
    lines += [_route_line(route, upstreams[route.upstream]) for route in config.routes]
    return lines + [f"warning: {text}" for text in _warnings(config)]


def applies(budget: Budget, key: Key) -> bool:
    """Whether every entry of the budget's `match` matches the key's metadata."""
    return all(
        name in key.metadata and _matches(pattern, key.metadata[name])
        for name, pattern in budget.match.items()
    )


def _matches(pattern: str, value: str) -> bool:
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    if pattern.startswith("*"):
        return value.endswith(pattern[1:])
    return value == pattern


def _key_line(key: Key, budgets: Iterable[Budget], now: float) -> str:
    state = ""
    if key.disabled:
        state = " (disabled)"
    elif key.expires_at and key.expires_at <= now:
        state = f" (expired {_date(key.expires_at)})"
    elif key.not_before > now:
        state = f" (not valid before {_date(key.not_before)})"
    parts = [_application(budget, key) for budget in budgets if applies(budget, key)]
    if not parts:
        return f"key {key.name}{state}: no budget applies"
    return f"key {key.name}{state}: budgets {'; '.join(parts)}"


def _route_line(route: Route, upstream: Upstream) -> str:
    where = f" of {route.host}" if route.host else ""
    limits = f", only {', '.join(route.models)}" if route.models else ""
    free = "" if route.budgets else ", neither metered nor limited"
    return (
        f"route {route.path_prefix}{where}: to {upstream.name}, {upstream.base_url}{limits}{free}"
    )


def _application(budget: Budget, key: Key) -> str:
    """One budget from a key's side: the amount and the account that the key draws on."""
    missing = _missing(budget, key)
    if missing:
        effect = "refused with 403" if budget.on_missing == "deny" else "not counted"
        return f"{budget.name} ({effect}: the key has no {', '.join(missing)})"
    account = []
    for text in budget.per:
        expression = parse_expression(text)
        value = key.metadata.get(expression.name, expression.default)
        if expression.kind != "key":
            account.append(f"{expression.source} of the request")
        else:
            account.append(f"{expression.name}={value}")
    shown = f"account {', '.join(account)}" if account else "one account for all"
    shadow = ", shadow: counted only" if budget.shadow else ""
    return f"{budget.name} ({_amount(budget)}, {shown}{shadow})"


def _missing(budget: Budget, key: Key) -> list[str]:
    expressions = [parse_expression(text) for text in budget.per]
    return [
        each.name
        for each in expressions
        if each.kind == "key" and each.default is None and each.name not in key.metadata
    ]


def _budget_line(budget: Budget, keys: tuple[Key, ...]) -> str:
    count = sum(applies(budget, key) for key in keys)
    per = f"one account for each {', '.join(budget.per)}" if budget.per else "one account for all"
    shadow = "; shadow: counts, never refuses" if budget.shadow else ""
    noun = "key" if count == 1 else "keys"
    return f"budget {budget.name}: {_amount(budget)}, {per}; applies to {count} {noun}{shadow}"


def _amount(budget: Budget) -> str:
    unit = budget.unit.replace("_", " ")
    if budget.limit == 1:
        unit = unit.removesuffix("s")
    amount = dollars(budget.limit) if budget.unit == "usd" else f"{budget.limit:,} {unit}"
    if budget.unit == "parallel":
        return f"{budget.limit:,} {'request' if budget.limit == 1 else 'requests'} at one time"
    window = budget.window
    if isinstance(window, CalendarWindow):
        return f"{amount} a calendar {window.calendar} ({window.timezone})"
    article = "an" if window == "hour" else "a"
    return f"{amount} {article} {window}"


def _date(seconds: float) -> str:
    return clock.timestamp(seconds)[:10]


def _warnings(config: Config) -> list[str]:
    found = []
    if not config.keys and config.auth.mode == "strict":
        found.append('there are no [[keys]] and [auth] mode is "strict": all requests get 401')
    elif not config.keys:
        found.append("there are no [[keys]]: no request is attributed to anyone")
    if config.auth.mode == "permissive":
        found.append('[auth] mode is "permissive": requests with a wrong key pass')
    free = [k.name for k in config.keys if not any(applies(b, k) for b in config.budgets)]
    if free:
        found.append(f"no budget applies to {_names('key', free)}: nothing limits them")
    for budget in config.budgets:
        covered = [key for key in config.keys if applies(budget, key)]
        if not covered:
            found.append(f"budget {budget.name} applies to no key")
        lacking = [key.name for key in covered if _missing(budget, key)]
        if lacking and budget.on_missing == "deny":
            found.append(
                f"budget {budget.name} refuses all requests of {_names('key', lacking)}: "
                "metadata of its `per` is missing"
            )
    used = {route.upstream for route in config.routes}
    for upstream in config.upstreams:
        if upstream.name not in used:
            found.append(f"upstream {upstream.name}: no route leads there")
        parts = urlsplit(upstream.base_url)
        local = (parts.hostname or "") in ("localhost", "127.0.0.1", "::1")
        if parts.scheme == "http" and upstream.api_key and not local:
            found.append(f"upstream {upstream.name}: the credential is sent unencrypted (http://)")
    found += [
        f"route {route.path_prefix}: budgets = false: neither metered nor limited"
        for route in config.routes
        if not route.budgets
    ]
    if config.admin.listen and not config.admin.token:
        found.append("[admin] token is empty: all of /api is off")
    return found


def _names(noun: str, names: list[str]) -> str:
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"{noun if len(names) == 1 else noun + 's'} {shown}"


_HEAD = """\
# Settings

<!-- Generated from fastgw/config/tables.py by `python -m fastgw.config.describe`; a test keeps it
true. -->

One TOML file, several, or a folder of them (`--config`, which may be repeated). Files are merged:
`[[keys]]`, `[[budgets]]`, `[[upstreams]]`, `[[routes]]` and `[[prices]]` add up, a setting of a
single table may stand in one file only. A name, a route or a secret that stands twice is an error.
`fastgw check` shows every problem at once, with file, line, setting and what to write.

- **Variables.** `${VAR}` and `${VAR:-default}` work in every text; the default stands in for a
  variable that is unset or empty, an unset one without default is an error. `$$` is one `$`, any
  other `$` stays. Numbers, sizes, durations and flags may be given as `"${VAR}"` too.
- **Sizes** are bytes, or text with a unit: `65536`, `"64KiB"`, `"32MiB"` (also `KB`, `MB`, `GB`).
- **Durations** are seconds, or text with a unit: `1.5`, `"1500ms"`, `"10s"`, `"5m"`, `"2h"`,
  `"1d"`.
- **Dates** are TOML date-times or RFC 3339 texts, with a time zone: `2026-12-31T00:00:00Z`.
- **Lists** of one may be written without brackets.
- **Tables of texts** (`metadata`, `match`) also take whole numbers and `true` / `false`; they are
  kept as text: `level = 3` is `"3"`.
- **Paths** of files that fastgw reads (`key_files`, `key_file`, `api_key_file`, `token_file`,
  `tls_cert`, `tls_key`, `ca_file`, `catalogs`) are relative to the file that names them; those of
  files it writes (`sqlite:PATH`, `[store] journal`, `[access_log] path`) to the working directory.
- **Files of secrets** (`key_file`, `api_key_file`, `token_file`) hold the secret alone; one line
  end after it is not part of it. They are read at the start and at each reload; their rights are
  not looked at.
- **Expressions** (`per`, `labels`): `user_id` or `apiKey.user_id` or `apiKey["user_id"]` (metadata
  of the key), `request.headers["x-team"]`, `request.path`, `llm.model`, and
  `default(EXPRESSION, "VALUE")`. A metadata field that no key has is an error, unless it has a
  default.
- **Base URLs and route prefixes**: a final `/` of `base_url` is dropped; a prefix is matched on the
  normal form of a path, so it has no final `/`, no `%`, `//` or dot segments.
"""


def settings_markdown() -> str:
    """The text of docs/settings.md: one section per table, one row per setting."""
    parts = [_HEAD]
    for name, table in (SINGLE_TABLES | LISTED_TABLES).items():
        title = f"[[{name}]]" if name in LISTED_TABLES else f"[{name}]"
        summary = (table.__doc__ or "").strip().partition("\n")[0]
        if name == "keys":
            summary = "A virtual key: who an application is. Its secret is kept as a digest only."
        rows = ["| setting | default | meaning |", "| --- | --- | --- |"]
        for setting in settings_of(table).values():
            for written, doc in (setting.spelled or {setting.name: _meaning(setting)}).items():
                default = _spelled_default(setting, written)
                rows.append(f"| `{written}` | {default} | {doc.replace('|', chr(92) + '|')} |")
        parts.append(f"## `{title}`\n\n{summary}\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _meaning(setting: Setting) -> str:
    text = setting.doc
    if setting.choices:
        text += ". One of " + ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.later:
        text += "; not in this version: " + ", ".join(f"`{choice}`" for choice in setting.later)
    return text


def _spelled_default(setting: Setting, written: str) -> str:
    if written in ("key", "key_hash", "key_file"):
        return "one of three"
    if setting.spelled or setting.kind == "time":
        return "unset"
    return _default(setting)


def _default(setting: Setting) -> str:
    value: Any = setting.default
    if value is REQUIRED:
        return "required"
    if value is None:
        return "unset"
    if setting.kind == "size":
        return _size(value)
    if setting.kind == "duration":
        return _duration(value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(f'"{item}"' for item in value) + "]`"
    if isinstance(value, dict):
        return "`{}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{value:_}`" if isinstance(value, int) else f"`{value:g}`"


def _size(count: int) -> str:
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count % factor == 0:
            return f"{count // factor} {unit}"
    return f"{count} bytes"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:g} ms"
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


if __name__ == "__main__":
    sys.stdout.write(settings_markdown())
