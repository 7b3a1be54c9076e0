"""The real OpenAI and Anthropic SDKs against the real process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from tests.processes import ALICE, BOB, PER_USER, Gateway, settled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import StartGateway
    from tests.processes import Provider

MESSAGES: Any = [{"role": "user", "content": "Hello!"}]
MODEL = "gpt-3.5-turbo"


@pytest.fixture
def roomy(start: StartGateway) -> Gateway:
    return start(budgets=PER_USER.format(limit=1_000_000))


@pytest.fixture(params=["/openai", "/openai/v1"])
def client(roomy: Gateway, request: pytest.FixtureRequest) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        api_key=ALICE, base_url=roomy.url + request.param, max_retries=0, timeout=20
    ) as made:
        yield made


def test_chat(client: openai.OpenAI, roomy: Gateway) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello! How can I help you with that today?"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 19
    assert answer._request_id
    assert roomy.used("alice") == 19


def test_stream_without_asking_for_usage(client: openai.OpenAI, roomy: Gateway) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)  # no empty choices
    assert text == "Hello! How can I help you with that today?"
    assert all(chunk.usage is None for chunk in chunks)
    assert roomy.used("alice") == 19


@pytest.mark.parametrize("asked", [True, False, None])
def test_stream_options(client: openai.OpenAI, roomy: Gateway, asked: bool | None) -> None:
    options: Any = {} if asked is None else {"include_usage": asked}
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options=options
        )
    )
    reported = [chunk.usage.total_tokens for chunk in chunks if chunk.usage]
    assert reported == ([19] if asked else [])
    assert roomy.used("alice") == 19


def test_tools(client: openai.OpenAI, roomy: Gateway) -> None:
    tools: Any = [
        {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    ]
    headers = {"x-stub": "tools=1"}
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=tools, extra_headers=headers
    )
    calls: Any = answer.choices[0].message.tool_calls
    assert calls[0].function.arguments == '{"city":"Paris"}'
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=tools, extra_headers=headers, stream=True
    )
    arguments = ""
    for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or []:
            arguments += (call.function and call.function.arguments) or ""
    assert arguments == '{"city":"Paris"}'
    assert roomy.used("alice") == 38


def test_completions_embeddings_responses_models(client: openai.OpenAI, roomy: Gateway) -> None:
    client.completions.create(model=MODEL, prompt="Hello!")
    assert roomy.used("alice") == 19
    list(client.completions.create(model=MODEL, prompt="Hello!", stream=True))
    assert roomy.used("alice") == 38
    embedded = client.embeddings.create(model="e", input="Hello!", encoding_format="float")
    assert embedded.data[0].embedding == [0.25, -0.5, 1.0]
    assert roomy.used("alice") == 48
    answer = client.responses.create(model=MODEL, input="Hello!")
    assert answer.output_text == "Hello! How can I help you with that today?"
    assert roomy.used("alice") == 67
    events = list(client.responses.create(model=MODEL, input="Hello!", stream=True))
    assert events[-1].type == "response.completed"
    assert roomy.used("alice") == 86
    assert len(client.models.list().data) == 3
    assert roomy.used("alice") == 86  # reading is free


def test_async_client(roomy: Gateway) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(
            api_key=BOB, base_url=f"{roomy.url}/openai", max_retries=0
        ) as client:
            answers = await asyncio.gather(
                *(client.chat.completions.create(model=MODEL, messages=MESSAGES) for _ in range(20))
            )
            assert all(answer.usage and answer.usage.total_tokens == 19 for answer in answers)
            stream = await client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True
            )
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            assert text == "Hello! How can I help you with that today?"

    asyncio.run(run())
    assert roomy.used("bob") == 21 * 19


def test_errors_arrive_as_the_sdk_knows_them(gateway: Gateway) -> None:
    with openai.OpenAI(api_key=ALICE, base_url=f"{gateway.url}/openai") as client:
        for _ in range(6):
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
        with pytest.raises(openai.RateLimitError) as refused:  # at once: no sleep until midnight
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert refused.value.code == "budget_exceeded"
        assert refused.value.type == "insufficient_quota"
        assert "per-user-daily" in refused.value.message
        assert refused.value.request_id
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    with (
        openai.OpenAI(api_key="sk-wrong", base_url=f"{gateway.url}/openai") as stranger,
        pytest.raises(openai.AuthenticationError) as unknown,
    ):
        stranger.models.list()
    assert unknown.value.code == "invalid_api_key"


def test_what_cannot_fit_is_asked_for_once(start: StartGateway, provider: Provider) -> None:
    budget = """
[[budgets]]
name = "cap"
limit = 100
admission = "reserve"
window = "year"
"""
    gateway = start(budgets=budget)
    with openai.OpenAI(api_key=ALICE, base_url=f"{gateway.url}/openai") as client:
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
        settled(gateway)
        with pytest.raises(openai.RateLimitError, match="what is left is 81 tokens") as refused:
            client.chat.completions.create(model=MODEL, messages=MESSAGES)
        assert refused.value.code == "budget_exceeded"
        client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=50)
    assert [line["status"] for line in gateway.access_log()] == [200, 429, 200]


def test_a_stream_that_the_provider_cuts_raises_in_the_sdk(
    client: openai.OpenAI, roomy: Gateway
) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, extra_headers={"x-stub": "fault=cut:4"}
    )
    with pytest.raises(openai.APIError):
        list(stream)
    assert roomy.used("alice") > 0


def test_cancelling_a_stream_stops_the_provider(
    client: openai.OpenAI, roomy: Gateway, provider: Provider
) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        stream=True,
        extra_headers={"x-stub": "events=10000;pace=0.005"},
    )
    for at, _ in enumerate(stream):
        if at == 5:
            break
    stream.close()
    settled(roomy)
    assert 0 < roomy.used("alice") < 500
    assert provider.entries()[-1]["end"] == "client_closed"
    assert roomy.access_log()[-1]["reason"] == "client_disconnected"
    assert roomy.access_log()[-1]["usage_source"] == "counted"


def test_the_anthropic_sdk_shows_its_key_in_x_api_key(roomy: Gateway, provider: Provider) -> None:
    with anthropic.Anthropic(
        api_key=ALICE, base_url=f"{roomy.url}/openai", max_retries=0
    ) as client:
        client.messages.create(model="m", max_tokens=1, messages=MESSAGES)
    assert provider.entries()[-1]["path"] == "/v1/messages"
    assert ALICE.encode() not in provider.last()
    assert roomy.used("alice") == 19
