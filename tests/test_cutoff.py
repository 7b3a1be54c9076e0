"""Where a stream is cut, whatever way its bytes arrive, and how each format ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgw.cutoff import Watch, watched
from fastgw.errors import BudgetExceeded
from fastgw.model import Usage
from fastgw.policy.account import Account, Limit, Promise
from fastgw.policy.ledger import Ledger
from fastgw.policy.window import make_window
from fastgw.sse import payloads
from fastgw.usage.anthropic import ANTHROPIC
from fastgw.usage.cohere import COHERE
from fastgw.usage.endings import ending_for
from fastgw.usage.gemini import GEMINI
from fastgw.usage.ollama import OLLAMA
from fastgw.usage.openai import OPENAI
from fastgw.usage.tgi import TGI_API
from fastgw.usage.watched import WatchedMeter
from tests.usage.answers import FRAMERS, array, lines, sse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastgw.usage.api import Api

NOW = 1_700_000_000.0
PROMPT = 7
FULL = BudgetExceeded("budget 'b' has used\n9 of 8")
WORD = " four"
"""A token and a quarter by bytes; one by a vocabulary."""


class Stream:
    """A watched stream under one budget of `limit`, and a ledger of its own, or those of the one
    beside it."""

    def __init__(
        self,
        api: Api,
        operation: str,
        write: Callable[..., bytes],
        limit: int,
        *,
        unit: str = "tokens",
        strip: bool = False,
        beside: Stream | None = None,
        price: int = 0,
    ) -> None:
        rule = Limit("b", unit, limit, make_window("day"), cuts=True)
        self.ledger: Ledger = Ledger("w", float("inf")) if beside is None else beside.ledger
        self.account: Account = (
            self.ledger.account(rule, (), NOW) if beside is None else beside.account
        )
        self.promises = [Promise(self.account)]
        self.meter = WatchedMeter(
            api, strip=strip, framer=FRAMERS[write](), ending=ending_for(api, operation)
        )
        self.price = price
        self.watch = Watch(self.meter, self.promises, lambda: PROMPT, self.priced, self.charge)

    def priced(self, usage: Usage, answered: str) -> Usage:
        return usage._replace(cost=usage.output_tokens * self.price)

    def charge(self) -> None:
        self.ledger.charge(self.promises, self.watch.count(), NOW)

    def feed(self, pieces: Iterable[bytes]) -> bytes:
        out = b""
        for piece in pieces:
            out += self.watch.feed(piece)
            if self.watch.full is not None:
                break
        return out

    def end(self, asked: bool = False) -> bytes:
        usage = self.meter.finish(False, lambda: PROMPT).usage
        return self.watch.final(FULL, usage, asked, "openai")


def chunk(text: str, finish: str | None = None, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return {"id": "c", "object": "x", "created": 1, "model": "m", "choices": [choice]}


def spoken(*messages: Any) -> int:
    """What `text` of chat chunks counts."""
    stream = Stream(OPENAI, "chat", sse, 10**9)
    stream.feed([sse(*messages)])
    return stream.meter.exact(lambda: PROMPT).output_tokens


CHAT = [chunk(WORD) for _ in range(30)]
CASES: dict[str, tuple[Api, str, Callable[..., bytes], list[Any]]] = {
    "chat": (OPENAI, "chat", sse, CHAT),
    "completions": (OPENAI, "text_completion", sse, [
        {"id": "c", "choices": [{"index": 0, "text": WORD}]} for _ in range(30)]),
    "responses": (OPENAI, "responses", sse, [
        ("response.created", {"type": "response.created", "response": {"id": "r"}}),
        *(("response.output_text.delta", {
            "type": "response.output_text.delta", "output_index": 0, "item_id": "i",
            "delta": WORD}) for _ in range(30))]),
    "anthropic": (ANTHROPIC, "chat", sse, [
        ("message_start", {"type": "message_start", "message": {
            "usage": {"input_tokens": PROMPT, "output_tokens": 1}}}),
        ("content_block_start", {"type": "content_block_start", "index": 0,
                                 "content_block": {"type": "text", "text": ""}}),
        *(("content_block_delta", {
            "type": "content_block_delta", "index": 0,
            "delta": {"type": "text_delta", "text": WORD}}) for _ in range(30))]),
    "gemini": (GEMINI, "generate_content", sse, [
        {"candidates": [{"content": {"parts": [{"text": WORD}]}}],
         "usageMetadata": {"promptTokenCount": PROMPT, "candidatesTokenCount": at + 1}}
        for at in range(30)]),
    "gemini array": (GEMINI, "generate_content", array, [
        {"candidates": [{"content": {"parts": [{"text": WORD}]}}]} for _ in range(30)]),
    "ollama": (OLLAMA, "chat", lines, [
        {"model": "m", "message": {"content": WORD}, "done": False} for _ in range(30)]),
    "cohere": (COHERE, "chat", sse, [
        {"type": "message-start"},
        *({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": WORD}}}}
          for _ in range(30))]),
    "tgi": (TGI_API, "text_completion", sse, [{"token": {"text": WORD}} for _ in range(30)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_cut_does_not_depend_on_how_bytes_arrive(name: str) -> None:
    api, operation, write, events = CASES[name]
    body = write(*events)
    found = set()
    for at in range(len(body) + 1):
        stream = Stream(api, operation, write, 20)
        out = stream.feed([body[:at], body[at:]])
        assert stream.watch.full is stream.account
        found.add((out, stream.end(), stream.account.count.spent))
    stream = Stream(api, operation, write, 20)
    out = stream.feed(body[at : at + 1] for at in range(len(body)))
    found.add((out, stream.end(), stream.account.count.spent))
    ((out, _, spent),) = found
    assert body.startswith(out)
    assert 20 < spent <= 23
    # One event less would have been within the limit.
    number = next(each for each in range(30) if write(*events[: each + 1]).startswith(out[:-2]))
    before = Stream(api, operation, write, 20)
    before.feed([write(*events[:number])])
    assert before.watch.full is None


@given(st.lists(st.integers(1, 400), max_size=40), st.integers(8, 60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_pieces_give_the_same_cut(sizes: list[int], limit: int, strip: bool) -> None:
    texts = ["a", " b" * 9, "", " zebra", "ünïcode 漢字", "x" * 40]
    body = sse(*(chunk(texts[at % 6]) for at in range(40)))
    whole = Stream(OPENAI, "chat", sse, limit, strip=strip)
    expected = whole.feed([body])
    pieces, at = [], 0
    for size in sizes:
        pieces.append(body[at : at + size])
        at += size
    stream = Stream(OPENAI, "chat", sse, limit, strip=strip)
    assert stream.feed([*pieces, body[at:]]) == expected
    assert stream.account.count.spent == whole.account.count.spent
    assert stream.end() == whole.end()


def test_far_from_the_limit_nothing_is_counted() -> None:
    stream = Stream(OPENAI, "chat", sse, 1_000_000)
    stream.feed([sse(chunk("a"))])
    charged = stream.account.count.spent
    data = sse(*CHAT)
    assert stream.watch.feed(data) is data
    assert stream.account.count.spent == charged
    assert stream.meter.waits


def test_what_does_not_cross_passes_as_it_is() -> None:
    body = sse(*CHAT, chunk("", "stop"), b"[DONE]")
    limit = PROMPT + spoken(*CHAT)
    stream = Stream(OPENAI, "chat", sse, limit)
    assert stream.feed([body[:100], body[100:]]) == body
    assert stream.watch.full is None
    assert Stream(OPENAI, "chat", sse, limit - 1).feed([body]) != body


def test_an_answer_that_has_ended_is_not_cut() -> None:
    report = {"choices": [], "usage": {"prompt_tokens": 5_000, "completion_tokens": 5_000}}
    body = sse(chunk("a"), chunk("", "stop"), report, b"[DONE]")
    stream = Stream(OPENAI, "chat", sse, 20)
    assert stream.feed([body]) == body
    assert stream.watch.full is None


def test_a_report_that_says_more_than_was_counted_cuts() -> None:
    told = {**chunk("a"), "usage": {"prompt_tokens": 5, "completion_tokens": 100}}
    body = sse(chunk("a"), told, chunk("b"))
    stream = Stream(OPENAI, "chat", sse, 50)
    assert stream.feed([body]) == sse(chunk("a"), told)
    assert stream.account.count.spent == 105


def test_a_report_far_from_the_limit_cuts_at_its_own_event() -> None:
    told = {**chunk("a"), "usage": {"prompt_tokens": 5, "completion_tokens": 2_000_000}}
    stream = Stream(OPENAI, "chat", sse, 1_000_000)
    stream.feed([sse(chunk("a"))])
    assert stream.feed([sse(told, *CHAT)]) == sse(told)


def test_what_comes_after_a_report_counts_on_top_of_it() -> None:
    told = {**chunk("a"), "usage": {"prompt_tokens": 5, "completion_tokens": 500}}
    stream = Stream(OPENAI, "chat", sse, 520)
    for event in (told, *CHAT):
        if stream.watch.full is None:
            stream.feed([sse(event)])
    assert stream.watch.full is not None
    assert 520 < stream.account.count.spent <= 522


def test_streams_that_share_a_budget_share_what_is_left() -> None:
    first = Stream(OPENAI, "chat", sse, 60)
    account = first.account
    streams = [first, Stream(OPENAI, "chat", sse, 60, beside=first)]
    for each in CHAT:
        for stream in streams:
            if stream.watch.full is None:
                stream.watch.feed(sse(each))
    assert all(stream.watch.full is account for stream in streams)
    assert 60 < account.count.spent <= 60 + 2 * 2


def test_what_others_hold_is_not_to_be_spent() -> None:
    stream = Stream(OPENAI, "chat", sse, 100)
    stream.account.count.held = 60
    stream.account.count.others = 20
    stream.feed([sse(*CHAT)])
    assert stream.watch.full is not None
    assert 20 < stream.account.count.spent <= 22


def test_dollars() -> None:
    stream = Stream(OPENAI, "chat", sse, 10_000, unit="usd", price=1_000)
    stream.feed([sse(*CHAT)])
    assert stream.watch.full is not None
    assert 10_000 < stream.account.count.spent <= 12_000


def test_budgets_that_cannot_be_overrun_are_not_watched() -> None:
    def promise(held: int, **more: Any) -> Promise:
        ledger = Ledger("w", float("inf"))
        limit = Limit("b", "tokens", 100, make_window("day"), **more)
        made = Promise(ledger.account(limit, (), NOW))
        made.held = held
        return made

    bound = Usage(10, 40)
    whole, part = promise(50, cuts=True), promise(49, cuts=True)
    post, plain = promise(0, cuts=True), promise(50)
    shadow = promise(0, cuts=True, shadow=True)
    assert watched([whole, part, post, plain, shadow], bound) == [part, post]
    assert watched([whole, plain, shadow], None) == [whole]


def objects(data: bytes) -> list[Any]:
    return [each if each == b"[DONE]" else orjson.loads(each) for each in payloads(data)]


def ended(name: str, asked: bool = False) -> bytes:
    api, operation, write, events = CASES[name]
    stream = Stream(api, operation, write, 20)
    stream.feed([write(*events)])
    return stream.end(asked)


def test_the_end_of_chat() -> None:
    data = ended("chat")
    assert data.startswith(b": budget_exceeded budget 'b' has used 9 of 8\n\n")
    last, done = objects(data)
    assert last["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    ]
    assert (last["id"], last["created"], last["model"]) == ("c", 1, "m")
    assert done == b"[DONE]"
    last, told, done = objects(ended("chat", asked=True))
    assert last["usage"] is None
    assert told["choices"] == []
    assert told["usage"]["prompt_tokens"] == PROMPT
    assert 20 < told["usage"]["total_tokens"] <= 23
    assert objects(ended("completions"))[0]["choices"][0]["text"] == ""


def test_each_choice_that_is_open_is_ended() -> None:
    events = [
        chunk("a", index=0),
        chunk("b", index=1),
        chunk("", "stop", 0),
        chunk("c" * 200, None, 1),
    ]
    stream = Stream(OPENAI, "chat", sse, 20)
    stream.feed([sse(*events)])
    (last, _) = objects(stream.end())
    assert [each["index"] for each in last["choices"]] == [1]


def test_the_end_of_responses() -> None:
    (last,) = objects(ended("responses"))
    response = last["response"]
    assert (last["type"], response["status"], response["id"]) == (
        "response.incomplete", "incomplete", "r",
    )  # fmt: skip
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    (item,) = response["output"]
    assert item["content"][0]["text"].startswith(WORD + WORD)
    assert 20 < response["usage"]["total_tokens"] <= 23


def test_the_end_of_anthropic() -> None:
    data = ended("anthropic")
    assert b"event: message_stop\ndata: " in data
    stop, delta, last = objects(data)
    assert stop == {"type": "content_block_stop", "index": 0}
    assert delta["delta"]["stop_reason"] == "max_tokens"
    assert 20 < PROMPT + delta["usage"]["output_tokens"] <= 23
    assert last == {"type": "message_stop"}


def test_the_end_of_other_formats() -> None:
    (last,) = objects(ended("gemini"))
    assert last["candidates"][0]["finishReason"] == "MAX_TOKENS"
    assert last["usageMetadata"]["totalTokenCount"] == 21
    api, operation, write, events = CASES["gemini array"]
    stream = Stream(api, operation, write, 20)
    whole = orjson.loads(stream.feed([write(*events)]) + stream.end())
    assert whole[-1]["candidates"][0]["finishReason"] == "MAX_TOKENS"
    line = orjson.loads(ended("ollama"))
    assert (line["done"], line["done_reason"], line["model"]) == (True, "length", "m")
    assert 20 < line["prompt_eval_count"] + line["eval_count"] <= 23
    stop, last = objects(ended("cohere"))
    assert stop == {"type": "content-end", "index": 0}
    assert last["delta"]["finish_reason"] == "MAX_TOKENS"
    (error,) = objects(ended("tgi"))
    assert error["error"]["code"] == "budget_exceeded"


@pytest.mark.parametrize("name", ["chat", "anthropic", "responses"])
def test_a_stream_that_has_not_begun_is_not_cut_by_its_prompt(name: str) -> None:
    api, operation, write, events = CASES[name]
    stream = Stream(api, operation, write, 1)
    assert stream.feed([b": wait\n\n", write(*events)]) == b": wait\n\n" + write(events[0])
    assert objects(stream.end())
