"""The readers of a few members say what a reader of the whole message says, or nothing."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.recorder import _verbatim
from fastgw.usage import bedrock, ollama
from fastgw.usage.answer import read_answer
from fastgw.usage.brief import (
    _READ,
    _SEEN,
    MISSING,
    UNREADABLE,
    read_answered,
    read_asked,
    read_members,
)
from fastgw.usage.dialects import DIALECTS
from fastgw.usage.openai import OPENAI, normal_form, usual
from fastgw.usage.payload import read_object

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_NAMES = st.sampled_from(
    ["model", "stream", "stream_options", "usage", "error", "choices", "type", "Model", "messages"]
)
_MEMBERS = st.lists(st.tuples(_NAMES | st.text(max_size=3), _VALUES), max_size=8)
_JUNK = st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=2))


def _spell(members: list[tuple[str, Any]]) -> bytes:
    """An object with these members, repeated ones as well; some names escaped."""
    parts = []
    for at, (name, value) in enumerate(members):
        quoted = orjson.dumps(name)
        if at % 3 == 1 and name and name.isascii():
            quoted = b'"\\u%04x' % ord(name[0]) + orjson.dumps(name[1:])[1:]
        parts.append(quoted + b" :\n" + orjson.dumps(value))
    return b" {" + b",".join(parts) + b"}\n"


def _agree(body: bytes) -> None:
    whole = read_object(body)
    try:
        asked, answered = read_asked(body), read_answered(body)
    except UNREADABLE:
        return
    assert whole is not None
    assert asked.model == whole.get("model")
    assert asked.stream == whole.get("stream")
    assert (asked.stream_options is MISSING) == ("stream_options" not in whole)
    if answered.usage is MISSING:
        assert "usage" not in whole
    else:
        assert read_object(b'{"it":%b}' % bytes(answered.usage)) == {"it": whole["usage"]}
    assert answered.error == whole.get("error")
    assert answered.type == whole.get("type")
    assert (answered.choices is MISSING) == ("choices" not in whole)


@given(_MEMBERS)
def test_as_a_reader_of_the_whole(members: list[tuple[str, Any]]) -> None:
    _agree(_spell(members))


@given(_MEMBERS, _JUNK)
def test_damaged_bytes_are_refused_or_read_alike(
    members: list[tuple[str, Any]], junk: tuple[int, bytes]
) -> None:
    body = _spell(members)
    at = junk[0] % len(body)
    _agree(body[:at] + junk[1] + body[at + len(junk[1]) :])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"model"',
        b'{"model":"a",}',
        b'{"model":"a"} x',
        b'{"model":"a"}\x00',
        b'{"model":"a","x":"\x01"}',
        b'{"model":"a","x":"\\q"}',
        b'{"model":"a","x":"\\ud800"}',
        b'{"model":"\xff"}',
        b'{"model":"a","x":01}',
        b'{"model":"a","x":NaN}',
        b"{'model':'a'}",
        b'\xef\xbb\xbf{"model":"a"}',
        b'{"model":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_not_taken_is_left_to_others(body: bytes) -> None:
    with pytest.raises(UNREADABLE):
        read_asked(body)
    with pytest.raises(UNREADABLE):
        read_answered(body)


_COUNTS: st.SearchStrategy[Any] = st.integers(0, 9) | st.sampled_from(
    [None, -1, 2.0, 2.5, True, "3", 10**13, [], {}]
)
_DETAILS = st.none() | st.dictionaries(
    st.sampled_from(["cached_tokens", "cache_write_tokens", "reasoning_tokens", "audio_tokens"]),
    _COUNTS,
)
_USAGES = st.fixed_dictionaries(
    {"prompt_tokens": _COUNTS, "completion_tokens": _COUNTS},
    optional={
        "total_tokens": _COUNTS,
        "prompt_tokens_details": _DETAILS,
        "completion_tokens_details": _DETAILS,
        "cached_tokens": _COUNTS,
        "queue_time": st.floats(0, 1),
    },
)


@given(_USAGES, st.booleans())
def test_usual_usage_means_what_it_means_elsewhere(usage: dict[str, Any], sums: bool) -> None:
    given, made = usage["prompt_tokens"], usage["completion_tokens"]
    if sums and isinstance(given, int) and isinstance(made, int):
        usage["total_tokens"] = given + made
    found = usual(orjson.dumps(usage))
    assert found is None or found == normal_form(usage)


def test_what_openai_writes_is_usual() -> None:
    usage = {
        "prompt_tokens": 19,
        "completion_tokens": 10,
        "total_tokens": 29,
        "prompt_tokens_details": {"cached_tokens": 3, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 4, "accepted_prediction_tokens": 0},
    }
    assert usual(orjson.dumps(usage)) == (19, 10, 3, 0, 4, "reported", 0)
    del usage["prompt_tokens_details"]
    assert usual(orjson.dumps(usage)) == (19, 10, 0, 0, 4, "reported", 0)


@pytest.mark.parametrize("odd", [b"1e999", b"-1E+999", b'"\xff"', b'"\\ud83d and more"', b"{}"])
@pytest.mark.parametrize("name", [b"odd", b"audio_tokens"])
def test_bytes_that_no_log_could_carry_are_not_usual(name: bytes, odd: bytes) -> None:
    details = b'"prompt_tokens_details":{"%b":%b}' % (name, odd)
    usage = b'{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,%b}' % details
    assert usual(usage) is None
    body = b'{"model":"m","choices":[],"usage":%b}' % usage
    found = read_answer(OPENAI, body, True, lambda: 11)
    assert found.usage == (3, 4, 0, 0, 0, "reported", 0)
    assert not isinstance(found.reported, bytes)
    orjson.loads(b'{"x":1%b}' % _verbatim(found.reported or {}))


_COUNTED = st.dictionaries(
    st.sampled_from(
        ["input_tokens", "output_tokens", "total_tokens", "inputTokens", "totalTokenCount",
         "tokens", "generated_tokens", "tokenCount", "generated_token_count", "usage"]
    ),
    st.integers(0, 9) | st.just({"input_tokens": 3}),
)  # fmt: skip
_ANSWERS = st.dictionaries(
    st.sampled_from([*_READ, *_SEEN, "content", "data"]),
    st.integers(0, 9)
    | st.sampled_from([None, "message", "response", "list", "x" * 99, True, []])
    | _COUNTED
    | st.lists(_COUNTED, max_size=2),
)


@given(_ANSWERS)
def test_the_top_of_an_answer_says_what_the_whole_says_or_nothing(whole: dict[str, Any]) -> None:
    top = read_members(orjson.dumps(whole))
    if top is None:
        return
    assert top.keys() <= whole.keys()
    for api in {*DIALECTS["auto"].apis, DIALECTS["auto"].any}:
        usage = api.usage_object(top)
        if usage is None:
            continue
        assert usage == api.usage_object(whole)
        assert api.failed(top) == api.failed(whole)
        if not isinstance(whole.get("message"), dict):
            assert api.model(top) == api.model(whole)


def test_the_top_of_an_answer_has_all_that_stands_beside_its_text() -> None:
    flat = {name for names in bedrock._OWN for name in names if name}
    assert flat | {bedrock._METRICS, *ollama._NAMES} <= {*_READ}
    for body in (b"[]", b"{", b'{"usage":"\\ud800"}', b'{"results":[{}]}', b"\xff"):
        assert read_members(body) is None
    body = b'{"choices":[1,2],"message":{"a":1},"done":true,"data":[3],"generated_text":"x"}'
    assert read_members(body) == {
        "choices": [],
        "message": {},
        "done": True,
        "generated_text": "",
    }


_USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","choices":[],%b}' % _USAGE,
        b'{"model":"m","type":"chat","choices":null,%b}' % _USAGE,
        b'{"object":"list","data":[0.5,1e999],"model":"m",%b}' % _USAGE,
        b'{"model":"m","type":"response.created","response":{"usage":{"input_tokens":1}},%b}'
        % _USAGE,
        b'{"model":"m","type":"transcript.text.done",%b}' % _USAGE,
        b'{"model":"m","choices":[],"error":{"message":"no"},%b}' % _USAGE,
        b'{"model":"m","choices":[],"usage":null,"x_groq":{%b}}' % _USAGE,
        b'{"model":"m\\ud800","choices":[],%b}' % _USAGE,
        b'{"model":null,"choices":[],%b}' % _USAGE,
        b'{"model":"m","choices":[],"usage":{"prompt_tokens":-3}}',
        b'{"model":"m","choices":[],"usage":[]}',
    ],
)
def test_the_verdict_is_that_of_a_whole_reading(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_answer(OPENAI, body, True, lambda: 11)
    monkeypatch.setattr(OPENAI, "BRIEF", False)
    reported = found.reported
    if isinstance(reported, bytes):
        found = found._replace(reported=read_object(reported))
    assert found == read_answer(OPENAI, body, True, lambda: 11)
