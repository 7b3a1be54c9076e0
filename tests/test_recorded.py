"""The meter over recorded answers of real providers, where the recordings are present.

Every answer is read by the dialect of its name and by `auto`, cut in many ways, with other line
ends, a byte-order mark, comments between events, and compressed. `tests/usage` has small answers of
our own for every dialect.
"""

from __future__ import annotations

import gzip
import random
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastgw.relay import STREAMS
from fastgw.usage.answer import JsonMeter
from fastgw.usage.dialects import DIALECTS
from fastgw.usage.meter import InflatingMeter, Meter, StreamMeter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastgw.model import Usage
    from fastgw.usage.api import Api

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "recorded"
MEDIA = {
    "sse": b"text/event-stream",
    "ndjson": b"application/x-ndjson",
    "aws-eventstream": b"application/vnd.amazon.eventstream",
}
NAMES = {
    "openai-compat": "openai",
    "google": "gemini",
    "google-vertex": "gemini",
    "crusoe": "vllm",
}
"""Provider of a recording -> dialect, where it is not of the same name."""
SMALL = 2500
"""Bytes of an answer that is cut at every byte."""


def recordings() -> list[dict[str, Any]]:
    """What the folder holds, with the body; empty where it is missing."""
    found = []
    for path in sorted(FOLDER.glob("*.json")):
        entry = orjson.loads(path.read_bytes())
        if isinstance(entry, dict):
            found.append(entry | {"bytes": (FOLDER / entry["body"]).read_bytes()})
    return found


def formats(entry: dict[str, Any]) -> Iterator[Api]:
    """How a gateway reads this answer: by its path in the dialect of its provider, by content in
    that dialect, and by content alone."""
    name = NAMES.get(entry["provider"], entry["provider"])
    dialect = DIALECTS.get(name, DIALECTS["openai"])
    path = entry["request"].get("path") if entry["request"] else None
    if path:
        yield dialect.find(path)[0]
    yield dialect.any
    yield DIALECTS["auto"].any


def make(api: Api, framing: str, strip: bool = False) -> Meter:
    """The meter for an answer of this framing."""
    if framing == "json":
        return JsonMeter(api)
    return StreamMeter(api, strip=strip, framer=STREAMS[MEDIA[framing]]())


def expected_usage(entry: dict[str, Any]) -> dict[str, int | None] | None:
    """What is billed: of several iterations all."""
    expected: dict[str, Any] = entry["expected"]
    if expected["usage"] is None:
        return None
    return {**expected["usage"], **(expected["usage_all_iterations"] or {})}


def check(usage: Usage, entry: dict[str, Any]) -> None:
    """Hold what the meter found to what the provider reported."""
    expected = expected_usage(entry)
    if expected is None:
        assert usage.source != "reported"
        return
    assert usage.source == "reported"
    for name in (
        "input_tokens",
        "output_tokens",
        "cached_input_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
    ):
        assert getattr(usage, name) == (expected[name] or 0), name


def plans(size: int, name: str) -> Iterator[list[int]]:
    """Ways to cut an answer: at every byte if it is small, else at random."""
    yield []
    if size <= SMALL:
        for at in range(1, size):
            yield [at]
        yield list(range(1, size))
        return
    generator = random.Random(name)
    for _ in range(max(10, min(1000, 3_000_000 // size))):
        yield sorted(generator.sample(range(size), generator.choice((1, 2, 5, 20))))


def run(meter: Meter, body: bytes, cuts: list[int]) -> tuple[bytes, Usage]:
    edges = [0, *cuts, len(body)]
    out = b"".join([meter.feed(body[a:b]) for a, b in pairwise(edges)])
    return out + meter.rest(), meter.finish(True, lambda: 7).usage


ENTRIES = recordings()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_any_pieces(entry: dict[str, Any]) -> None:
    body = entry["bytes"]
    *_, api = formats(entry)
    for cuts in plans(len(body), entry["id"]):
        out, usage = run(make(api, entry["framing"]), body, cuts)
        assert out == body
        check(usage, entry)


def variants(body: bytes, framing: str) -> Iterator[bytes]:
    """The same answer, written otherwise."""
    yield body
    if framing == "json":
        yield b"\n\n  " + body
        return
    if framing != "sse":
        return
    if b"\r" not in body:
        yield body.replace(b"\n", b"\r\n")
        yield body.replace(b"\n", b"\r")
    yield b"\xef\xbb\xbf" + body
    yield b": hello\n\n" + body
    yield body.replace(b"\n\n", b"\n\n: keep-alive\n\n")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["id"])
def test_any_writing_in_the_dialect_and_in_auto(entry: dict[str, Any]) -> None:
    framing = entry["framing"]
    generator = random.Random(entry["id"])
    for api in formats(entry):
        for body in variants(entry["bytes"], framing):
            for many in (0, 1, 9):
                cuts = sorted(generator.sample(range(len(body)), many))
                out, usage = run(make(api, framing), body, cuts)
                assert out == body
                check(usage, entry)
                packed = gzip.compress(body)
                cuts = sorted(generator.sample(range(len(packed)), many))
                out, usage = run(InflatingMeter(make(api, framing)), packed, cuts)
                assert out == packed
                check(usage, entry)


@pytest.mark.parametrize(
    "entry",
    [entry for entry in ENTRIES if entry["framing"] == "sse"],
    ids=lambda entry: entry["id"],
)
def test_the_event_that_was_asked_for_is_all_that_is_taken_out(entry: dict[str, Any]) -> None:
    body = entry["bytes"]
    end = b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n"
    kept = []
    for part in body.split(end):
        data = part.rpartition(b"data: ")[2]
        event = orjson.loads(data) if data.startswith(b"{") and data.endswith(b"}") else {}
        if event.get("choices") != [] or not event.get("usage"):
            kept.append(part)
    rest = end.join(kept)
    generator = random.Random(entry["id"])
    for api in formats(entry):
        for many in (0, 1, 3, 40):
            cuts = sorted(generator.sample(range(len(body)), min(many, len(body))))
            out, usage = run(make(api, "sse", strip=True), body, cuts)
            assert out == rest
            check(usage, entry)
