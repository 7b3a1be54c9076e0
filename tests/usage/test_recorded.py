"""The meter over recorded answers of real providers, where the recordings are present."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from fastgw.usage import openai
from fastgw.usage.meter import JsonMeter, StreamMeter

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "recorded"


def recordings() -> list[dict[str, Any]]:
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        entry = orjson.loads(path.read_bytes())
        if isinstance(entry, dict) and entry["api"].startswith("openai"):
            found.append(entry)
    return found


@pytest.mark.parametrize("entry", recordings(), ids=lambda entry: entry["id"])
def test_recording(entry: dict[str, Any]) -> None:
    body = (FOLDER / entry["body"]).read_bytes()
    expected = entry["expected"]["usage"]
    generator = random.Random(entry["id"])
    plans = [sorted(generator.sample(range(len(body)), k)) for k in (0, 1, 7, 60) if k < len(body)]
    if len(body) < 3000:
        plans += [[at] for at in range(len(body))]
    variants = [body]
    if entry["framing"] == "sse" and b"\r" not in body:
        variants += [body.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + body, b": hi\n\n" + body]
    for variant in variants:
        for cuts in plans:
            meter = StreamMeter(openai) if entry["framing"] == "sse" else JsonMeter(openai)
            edges = [0, *cuts, len(variant)]
            out = b"".join(meter.feed(variant[a:b]) for a, b in pairwise(edges))
            assert out + meter.rest() == variant
            usage = meter.finish(True, lambda: 7).usage
            if expected is None:
                assert usage.source != "reported"
                continue
            assert usage.source == "reported"
            assert usage.input_tokens == expected["input_tokens"]
            assert usage.output_tokens == expected["output_tokens"]
            assert usage.cached_input_tokens == (expected["cached_input_tokens"] or 0)
            assert usage.reasoning_tokens == (expected["reasoning_tokens"] or 0)
