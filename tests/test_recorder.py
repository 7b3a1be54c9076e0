"""What a line of the access log takes from a provider."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from bench.micro import exchange
from fastgw.compiled import COMPILED
from fastgw.recorder import MAX_USAGE, _verbatim


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": 1}, {"a": {"b": [1, None, 0.5]}, "text": 'a "quote"\n'}],
)
def test_a_usage_is_kept_as_it_was_reported(usage: dict[str, Any]) -> None:
    assert orjson.loads(b'{"x":1%b}' % _verbatim(usage)) == {"x": 1, "usage": usage}


@pytest.mark.parametrize(
    "usage", [{"a": "x" * MAX_USAGE}, {"a": 2**80}, {"a": "\ud83d"}], ids=["long", "huge", "broken"]
)
def test_a_usage_that_no_line_can_carry_is_left_out(usage: dict[str, Any]) -> None:
    assert _verbatim(usage) == b""


@pytest.mark.skipif(COMPILED, reason="no attribute takes a value of another type there")
def test_an_exchange_that_cannot_be_told_of_takes_no_other_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def go() -> None:
        bench = exchange.Bench()
        await bench.exchange(exchange.request(), [exchange.answer()])
        bench.recorder.flush()
        before = len(bench.access_log._lines)
        for _ in range(3):
            bench.client.data_received(exchange.request())
            bench.provider.data_received(exchange.answer())
        ended = bench.recorder._ended
        assert len(ended) == 3
        ended[1][0].bytes_out = "many"  # type: ignore[assignment]
        bench.recorder.flush()
        assert len(bench.access_log._lines) == before + 2
        assert "could not be recorded" in caplog.text
        await bench.close()

    asyncio.run(go())


@pytest.mark.parametrize(
    "reported",
    [
        b'{"a":1,"b":{"c":[2.50]}}',
        b'{\n  "a": 1,\r\n  "b": "\\n"\n}',
        b'{\r"a":1}',
        '{"a":"\u2028\u00e9"}'.encode(),
    ],
)
def test_usage_that_came_as_bytes_stays_on_one_line(reported: bytes) -> None:
    member = _verbatim(reported)
    assert len(member.splitlines()) == 1
    assert orjson.loads(b'{"x":1%b}' % member) == {"x": 1, "usage": orjson.loads(reported)}


@pytest.mark.parametrize("reported", [b'{"a":"%b"}' % (b"x" * MAX_USAGE), b'{"a":"\xff"}'])
def test_bytes_that_no_line_can_carry_are_mended_or_left_out(reported: bytes) -> None:
    member = _verbatim(reported)
    assert member == b"" or orjson.loads(b'{"x":1%b}' % member)["usage"] == {"a": "\ufffd"}
