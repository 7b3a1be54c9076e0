from __future__ import annotations

import gzip
import zlib
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgw.model import Usage
from fastgw.sse import EventFramer
from fastgw.usage.answer import KEEP_BODY, JsonMeter
from fastgw.usage.estimate import ByteCounter
from fastgw.usage.meter import (
    FIRST_EVENTS,
    HELD_EVENT,
    KEEP_BYTES,
    KEEP_LONG,
    LAST_EVENTS,
    InflatingMeter,
    Meter,
    Metered,
    StreamMeter,
    _Lease,
)
from fastgw.usage.openai import OPENAI
from fastgw.usage.payload import MAX_AT_ONCE, SLICE
from tests.looks_inside import looks_inside

if TYPE_CHECKING:
    from collections.abc import Callable


def event(value: object) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


def delta(text: str, **more: object) -> bytes:
    return event({"model": "m-1", "choices": [{"delta": {"content": text}}], **more})


USAGE = {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}
EXTRA = event({"model": "m-1", "choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"
TEXT = delta("Hello", usage=None) + delta(" world", usage=None)


def watch(
    body: bytes, cuts: list[int] | None = None, complete: bool = True, **options: bool
) -> tuple[bytes, Metered]:
    meter = StreamMeter(OPENAI, **options)  # type: ignore[arg-type]
    edges = [0, *(cuts or []), len(body)]
    out = b"".join(meter.feed(body[a:b]) for a, b in pairwise(edges))
    out += meter.rest()
    return out, meter.finish(complete, lambda: 7)


def test_reported_usage_is_believed_and_the_extra_event_stays_if_asked_for() -> None:
    body = TEXT + EXTRA + DONE
    out, found = watch(body)
    assert out == body
    assert found[:3] == (Usage(10, 9, source="reported"), "m-1", False)


def test_the_extra_event_is_taken_out_at_any_split() -> None:
    body = TEXT + EXTRA + DONE
    for at in range(len(body) + 1):
        out, found = watch(body, [at], strip=True)
        assert out == TEXT + DONE, at
        assert found.usage == Usage(10, 9, source="reported")


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_an_event_that_comes_alone_is_not_searched_by_an_expression(end: bytes) -> None:
    """The common path: it is kept as it came; only one that may report is looked at."""
    looked = []

    class Framer:
        def __init__(self) -> None:
            self._framer = EventFramer()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._framer, name)

        def feed(self, data: bytes) -> bytes:
            looked.append(data)
            return self._framer.feed(data)

    meter = StreamMeter(OPENAI, framer=Framer())  # type: ignore[arg-type]
    first, *rest = [delta(f"{number}").replace(b"\n", end) for number in range(9)]
    for data in (first, *rest):
        meter.feed(data)
    assert looked == ([] if end == b"\n" else [first])  # the first tells how events end
    assert meter._blocks == [first, *rest]
    meter.feed(EXTRA)
    assert looked[-1] == EXTRA


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_of_many_events_in_a_read_the_first_names_the_model_and_the_last_an_error(
    end: bytes,
) -> None:
    error = event({"error": {"message": "overloaded", "padding": "x" * LAST_EVENTS}})
    start = b": a comment\n\n" + delta("Hello")
    more = event({"model": "m-2", "choices": [{"delta": {"content": "failed error"}}]}) * 100
    for last, failed in ((b"", False), (DONE, False), (error, True), (error + DONE, True)):
        body = (start + more + last).replace(b"\n", end)
        for cuts in ([], [len(body) // 2]):
            _, found = watch(body, cuts)
            assert (found.model, found.error) == ("m-1", failed)


def test_usage_in_every_event_of_a_read() -> None:
    """As vLLM says it on demand: the last value counts, and what is usage alone is taken out."""
    events = [
        delta(f"{number}", usage={"prompt_tokens": 10, "completion_tokens": number})
        for number in range(50)
    ]
    body = b"".join(events) + EXTRA + b": ping\n\n" + EXTRA + DONE
    for at in (len(body), 1000, len(body) - 30):
        out, found = watch(body, [at], strip=True)
        assert out == b"".join(events) + b": ping\n\n" + DONE
        assert found.usage == Usage(10, 9, source="reported")


@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_other_line_ends(end: bytes) -> None:
    body = (TEXT + EXTRA + DONE).replace(b"\n", end)
    for at in range(len(body) + 1):
        out, found = watch(body, [at], strip=True)
        # A LF that was cut off its CR stays: an empty line more, which says nothing.
        assert out.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n\n\n", b"\n\n") == (
            TEXT + DONE
        )
        assert found.usage.source == "reported"


def test_usage_beside_choices_is_part_of_the_answer() -> None:
    body = TEXT + delta("!", usage=USAGE) + DONE
    out, found = watch(body, strip=True)
    assert out == body
    assert found.usage.total_tokens == 19


def test_null_after_a_value_erases_nothing_and_the_last_value_wins() -> None:
    body = (
        delta("a", usage={"prompt_tokens": 10, "completion_tokens": 1})
        + delta("b", usage={"prompt_tokens": None, "completion_tokens": 2})
        + delta("c", usage=None)
    )
    assert watch(body)[1].usage == Usage(10, 2, source="reported")


def test_an_explicit_zero_is_a_value() -> None:
    body = TEXT + event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}})
    assert watch(body)[1].usage == Usage(5, 0, source="reported")


@pytest.mark.parametrize("usage", [{}, {"cost": 0.1}, {"prompt_tokens_details": None}])
def test_a_usage_without_a_count_is_no_report(usage: dict[str, object]) -> None:
    body = TEXT + event({"choices": [], "usage": usage}) + DONE
    for at in range(len(body) + 1):
        for strip in (False, True):
            out, found = watch(body, [at], strip=strip)
            assert out == body
            assert found.usage == Usage(7, 3, source="counted")


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt_tokens": 10, "completion_tokens": -1, "total_tokens": 9},
        {"total_tokens": None, "completion_tokens_details": {"reasoning_tokens": 0}},
    ],
)
def test_a_report_that_says_nothing_covers_no_text_and_erases_no_report(
    bad: dict[str, object],
) -> None:
    empty = event({"choices": [], "usage": bad})
    report = delta("a", usage={"prompt_tokens": 10, "completion_tokens": 500})
    for body in (report + delta("x" * 400) + empty, report + empty + delta("x" * 400)):
        for complete in (True, False):
            for strip in (True, False):
                _, found = watch(body, complete=complete, strip=strip)
                assert found.usage == Usage(10, 600, source="counted")
    _, found = watch(delta("x" * 400) + empty + DONE)
    assert found.usage == Usage(7, 100, source="counted")
    assert watch(delta("x" * 400) + empty + DONE, strip=True)[0] == delta("x" * 400) + DONE


@pytest.mark.parametrize("first", [1, 7])
@pytest.mark.parametrize("name", [{"model": ""}, {"model": None}, {}])
def test_the_model_is_named_by_one_of_the_first_events(first: int, name: dict[str, Any]) -> None:
    """Azure's first event has its filters and no model."""
    unnamed = event({"choices": [], "prompt_filter_results": [], **name}) * first
    for body in (unnamed + TEXT + EXTRA + DONE, unnamed + delta("four") * 9000):
        for cuts in ([], [*range(200, len(body), 5000)]):
            assert watch(body, cuts)[1].model == "m-1"
    many = event({"choices": [], **name}) * FIRST_EVENTS
    assert watch(many + TEXT)[1].model == ""


def test_words_in_the_text_are_no_usage() -> None:
    body = delta('"usage": {"prompt_tokens": 1}') + DONE
    out, found = watch(body, strip=True)
    assert out == body
    assert found.usage.source == "counted"


def test_decoys_in_unknown_events_are_not_believed() -> None:
    body = TEXT + event({"type": "weird.event", "usage": {"input_tokens": 99}}) + EXTRA + DONE
    assert watch(body)[1].usage == Usage(10, 9, source="reported")


def test_a_stream_without_usage_is_counted() -> None:
    _, found = watch(TEXT + DONE)
    assert found.usage == Usage(7, 3, source="counted")  # 11 bytes of text


def test_a_cut_stream_is_counted_including_its_last_piece() -> None:
    _, found = watch(TEXT + delta("x" * 40)[:-2], complete=False)
    assert found.usage == Usage(7, 13, source="counted")


def test_a_stream_cut_after_an_interim_usage_is_charged_what_came_since() -> None:
    body = delta("a", usage={"prompt_tokens": 10, "completion_tokens": 1}) + delta("x" * 400)
    assert watch(body, complete=False)[1].usage == Usage(10, 101, source="counted")
    body = delta("a", usage={"prompt_tokens": 10, "completion_tokens": 500}) + delta("x")
    assert watch(body, complete=False)[1].usage == Usage(10, 500, source="reported")


@pytest.mark.parametrize("size", [1, 10, KEEP_BYTES])
def test_a_report_covers_the_text_before_it_however_our_count_differs(size: int) -> None:
    text = delta("x" * size, usage=None)
    body = text + delta("", usage={"prompt_tokens": 10, "completion_tokens": 2})
    assert watch(body, complete=False)[1].usage == Usage(10, 2, source="reported")
    assert watch(body + body, complete=False)[1].usage == Usage(10, 2, source="reported")
    later = watch(body + delta("y" * 40), complete=False)[1].usage
    assert later.source == "counted"
    assert later.output_tokens in (11, 12)  # what came since; the count rounds up once


def test_an_interim_zero_covers_nothing() -> None:
    body = delta("x" * 40, usage={"prompt_tokens": 10, "completion_tokens": 0})
    assert watch(body, complete=False)[1].usage == Usage(10, 10, source="counted")


@looks_inside
@pytest.mark.parametrize(
    ("after", "since", "reads"),
    [
        (b"", 0, False),
        (event({"type": "end"}), 0, False),
        (b"event: end\r\ndata: {}\r\n\r\n: ping\n\n", 0, False),
        (delta(""), 0, False),
        (event({"type": "end", "of": "x" * LAST_EVENTS}), 0, True),  # too much to look at
        (delta("12345678"), 2, True),
        (event({"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "1234"}}]}}]}), 1,
         True),
    ],
)  # fmt: skip
def test_nothing_is_counted_where_no_text_follows_the_report(
    monkeypatch: pytest.MonkeyPatch, after: bytes, since: int, reads: bool
) -> None:
    """So no vocabulary is loaded for it."""
    made: list[str] = []

    def counter(model: str) -> ByteCounter:
        made.append(model)
        return ByteCounter()

    monkeypatch.setattr("fastgw.usage.meter.counter_for", counter)
    for end in (b"", DONE):
        made.clear()
        meter = StreamMeter(OPENAI)
        meter.feed(TEXT + EXTRA + after + end)
        so_far = meter.interim(lambda: 7)
        assert (so_far.input_tokens, so_far.source, made) == (10, "reported", [])
        found = meter.finish(True, lambda: 7).usage
        assert found == Usage(10, 9 + since, source="counted" if since else "reported")
        assert made == (["m-1"] if reads else [])


def test_long_streams_are_folded_and_not_kept() -> None:
    meter = StreamMeter(OPENAI)
    for _ in range(4000):
        meter.feed(delta("four"))
        assert meter._waiting == sum(map(len, meter._blocks)) <= KEEP_LONG
    assert meter.finish(False, lambda: 7).usage == Usage(7, 4000, source="counted")


def test_long_streams_together_keep_no_more_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _Lease.taken == 0
    monkeypatch.setattr("fastgw.usage.meter.KEEP_ALL", 3 * KEEP_BYTES)
    meters = [StreamMeter(OPENAI) for _ in range(3)]
    for _ in range(2000):
        for meter in meters:
            meter.feed(delta("four"))
        assert _Lease.taken <= 3 * KEEP_BYTES
        assert sum(meter._waiting for meter in meters) <= 6 * KEEP_BYTES
    assert _Lease.taken == 3 * KEEP_BYTES
    for meter in meters:
        assert meter.finish(False, lambda: 7).usage == Usage(7, 2000, source="counted")
    meters.clear()
    del meter
    assert _Lease.taken == 0  # given back by those that are gone


@looks_inside
def test_what_a_stream_has_cost_so_far_is_told_of_new_events_alone() -> None:
    counted: list[int] = []

    class Counting(EventFramer):
        def count(self, block: bytes) -> int:
            counted.append(len(block))
            return super().count(block)

    meter = StreamMeter(OPENAI, framer=Counting())
    for number in range(1, 3000):
        meter.feed(delta("four"))
        if number % 7 == 0:
            assert meter.interim(lambda: 7) == Usage(7, number, source="counted")
    assert 2990 < len(counted) < 2999 + 3 * KEEP_LONG // len(delta("four"))  # and after a fold


@pytest.mark.parametrize("size", [KEEP_BYTES, 2 * KEEP_LONG])
@pytest.mark.parametrize("output", [0, 9])
def test_a_report_in_a_long_stream_covers_what_came_before_it(size: int, output: int) -> None:
    """Wherever it stands among the blocks that wait, and whichever of them are counted first."""
    first = delta("four") * (size // len(delta("four")))
    report = event({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": output}})
    later = delta("four") * 3000
    meter = StreamMeter(OPENAI)
    for at in range(0, len(first + report + later), 5000):
        meter.feed((first + report + later)[at : at + 5000])
    found = meter.finish(False, lambda: 7).usage
    before = 0 if output else size // len(delta("four"))
    assert found == Usage(10, output + before + 3000, source="counted")


def test_all_kinds_of_text_are_counted() -> None:
    body = event(
        {
            "choices": [
                {"delta": {"content": "12345678", "reasoning_content": "12345678"}},
                {
                    "delta": {
                        "tool_calls": [{"function": {"name": "abcd", "arguments": "12345678"}}]
                    }
                },
            ],
            "obfuscation": "x" * 100,
        }
    )
    assert watch(body)[1].usage.output_tokens == 7


def test_events_of_plain_text_are_counted() -> None:
    body = b"event: output\ndata: 12345678\n\nevent: output\ndata: 1234\n\ndata: [DONE]\n\n"
    assert watch(body)[1].usage == Usage(7, 3, source="counted")


def test_a_report_that_text_follows_is_not_the_last_word() -> None:
    body = delta("x", usage=USAGE) + delta("y" * 40)
    assert watch(body)[1].usage == Usage(10, 19, source="counted")
    assert watch(body + EXTRA + DONE)[1].usage == Usage(10, 9, source="reported")


def test_an_error_in_a_stream_keeps_what_was_metered() -> None:
    body = TEXT + b'event: error\ndata: {"error":{"message":"overloaded"}}\n\n'
    _, found = watch(body)
    assert found.error
    assert found.usage == Usage(7, 3, source="counted")


def test_responses_report_in_their_last_event() -> None:
    usage = {
        "input_tokens": 53,
        "input_tokens_details": {"cached_tokens": 3},
        "output_tokens": 469,
        "output_tokens_details": {"reasoning_tokens": 448},
        "total_tokens": 522,
    }
    body = (
        event({"type": "response.created", "response": {"model": "m-2", "usage": None}})
        + event({"type": "response.output_text.delta", "delta": "Hi"})
        + event({"type": "response.completed", "response": {"model": "m-2", "usage": usage}})
    )
    _, found = watch(body)
    assert found[:3] == (Usage(53, 469, 3, 0, 448, "reported"), "m-2", False)


PACKS: list[Callable[[bytes], bytes]] = [gzip.compress, zlib.compress]


@pytest.mark.parametrize("pack", PACKS)
def test_compressed_streams_are_read_and_passed_on_as_they_are(
    pack: Callable[[bytes], bytes],
) -> None:
    packed = pack(TEXT + EXTRA + DONE)
    out, found = inflate(packed, StreamMeter(OPENAI), 5)
    assert out == packed
    assert found.usage == Usage(10, 9, source="reported")


def inflate(data: bytes, inner: Meter, size: int = 65536) -> tuple[bytes, Metered]:
    """A compressed answer in pieces of `size`, which its provider ended soundly."""
    meter = InflatingMeter(inner)
    assert not meter.between_events
    out = b"".join(meter.feed(data[at : at + size]) for at in range(0, len(data), size))
    return out + meter.rest(), meter.finish(True, lambda: 7)


INNERS = [lambda: StreamMeter(OPENAI), lambda: JsonMeter(OPENAI)]


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("size", [1, 400, 65536])
def test_what_is_not_compressed_as_it_says_costs_its_bytes(
    inner: Callable[[], Meter], size: int
) -> None:
    """As an answer in a coding that cannot be read: never zero for what was passed on."""
    for data in (TEXT + DONE, b"\x1f\x8b\x08" + b"x" * 397, b"{}" * 200):
        out, found = inflate(data, inner(), size)
        assert out == data
        assert found.usage == Usage(7, -(-len(data) // 4), source="counted")


def test_what_was_read_before_the_damage_counts_if_it_is_more() -> None:
    text = delta("x" * 4000) * 10
    _, found = inflate(gzip.compress(text) + b"damage", StreamMeter(OPENAI))
    assert found.usage == Usage(7, 10_000, source="counted")
    _, found = inflate(gzip.compress(TEXT) + b"d" * 4000, StreamMeter(OPENAI))
    assert found.usage.source == "counted"
    assert found.usage.output_tokens >= 1000
    _, found = inflate(gzip.compress(TEXT + EXTRA + DONE) + b"\0" * 4000, StreamMeter(OPENAI))
    assert found.usage == Usage(10, 9, source="reported")
    body = orjson.dumps({"choices": [], "usage": USAGE})
    _, found = inflate(gzip.compress(body) + b"\0" * 4000, JsonMeter(OPENAI))
    assert found.usage == Usage(10, 9, source="reported")


def test_what_only_reports_is_not_counted_whatever_its_bytes() -> None:
    for inner in (StreamMeter(OPENAI, counts=False), JsonMeter(OPENAI, counts=False)):
        assert inflate(b"no gzip", inner)[1].usage == Usage()


@pytest.mark.parametrize("pack", PACKS)
def test_of_a_large_compressed_answer_little_is_kept(pack: Callable[[bytes], bytes]) -> None:
    body = orjson.dumps(
        {"data": [{"embedding": "A" * 30_000_000}], "model": "embed", "usage": {"prompt_tokens": 5}}
    )
    packed = pack(body)
    inner = JsonMeter(OPENAI)
    meter = InflatingMeter(inner)
    for at in range(0, len(packed), 4096):
        meter.feed(packed[at : at + 4096])
        assert sum(map(len, inner._pieces)) <= KEEP_BODY + SLICE
    assert meter.finish(True, lambda: 7)[:3] == (Usage(5, 0, source="reported"), "embed", False)


def test_a_bomb_is_kept_in_part_and_costs_what_was_seen_of_it() -> None:
    inner = JsonMeter(OPENAI)
    _, found = inflate(gzip.compress(b"0" * 100_000_000), inner, 2**20)
    assert sum(map(len, inner._pieces)) <= KEEP_BODY + SLICE
    assert found.usage == Usage(7, MAX_AT_ONCE // 4, source="counted")


def test_a_huge_event_is_not_held_back() -> None:
    huge = delta("y" * (HELD_EVENT * 2))
    meter = StreamMeter(OPENAI, strip=True)
    out = b""
    for at in range(0, len(huge), 10_000):
        out += meter.feed(huge[at : at + 10_000])
    assert not meter._framer.held
    assert out == huge
    assert meter.feed(EXTRA + DONE) == DONE


@settings(max_examples=60)
@given(st.data())
def test_any_pieces_give_the_same(data: st.DataObject) -> None:
    body = (
        b": hi\n\n"
        + TEXT
        + delta("你好 \N{GRINNING FACE}")
        + EXTRA
        + event({"choices": [], "usage": None})
        + DONE
    )
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=10).map(sorted))
    out, found = watch(body, cuts, strip=True)
    assert out == body.replace(EXTRA, b"")
    assert found.usage == Usage(10, 9, source="reported")


class TestJson:
    def watch(self, body: bytes, complete: bool = True, **options: bool) -> Metered:
        meter = JsonMeter(OPENAI, **options)
        for at in range(0, len(body), 100_000):
            meter.feed(body[at : at + 100_000])
        return meter.finish(complete, lambda: 7)

    def test_reported(self) -> None:
        body = orjson.dumps({"model": "m", "choices": [], "usage": USAGE})
        assert self.watch(body)[:3] == (Usage(10, 9, source="reported"), "m", False)
        assert self.watch(b"\n\n " + body).usage.total_tokens == 19

    def test_counted_where_nothing_is_reported(self) -> None:
        body = orjson.dumps({"choices": [{"message": {"content": "12345678"}}], "usage": None})
        assert self.watch(body).usage == Usage(7, 2, source="counted")

    def test_cut(self) -> None:
        body = orjson.dumps({"choices": [{"message": {"content": "x" * 400}}]})
        start = body.index(b"x")
        cut = self.watch(body[: start + 100], complete=False)
        assert cut.usage == Usage(7, 25, source="counted")

    def test_all_but_the_end_of_the_message(self) -> None:
        body = orjson.dumps({"usage": {"prompt_tokens": 3, "completion_tokens": 4}})
        assert self.watch(body, complete=False).usage == Usage(3, 4, source="reported")

    def test_an_error_inside_a_200_costs_nothing(self) -> None:
        assert self.watch(b'{"error": {"message": "no"}}')[:3] == (Usage(), "", True)

    @pytest.mark.parametrize("size", [70_000, KEEP_BODY * 2])
    def test_of_a_large_answer_the_end_is_enough(self, size: int) -> None:
        body = orjson.dumps(
            {
                "object": "list",
                "data": [{"embedding": "A" * size}],
                "model": "embed",
                "usage": {"prompt_tokens": 5, "total_tokens": 5},
            }
        )
        assert self.watch(body)[:3] == (Usage(5, 0, source="reported"), "embed", False)

    def test_what_a_client_wrote_is_not_taken_for_usage(self) -> None:
        body = orjson.dumps(
            {
                "object": "response",
                "usage": {"input_tokens": 50, "output_tokens": 60},
                "tools": [{"parameters": {"usage": {"input_tokens": 0, "output_tokens": 0}}}],
                "output": [{"content": [{"text": "y" * 70_000}]}],
            }
        )
        assert self.watch(body, echoes=True).usage == Usage(50, 60, source="reported")

    def test_gzip(self) -> None:
        body = gzip.compress(orjson.dumps({"choices": [], "usage": USAGE}))
        assert inflate(body, JsonMeter(OPENAI), 9)[1].usage.total_tokens == 19

    def test_unknown_operations_are_charged_only_what_is_reported(self) -> None:
        assert self.watch(b'{"data": []}', counts=False).usage == Usage()
        assert self.watch(b"\xff\xfb", counts=False).usage == Usage()


def test_the_line_end_of_the_event_before_is_not_taken_out() -> None:
    before = b'data: {"choices":[{"delta":{"content":"x"}}]}\r\n\r\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}\r\n\r\n'
    end = b"data: [DONE]\r\n\r\n"
    meter = StreamMeter(OPENAI, strip=True)
    cut = len(before) - 1
    body = before + usage + end
    assert meter.feed(body[:cut]) + meter.feed(body[cut:]) + meter.rest() == before + end
