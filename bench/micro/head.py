"""Request heads: read in full, and recognised as equal to the last one of the connection.

python -m bench.micro.head
"""

from __future__ import annotations

import httptools

from bench.micro.timing import Row, show, timed
from fastgw.http1.request import HeadMemo, read_request_head

HEAD = (
    b"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n"
    b"Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nAccept: application/json\r\n"
    b"Content-Type: application/json\r\nUser-Agent: OpenAI/Python 2.54.0\r\n"
    b"X-Stainless-Lang: python\r\nX-Stainless-Package-Version: 2.54.0\r\n"
    b"X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
    b"X-Stainless-Runtime-Version: 3.11.7\r\nAuthorization: Bearer sk-alice-abc123def456\r\n"
    b"X-Stainless-Async: false\r\nx-stainless-retry-count: 0\r\nContent-Length: 287\r\n\r\n"
)
"""What the OpenAI SDK sends."""


class _Quiet:
    """A sink without callbacks."""


def run(number: int = 20_000) -> list[Row]:
    """The rows of the report."""
    memo = HeadMemo()
    memo.remember(HEAD, read_request_head(HEAD, 100)[0])
    other = HEAD.replace(b"287", b"1400")

    def recognise() -> int:
        memo.match(other)
        return memo.length

    assert recognise() == 1400
    return [
        timed("read and checked", lambda: read_request_head(HEAD, 100), number),
        timed(
            "of it llhttp", lambda: httptools.HttpRequestParser(_Quiet()).feed_data(HEAD), number
        ),
        timed("recognised, with another Content-Length", recognise, number),
    ]


if __name__ == "__main__":
    show("Request head of the OpenAI SDK", run())
