"""What a request body asks for, and that the provider is asked for the same."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.errors import BadBody, NotMeterable
from fastgw.usage.dialects import DIALECTS
from fastgw.usage.openai import OPENAI
from fastgw.usage.payload import read_object
from fastgw.usage.prompt import prompt_tokens
from fastgw.usage.request import (
    limit_output,
    output_limit,
    read_form,
    read_json,
    refuse_unmeterable,
    without_usage,
)
from tests.looks_inside import looks_inside


def readings(body: bytes) -> set[str]:
    """The models that parsers of different habits see: first or last member wins, any case."""
    seen: set[str] = set()

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen.clear()  # the outermost object comes last
        seen.update(value for name, value in pairs if name.lower() == "model")
        return dict(pairs)

    json.loads(body, object_pairs_hook=keep)
    return seen


def test_a_body_that_needs_nothing_is_sent_as_it_came() -> None:
    body = b' {"model" : "m", "stream": false, "n":1.10}\n'
    assert read_json(body, True, False)[0] is body
    asked = b'{"stream":true,"model":"m","stream_options":{"include_usage":true}}'
    sent, _, model, stream, injected = read_json(asked, True, False)
    assert (sent is asked, model, stream, injected) == (True, "m", True, False)


@pytest.mark.parametrize(
    "options", ["", ',"stream_options":{}', ',"stream_options":null',
                ',"stream_options":{"include_usage":false}', ',"stream_options":7',
                ',"stream_options":{"include_usage":"true"}'],
)  # fmt: skip
@pytest.mark.parametrize("strict", [False, True])
def test_no_form_of_stream_options_escapes_the_meter(options: str, strict: bool) -> None:
    body = ('{"model":"m","stream":true' + options + "}").encode()
    sent, _, _, _, injected = read_json(body, True, strict)
    assert injected
    assert json.loads(sent)["stream_options"]["include_usage"] is True
    assert sent.count(b"stream_options") == 1


def test_where_nothing_is_decided_the_option_is_all_that_is_added() -> None:
    rest = b'"stream" : true,"n":1.10,"seed":123456789012345678901234567890}\n'
    sent, *_, injected = read_json(b" {" + rest, True, False)
    assert injected
    assert sent == b' {"stream_options":{"include_usage":true},' + rest


def test_other_stream_options_are_kept() -> None:
    body = b'{"stream":true,"stream_options":{"include_obfuscation":false}}'
    assert json.loads(read_json(body, True, False)[0])["stream_options"] == {
        "include_obfuscation": False,
        "include_usage": True,
    }


@pytest.mark.parametrize("stream", ["false", "null", '"true"', "1"])
def test_usage_is_asked_for_of_streams_alone(stream: str) -> None:
    body = b'{"model":"m","stream":%b}' % stream.encode()
    assert read_json(body, True, False)[::4] == (body, False)
    body = b'{"model":"m","stream":true}'
    assert read_json(body, False, False)[::4] == (body, False)  # an operation that rejects it


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b'"a"', b'{"model":1}', b'{"model":["m"]}', b'{"a":}', b"{}{}"]
)
def test_no_object_or_no_name(body: bytes) -> None:
    with pytest.raises(BadBody):
        read_json(body, True, False)


MEMBER = st.tuples(
    st.sampled_from(["model", "Model", "MODEL", "n", "mode\\u006c"]),
    st.sampled_from(['"cheap"', '"dear"', "1"]),
)


@given(st.lists(MEMBER, max_size=4), st.booleans())
def test_the_model_we_judged_is_the_model_the_provider_sees(
    members: list[tuple[str, str]], ask: bool
) -> None:
    text = ",".join(f'"{name}":{value}' for name, value in [*members, ("stream", "true")])
    try:
        sent, _, model, _, _ = read_json(b"{" + text.encode() + b"}", ask, True)
    except BadBody:
        return
    assert readings(sent) == ({model} if model else set())


@given(st.lists(MEMBER, max_size=4))
def test_a_model_that_the_operator_replaces_is_the_only_one_sent(
    members: list[tuple[str, str]],
) -> None:
    text = ",".join(f'"{name}":{value}' for name, value in members)
    try:
        sent = read_json(b"{" + text.encode() + b"}", False, False, "cheap")[0]
    except BadBody:
        return
    assert readings(sent) == {"cheap"}


def test_replacing() -> None:
    aliases = {"fast": "gpt-small"}
    sent, _, model, _, _ = read_json(b'{"model":"fast"}', False, False, "", aliases)
    assert (json.loads(sent)["model"], model) == ("gpt-small", "fast")  # judged as it was asked for
    sent, *_ = read_json(b'{"model":"fast"}', False, False, "fixed", aliases)
    assert json.loads(sent)["model"] == "fixed"
    assert read_json(b'{"model":"x"}', False, False, "", aliases)[0] == b'{"model":"x"}'
    assert json.loads(read_json(b"{}", False, False, "fixed")[0]) == {"model": "fixed"}


def test_a_value_that_json_cannot_carry_is_refused_where_it_must_be_rewritten() -> None:
    body = b'{"model":"m","messages":[{"content":"\\ud83d"}]}'
    assert read_json(body, True, False)[0] == body
    with pytest.raises(BadBody):
        read_json(body, True, True)


def form(*parts: bytes) -> bytes:
    return b"".join(b"--x\r\n%b\r\n" % part for part in parts) + b"--x--\r\n"


def form_model_of(body: bytes) -> str:
    return read_form(body, b"multipart/form-data; boundary=x")[1]


def test_the_model_of_a_form() -> None:
    model = b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper-1'
    other = b'Content-Disposition: form-data; name="model"\r\n\r\nother'
    file = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF'
    assert form_model_of(form(file, model)) == "whisper-1"
    assert form_model_of(form(model, other)) == ""  # not chosen between
    assert form_model_of(form(file)) == ""
    typed = b'content-disposition: form-data; name="model"\r\nContent-Type: text/plain\r\n\r\nm'
    assert form_model_of(form(typed)) == "m"
    decoy = (
        b'Content-Disposition: form-data; name="prompt"\r\n\r\n'
        b'Content-Disposition: form-data; name="model"\r\n\r\ncheap\r\n'
    )
    assert form_model_of(form(decoy, model)) == "whisper-1"


@pytest.mark.parametrize(
    "part",
    [
        b'Content-Disposition: form-data;\tname="model"\r\n\r\ndear',
        b"Content-Disposition: form-data; name=model\r\n\r\ndear",
        b'Content-Disposition: form-data; name="x"; name="model"\r\n\r\ndear',
        b'Content-Disposition: form-data; name="x"\r\n'
        b'Content-Disposition: form-data; name="model"\r\n\r\ndear',
        b"X: 1\r\n\r\ndear",
        b'Content-Disposition : form-data; name="model"\r\n\r\ndear',
        b'Content-Disposition: form-data; name="model"',
    ],
)
def test_a_form_that_could_be_read_otherwise_is_refused(part: bytes) -> None:
    model = b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper-1'
    with pytest.raises(BadBody):
        form_model_of(form(part, model))


def test_background_responses_are_refused_under_a_budget() -> None:
    with pytest.raises(NotMeterable):
        refuse_unmeterable("responses", {"background": True})
    refuse_unmeterable("responses", {"background": False})
    refuse_unmeterable("chat", {"background": True})


@pytest.mark.parametrize(
    ("operation", "message", "tokens"),
    [
        ("chat", {}, 1000),
        ("chat", {"max_tokens": 7}, 7),
        ("chat", {"max_tokens": 7, "max_completion_tokens": 5}, 7),
        ("chat", {"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ("chat", {"max_tokens": 7, "max_completion_tokens": None}, 7),
        ("chat", {"max_tokens": -1, "max_completion_tokens": 5}, 1000),
        ("chat", {"max_tokens": 7, "n": 3}, 21),
        ("chat", {"max_tokens": 7.0, "n": 3.0}, 21),
        ("chat", {"max_tokens": -1}, 1000),
        ("text_completion", {"max_tokens": 7, "prompt": ["a", "b", "c"], "n": 2}, 42),
        ("text_completion", {"max_tokens": 7, "prompt": [[1, 2], [3]]}, 14),
        ("text_completion", {"max_tokens": 7, "prompt": [1, 2, 3]}, 7),
        ("text_completion", {"max_tokens": 7, "prompt": ["a"]}, 7),
        ("text_completion", {"max_tokens": 7, "n": 2, "best_of": 4}, 28),
        ("responses", {"max_output_tokens": 9, "max_tokens": 3}, 9),
        ("embeddings", {"max_tokens": 9}, 0),
        ("", {}, 0),
    ],
)
def test_the_output_that_a_request_allows(
    operation: str, message: dict[str, Any], tokens: int
) -> None:
    assert output_limit(OPENAI, operation, message, 1000) == tokens


@pytest.mark.parametrize(
    "message",
    [{"max_tokens": "7"}, {"max_tokens": True}, {"max_tokens": 7.5}, {"max_tokens": 7, "n": "2"},
     {"max_tokens": 7, "max_completion_tokens": [9]}, {"max_tokens": float("inf")}],
)  # fmt: skip
def test_a_limit_that_is_no_number_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(BadBody, match="must be a whole number"):
        output_limit(OPENAI, "chat", message, 1000)


@pytest.mark.parametrize(
    ("operation", "message", "room", "after", "allowed"),
    [
        ("chat", {}, 50, {"max_tokens": 50}, 50),
        (
            "chat",
            {"max_tokens": 70, "max_completion_tokens": 70},
            50,
            {"max_tokens": 50, "max_completion_tokens": 50},
            50,
        ),
        ("chat", {"max_completion_tokens": 70, "n": 3}, 50,
         {"max_completion_tokens": 16, "n": 3}, 48),
        ("responses", {}, 50, {"max_output_tokens": 50}, 50),
        ("chat", {"n": 60}, 50, {"n": 60}, 0),
        ("embeddings", {}, 50, {}, 0),
    ],
)  # fmt: skip
def test_an_answer_is_limited_to_what_is_left(
    operation: str, message: dict[str, Any], room: int, after: dict[str, Any], allowed: int
) -> None:
    assert limit_output(OPENAI, operation, message, room) == allowed
    assert message == after


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream":true,"model":"m"}',
        b' {"model":"m","stream":true,"seed":12345678901234567890123}',
        b'\xef\xbb\xbf {"model":"m","stream":true,"stop":"\\ud83d"}',
    ],
)
def test_what_was_added_can_be_taken_out_again(body: bytes) -> None:
    sent, *_, injected = read_json(body, True, False)
    assert injected
    assert without_usage(sent) == body


@pytest.mark.parametrize(
    ("options", "left"),
    [({}, None), ({"include_usage": False}, None), ({"x": 1}, {"x": 1}), (None, None), (7, None)],
)
def test_of_merged_options_the_others_stay(options: Any, left: Any) -> None:
    body = json.dumps({"model": "m", "stream": True, "stream_options": options}).encode()
    found = json.loads(without_usage(read_json(body, True, False)[0]))
    assert found.get("stream_options") == left


@pytest.mark.parametrize(
    ("streams", "body", "expected"),
    [
        (True, b"{}", True),  # Gemini's path, Ollama by itself
        (True, b'{"stream":false}', False),
        (True, b'{"stream":null}', True),
        (False, b'{"stream":true}', False),
        (None, b'{"stream":true}', True),
        (None, b"{}", False),
    ],
)
def test_whether_it_streams(streams: bool | None, body: bytes, expected: bool) -> None:
    assert read_json(body, False, False, streams=streams)[3] is expected


def test_a_model_that_the_path_names_is_the_model() -> None:
    body = b'{"model":"other","Model":"x"}'
    sent, _, model, _, _ = read_json(body, False, False, "m-9", {"other": "m-8"}, "gemini-x")
    assert (sent, model) == (body, "gemini-x")


@pytest.mark.parametrize(
    ("name", "operation", "message", "tokens"),
    [
        ("anthropic", "chat", {"max_tokens": 7}, 7),
        ("gemini", "generate_content",
         {"generationConfig": {"maxOutputTokens": 7, "candidateCount": 2}}, 14),
        ("gemini", "generate_content", {"generation_config": {"max_output_tokens": 7}}, 7),
        ("gemini", "generate_content", {"generationConfig": 5}, 1000),
        ("bedrock", "chat", {"inferenceConfig": {"maxTokens": 7}}, 7),
        ("bedrock", "text_completion", {"max_gen_len": 7}, 7),
        ("bedrock", "text_completion", {}, 1000),
        ("ollama", "chat", {"options": {"num_predict": 7}}, 7),
        ("ollama", "chat", {"options": {"num_predict": -1}}, 1000),
        ("cohere", "chat", {"max_tokens": 7}, 7),
        ("tgi", "text_completion", {"parameters": {"max_new_tokens": 7}}, 7),
        ("gemini", "embeddings", {}, 0),
    ],
)  # fmt: skip
def test_where_other_formats_limit_the_output(
    name: str, operation: str, message: dict[str, Any], tokens: int
) -> None:
    api = DIALECTS[name].apis[0]
    assert output_limit(api, operation, message, 1000) == tokens
    allowed = limit_output(api, operation, message, 4)
    if not tokens or (name, message) == ("bedrock", {}):
        assert allowed == 0  # which member this model takes is not known
    else:
        assert allowed == 4
        assert output_limit(api, operation, message, 1000) == 4


IMAGE = "data:image/png;base64," + "QUJD" * 500_000


def with_image(**more: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": {"url": IMAGE}}
    words = {"type": "text", "text": "What is this?"}
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": [words, part]}]} | more


@looks_inside
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [None, {"other": 1}, {"include_usage": True}])
def test_of_a_large_body_the_image_is_not_read(
    stream: bool, options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def counted(data: bytes) -> Any:
        read.append(len(data))
        return read_object(data)

    value = with_image(stream=stream) | ({"stream_options": options} if options else {})
    body = orjson.dumps(value)
    whole = read_json(body, True, False, whole=True)
    monkeypatch.setattr("fastgw.usage.request.read_object", counted)
    found = read_json(body, True, False)
    assert found[0] == whole[0]
    assert found[2:] == whole[2:]
    assert prompt_tokens(found[1]) == prompt_tokens(whole[1])
    rewritten = stream and options == {"other": 1}  # what is written anew must be read
    assert max(read) == (len(body) if rewritten else min(read))
    assert min(read) < 10_000


def test_a_body_that_is_written_anew_keeps_its_image() -> None:
    body = orjson.dumps(with_image())
    for found in (
        read_json(body, True, True),
        read_json(body, True, False, "gpt-4o"),
        read_json(body, True, False, aliases={"a": "b"}),
    ):
        assert orjson.loads(found[0]) == with_image()
    assert read_json(body, True, False, whole=True)[1] == with_image()


def test_a_large_text_is_counted_by_samples_whether_it_is_read_or_not() -> None:
    value = {"model": "m", "prompt": "word" * 500_000, "user": "x"}
    body = orjson.dumps(value)
    message = read_json(body, False, False)[1]
    assert len(message["prompt"]) < 20_000
    assert prompt_tokens(message) == pytest.approx(prompt_tokens(value), rel=0.02)


def test_a_name_of_any_length_is_the_name() -> None:
    name = "x" * 1_000_000
    assert read_json(orjson.dumps({"model": name}), False, False)[2] == name
