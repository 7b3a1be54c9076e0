"""What an exchange and an event cost the interpreter stays within a bound, counted, not timed."""

from __future__ import annotations

import asyncio
import sys

from bench.micro import steps
from fastgw.compiled import COMPILED


def test_an_exchange_and_an_event_take_no_more_steps_than_they_did() -> None:
    found = asyncio.run(steps.measure())
    exchange, event = found["a JSON exchange"], found["an event of a stream"]
    assert exchange.calls <= 44
    assert exchange.builtins <= 64
    assert event.calls <= 7
    assert event.builtins <= 13.1
    if sys.version_info[:2] == (3, 11):
        assert exchange.instructions <= 2220
        assert event.instructions <= 272
    if not COMPILED:
        assert round(event.calls) == 7, "fewer: lower the bound"
