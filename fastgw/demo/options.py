"""The options of the stub provider, for `fastgw stub` and `python -m fastgw.demo.provider`."""

from __future__ import annotations

import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser; `provider.run` takes what it parses."""
    parser.add_argument(
        "--listen", type=_address, default="127.0.0.1:8000", help="host:port; port 0: a free one"
    )
    parser.add_argument(
        "--behaviour", type=_behaviour, default="", help="key=value;key=value for every request"
    )
    parser.add_argument("--log", default="", metavar="FILE", help="a JSON line for each exchange")
    parser.add_argument("--no-log", action="store_true", help="keep nothing for GET /stub/log")
    parser.add_argument("--workers", type=int, default=1, help="processes on the port")
    parser.add_argument("--tls-cert", default="", help="PEM of key and chain: speak TLS")


def _address(text: str) -> str:
    _, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port")
    return text


def _behaviour(text: str) -> str:
    from fastgw.demo.behaviour import Behaviour

    try:
        Behaviour().changed(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
