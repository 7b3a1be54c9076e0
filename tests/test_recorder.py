"""What a line of the access log takes from a provider, and what else is told of an exchange."""

from __future__ import annotations

import asyncio
import re
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


IN_USD = (
    exchange.CONFIG.replace("limit = 1_000_000_000_000", 'unit = "usd"\nlimit = 1.0')
    + '[pricing]\non_unpriced = "warn"\n'
)


def named(data: bytes, model: str) -> bytes:
    """A message as it would be with this model in it."""
    head, _, body = data.partition(b"\r\n\r\n")
    start, end = body.index(b'"model":') + 8, body.index(b'",', body.index(b'"model":')) + 1
    body = body[:start] + orjson.dumps(model) + body[end:]
    return re.sub(rb"Length: [0-9]+", b"Length: %d" % len(body), head) + b"\r\n\r\n" + body


def ended(*models: str) -> tuple[list[dict[str, Any]], set[str]]:
    """Exchanges that asked for these and were answered by them, each twice: their lines of the
    access log, and the names by which something was kept of them."""
    lines: list[dict[str, Any]] = []
    kept: set[str] = set()

    async def go() -> None:
        bench = exchange.Bench(IN_USD)
        for model in (each for each in models for _ in range(2)):
            bench.to_provider.written.clear()
            answer = named(exchange.answer(), model)
            await bench.exchange(named(exchange.request(), model), [answer])
            bench.turn.flush()
        bench.recorder.flush()
        lines.extend(orjson.loads(line) for line in bench.access_log._lines)
        head = bench.client._memo.head
        assert head is not None
        for each in (head.plan.records, head.plan.lines):
            kept.update(asked for asked, *_ in each)
        kept.update(name for key in bench.metrics._series for name in key)
        await bench.close()

    asyncio.run(go())
    return lines, kept


def test_a_model_without_price_is_told_of_once_and_on_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forged = "x\n2026-11-27 00:00:00,000 ERROR fastgw: forged"
    models = [forged, "\x1b[31mred\x07", "\u202ea\u2028b\x85c", "y" * 300]
    assert len(ended(*models)[0]) == 8
    told = [each.getMessage() for each in caplog.records if "no price" in each.getMessage()]
    assert len(told) == 4
    assert all(each.isprintable() and len(each) < 300 for each in told)
    assert repr(forged) in told[0]


def test_what_a_stop_of_the_gateway_ends_is_told_of_with_its_price(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its prompt is charged, though the answer is a refusal."""

    async def go() -> None:
        bench = exchange.Bench(IN_USD)
        bench.client.data_received(exchange.request())
        await bench.to_provider.written.wait()
        bench.client.shut_down()
        bench.recorder.flush()
        line = orjson.loads(bench.access_log._lines[-1])
        assert (line["status"], line["reason"]) == (503, "shutdown")
        assert line["usage_source"] == "counted"
        numbers = bench.metrics.numbers()
        assert not numbers["gen_ai_unpriced_total"]
        assert sum(each[0] for each in numbers["gen_ai_client_cost_usd_total"].values()) > 0
        assert line["cost_usd"] > 0
        await bench.close()

    asyncio.run(go())
    assert "no price" not in caplog.text


@pytest.mark.parametrize("length", [150, 210, 256])
def test_a_model_is_logged_as_its_account_is_named(length: int) -> None:
    asked = [line["gen_ai.request.model"] for line in ended("m" * length)[0]]
    assert asked == ["m" * length] * 2


def test_a_model_that_is_longer_is_logged_as_its_account_is_named() -> None:
    lines, _ = ended("m" * 300, "m" * 299 + "n")
    one, again, other, _ = [line["gen_ai.request.model"] for line in lines]
    assert one == again
    assert one != other
    assert len(one) < 256


def test_a_model_as_long_as_a_client_likes_is_not_kept() -> None:
    lines, kept = ended("m", "m" * 256, "x" * 100_000)
    assert len(lines) == 6
    assert {"m", "m" * 256} < kept
    assert all(len(each) <= 256 for each in kept)


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
