"""The options of the stub provider, for `fastgw stub` and `python -m fastgw.demo.provider`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser; `provider.run` takes what it parses."""
    parser.add_argument("--listen", default="127.0.0.1:8000", help="host:port; port 0: a free one")
    parser.add_argument("--behaviour", default="", help="key=value;key=value for every request")
    parser.add_argument("--log", default="", metavar="FILE", help="a JSON line for each exchange")
    parser.add_argument("--no-log", action="store_true", help="keep nothing for GET /stub/log")
    parser.add_argument("--workers", type=int, default=1, help="processes on the port")
    parser.add_argument("--tls-cert", default="", help="PEM of key and chain: speak TLS")
