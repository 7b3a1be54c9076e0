"""The command line: serve, check, demo, budgets, usage, audit, stub.

Exit codes: 0 ok, 1 failed, 2 bad usage or configuration, 3 no worker could start. Heavy rooms are
imported by the command that needs them, so that `--help` and `check` answer at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import fastgw
from fastgw.compiled import COMPILED
from fastgw.demo.options import add_options
from fastgw.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastgw.config.tables import Config

_EXAMPLES = {
    "serve": "example: fastgw serve --config config.toml",
    "check": "example: fastgw check --config /etc/fastgw",
    "demo": "example: fastgw demo --port 8080",
    "budgets": "example: fastgw budgets --config config.toml --key alice",
    "usage": "example: fastgw usage --config config.toml --by user_id,model --since 7d",
    "audit": "example: fastgw audit --config config.toml --stub-log stub.jsonl "
    "--access-log access.log",
    "stub": "example: fastgw stub --listen 127.0.0.1:8000 --log stub.jsonl",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        count = len(error.problems)
        print(f"{count} problem{'s' if count != 1 else ''}; nothing was started", file=sys.stderr)
        return 2
    except (OSError, StoreUnavailable) as error:
        print(f"fastgw: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _version() -> str:
    return f"fastgw {fastgw.__version__} ({'compiled' if COMPILED else 'pure Python'})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastgw",
        description="LLM gateway with virtual keys, exact token budgets and streaming.",
        epilog="try it without a key or a network: fastgw demo",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", epilog=_EXAMPLES[name]
        )
        added.set_defaults(run=run)
        return added

    for name, run, text in (
        ("serve", _serve, "run the gateway"),
        ("check", _check, "validate the configuration and say what it does"),
    ):
        _add_config(command(name, run, text))

    demo = command("demo", _demo, "run the gateway with a built-in provider and two keys")
    demo.add_argument("--port", type=int, default=8080, help="data port (0: a free one)")
    demo.add_argument("--admin-port", type=int, default=9090, help="admin port (0: a free one)")

    budgets = command("budgets", _budgets, "show used and remaining of every account")
    _add_config(budgets)
    budgets.add_argument("--key", metavar="NAME", help="only the accounts of this key")
    budgets.add_argument("--format", choices=("table", "csv", "json"), default="table")

    usage = command("usage", _usage, "show who used what: tokens and dollars")
    _add_config(usage)
    usage.add_argument(
        "--by",
        action="append",
        metavar="NAME",
        help="day, key, upstream, model, a metric label or a metadata field; several with commas "
        "(default: key)",
    )
    usage.add_argument(
        "--since", default="7d", metavar="TIME", help="7d, 24h or 2026-11-01 (default: 7d)"
    )
    usage.add_argument("--format", choices=("table", "csv", "json"), default="table")

    audit = command("audit", _audit, "compare what a provider reported with what the store holds")
    _add_config(audit)
    for name, text, needed in (
        ("--stub-log", "the provider's log, as `fastgw stub --log` writes it", True),
        ("--access-log", "the gateway's access log: compares each exchange", False),
    ):
        audit.add_argument(
            name,
            action="append",
            metavar="FILE",
            required=needed,
            default=None if needed else [],
            help=f"{text}; may be repeated",
        )
    audit.add_argument("--format", choices=("table", "json"), default="table")

    add_options(command("stub", _stub, "run the built-in provider by itself"))
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        action="append",
        metavar="PATH",
        help="a file, or a folder of *.toml; may be repeated (default: config.toml)",
    )


def _load(options: argparse.Namespace) -> Config:
    from fastgw.config import load

    return load(options.config or ["config.toml"])


def _load_to_read(options: argparse.Namespace) -> Config:
    """For a command that reads the store. A file of SQLite that is not there is not made by it."""
    config = _load(options)
    scheme, _, path = config.store.url.partition(":")
    if scheme == "sqlite" and not os.path.exists(path):
        raise StoreUnavailable(
            f"SQLite: there is no {os.path.abspath(path)}; a path that is relative is looked for "
            "from the folder where the command runs, so run it where the gateway runs"
        )
    return config


def _serve(options: argparse.Namespace) -> int:
    # It would end the process until there is a service, which takes it as a reload.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    import uvloop

    from fastgw.service import serve

    serving = serve(_load(options), options.config or ["config.toml"])
    _start_logging()
    return uvloop.run(serving)


def _check(options: argparse.Namespace) -> int:
    from fastgw.config.describe import describe
    from fastgw.usage.pricing import unpriced

    config = _load(options)
    for line in describe(config):
        print(line)
    for line in unpriced(config):
        print(f"warning: {line}")
    print("configuration ok")
    return 0


def _demo(options: argparse.Namespace) -> int:
    from fastgw.demo.command import run
    from fastgw.worker import Worker

    _start_logging(logging.WARNING)
    return run(options.port, options.admin_port, Worker)


def _budgets(options: argparse.Namespace) -> int:
    import asyncio

    from fastgw.admin.client import fetch
    from fastgw.reports import read_budgets, render_rows, rows_of_key

    config = _load_to_read(options)
    if options.key is not None and options.key not in {key.name for key in config.keys}:
        print(f"fastgw: no key is named {options.key!r}", file=sys.stderr)
        return 2
    if config.store.url == "memory:":
        # Only the running process knows; every other store can be read beside it.
        rows = fetch(config.admin, "/api/budgets")
    else:
        rows = asyncio.run(read_budgets(config))
    if options.key is not None:
        rows = rows_of_key(rows, config, options.key)
    print(render_rows(rows, options.format), end="")
    return 0


def _usage(options: argparse.Namespace) -> int:
    import asyncio
    from urllib.parse import urlencode

    from fastgw import clock
    from fastgw.admin.client import fetch
    from fastgw.usage_report import DEFAULT_BY, read_since, read_usage, render_usage

    config = _load_to_read(options)
    by = [name for text in options.by or DEFAULT_BY for name in text.split(",") if name]
    try:
        since = read_since(options.since, clock.wall())
        if config.store.url == "memory:":
            query = urlencode({"by": ",".join(by), "since": options.since})
            rows = fetch(config.admin, f"/api/usage?{query}")
        else:
            rows = asyncio.run(read_usage(config, by, since))
    except ValueError as error:
        print(f"fastgw: {error}", file=sys.stderr)
        return 2
    print(render_usage(rows, by, options.format), end="")
    return 0


def _audit(options: argparse.Namespace) -> int:
    import asyncio

    from fastgw.audit import audit, render

    config = _load_to_read(options)
    if config.store.url == "memory:":
        print("fastgw: a store in memory ends with its process: no audit", file=sys.stderr)
        return 2
    found = asyncio.run(audit(config, options.stub_log, options.access_log))
    print(render(found, options.format), end="")
    return 0 if found.equal else 1


def _stub(options: argparse.Namespace) -> int:
    from fastgw.demo.provider import run

    return run(options)


def _start_logging(level: int = logging.INFO) -> None:
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
