"""Response heads: ours by remembered lines, against llhttp with a callback for each field.

python -m bench.micro.heads
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import httptools

from bench.micro.timing import Row, show, timed
from fastgw.http1.response import read_response_head

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD = (
    b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 10:00:%02d GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: keep-alive\r\n"
    b"openai-organization: acme\r\nopenai-processing-ms: %d\r\nopenai-version: 2020-10-01\r\n"
    b"x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: %d\r\n"
    b"x-request-id: req_%032d\r\nstrict-transport-security: max-age=31536000\r\n"
    b'CF-RAY: %016x-FRA\r\nServer: cloudflare\r\nalt-svc: h3=":443"\r\n\r\n'
)
"""Like those of a big provider: four lines of it differ from answer to answer."""


class _Fields:
    """A sink that keeps what a relay must look at."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        pass


def run(number: int = 20_000) -> list[Row]:
    """The rows of the report."""
    heads = [HEAD % (at % 60, 500 + at % 200, at % 900, 10_000 - at, at, at) for at in range(1000)]
    ours = itertools.cycle(heads)
    theirs = itertools.cycle(heads)

    def llhttp() -> object:
        sink = _Fields()
        httptools.HttpResponseParser(sink).feed_data(next(theirs))
        return sink

    def same(head: bytes) -> Callable[[], object]:
        return lambda: read_response_head(head, b"POST")

    return [
        timed("1,000 different heads", lambda: read_response_head(next(ours), b"POST"), number),
        timed("the same head again", same(heads[0]), number),
        timed("llhttp, fields collected, nothing judged", llhttp, number),
    ]


if __name__ == "__main__":
    show("Response head of a big provider, 14 fields", run())
