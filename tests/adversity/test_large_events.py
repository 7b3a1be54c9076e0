"""An event that is too large to be a report goes to the client as it came, however it is cut."""

from __future__ import annotations

import itertools

import pytest

from fastgw.usage.answer import EventMeter
from fastgw.usage.openai import OPENAI

SMALL = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
LARGE = (
    b'data: {"choices":[{"index":0,"delta":{"images":[{"url":"data:image/png;base64,%b"}]}}]}\n\n'
)
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("size", [30_000, 70_000, 288_022, 1_500_000])
@pytest.mark.parametrize("first", [10, 61, 70, 2000, 65_600, 70_000, 140_000])
@pytest.mark.parametrize("step", [1460, 16_384, 65_536, 262_144])
def test_whatever_the_reads(size: int, first: int, step: int) -> None:
    body = SMALL + LARGE % (b"iVBO" * (size // 4)) + SMALL
    stream = body + USAGE + DONE
    cuts = [0, first, *range(first + step, len(stream), step), len(stream)]
    meter = EventMeter(OPENAI, strip=True)
    out = b"".join(meter.feed(stream[at:end]) for at, end in itertools.pairwise(cuts))
    out += meter.rest()
    assert out == body + DONE
    assert meter.finish(True, lambda: 0).usage[:2] == (7, 9)
