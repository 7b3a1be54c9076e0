"""The meter: what one event and one answer cost.

python -m bench.micro.meter
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.micro.timing import Row, show, timed
from fastgw.usage.answer import read_answer
from fastgw.usage.meter import StreamMeter
from fastgw.usage.openai import OPENAI

if TYPE_CHECKING:
    from collections.abc import Callable

EVENT = (
    b'data: {"id":"chatcmpl-Abc123Def456Ghi789","object":"chat.completion.chunk","created":'
    b'1732442400,"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":'
    b'"fp_0705bf87c0","choices":[{"index":0,"delta":{"content":" token"},"logprobs":null,'
    b'"finish_reason":null}]%b}\n\n'
)
LAST = (
    b'data: {"id":"chatcmpl-Abc123Def456Ghi789","object":"chat.completion.chunk","created":'
    b'1732442400,"model":"gpt-4o-mini-2024-07-18","choices":[],"usage":{"prompt_tokens":10,'
    b'"completion_tokens":200,"total_tokens":210}}\n\ndata: [DONE]\n\n'
)
ANSWER = (
    b'{"id":"chatcmpl-Abc123Def456Ghi789","object":"chat.completion","created":1732442400,'
    b'"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"%b","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,'
    b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":'
    b'{"reasoning_tokens":0,"audio_tokens":0}},"service_tier":"default"}'
)
EVENTS = 200


def _prompt() -> int:
    return 10


def stream(
    event: bytes, *, strip: bool = False, ends: bool = True, at_once: int = 1, events: int = EVENTS
) -> Callable[[], object]:
    """A whole stream of `events` events through a meter, `at_once` in a read; with `ends` its usage
    comes."""
    words = [b"%d" % (number * 7919 % 1000) for number in range(events)]
    each = [event.replace(b" token", b" " + word) for word in words]
    reads = [b"".join(each[at : at + at_once]) for at in range(0, events, at_once)]

    def whole() -> object:
        meter = StreamMeter(OPENAI, strip=strip)
        for data in reads:
            meter.feed(data)
        if ends:
            meter.feed(LAST)
        return meter.finish(ends, _prompt)

    return whole


def run(number: int = 200) -> list[Row]:
    """The rows of the report; those of streams are for one event."""
    plain, null = EVENT % b"", EVENT % b',"usage":null'
    rows = [
        timed("an event, usage: null in each", stream(null), number),
        timed("an event without usage", stream(plain), number),
        timed("an event, the extra one taken out", stream(null, strip=True), number),
        timed("an event, ten in a read", stream(null, at_once=10), number),
        timed("an event, a hundred in a read", stream(null, at_once=100), number),
        timed("an event of a stream that is cut and counted", stream(plain, ends=False), number),
    ]
    rows = [Row(row.name, row.microseconds / EVENTS) for row in rows]
    long = timed("an event of a stream of 5,000", stream(null, events=5000), -(-number // 25))
    rows.append(Row(long.name, long.microseconds / 5000))
    for size in (0, 3_000, 300_000):
        body = ANSWER % (b"x" * size)
        rows.append(
            timed(
                f"a buffered answer of {len(body):,} bytes",
                lambda body=body: read_answer(OPENAI, body, True, _prompt),  # type: ignore[misc]
                number * 10,
            )
        )
    return rows


if __name__ == "__main__":
    show("Meter", run())
