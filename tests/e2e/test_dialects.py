"""Providers of other dialects: real SDKs and plain requests against the real process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import orjson
import pytest

from tests.processes import ALICE, BOB, PER_USER, UPSTREAM_KEY, Gateway, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import StartGateway
    from tests.processes import Provider

MESSAGES: Any = [{"role": "user", "content": "Hello!"}]
TEXT = "Hello! How can I help you with that today?"


def dialect(name: str, **more: Any) -> dict[str, Any]:
    """Options of a gateway whose upstream speaks `name`."""
    return {
        "budgets": PER_USER.format(limit=more.pop("limit", 1_000_000)),
        "upstream": f'dialect = "{name}"\n',
        **more,
    }


class TestAnthropic:
    @pytest.fixture(params=["anthropic", "auto"])
    def gateway(self, start: StartGateway, request: pytest.FixtureRequest) -> Gateway:
        return start(**dialect(request.param))

    @pytest.fixture
    def client(self, gateway: Gateway) -> Iterator[anthropic.Anthropic]:
        with anthropic.Anthropic(
            api_key=ALICE, base_url=f"{gateway.url}/openai", max_retries=0, timeout=20
        ) as made:
            yield made

    def test_message(
        self, client: anthropic.Anthropic, gateway: Gateway, provider: Provider
    ) -> None:
        answer = client.messages.create(
            model="claude", max_tokens=64, messages=MESSAGES, extra_headers={"x-stub": "cached=4"}
        )
        assert answer.content[0].type == "text"
        assert answer.content[0].text == TEXT
        assert answer.usage.cache_read_input_tokens == 4
        assert gateway.used("alice") == 19
        sent = provider.last()
        assert ALICE.encode() not in sent
        assert b"x-api-key: " + UPSTREAM_KEY.encode() in sent
        assert b"anthropic-version: " in sent.lower()
        assert b"authorization" not in sent.lower()
        entry = gateway.access_log()[-1]
        assert (entry["gen_ai.operation.name"], entry["cached_input_tokens"]) == ("chat", 4)
        assert entry["gen_ai.response.model"] == "claude"

    def test_stream(self, client: anthropic.Anthropic, gateway: Gateway) -> None:
        with client.messages.stream(model="claude", max_tokens=64, messages=MESSAGES) as stream:
            assert "".join(stream.text_stream) == TEXT
            assert stream.get_final_message().usage.output_tokens == 9
        assert gateway.used("alice") == 19

    def test_tools(self, client: anthropic.Anthropic, gateway: Gateway) -> None:
        tools: Any = [{"name": "get_weather", "input_schema": {"type": "object"}}]
        with client.messages.stream(
            model="claude", max_tokens=64, messages=MESSAGES, tools=tools,
            extra_headers={"x-stub": "tools=1"},
        ) as stream:  # fmt: skip
            block = stream.get_final_message().content[0]
        assert block.type == "tool_use"
        assert block.input == {"city": "Paris"}
        assert gateway.used("alice") == 19

    def test_counting_tokens_is_free_and_batches_are_refused(
        self, client: anthropic.Anthropic, gateway: Gateway
    ) -> None:
        assert client.messages.count_tokens(model="claude", messages=MESSAGES).input_tokens == 10
        assert gateway.used("alice") == 0
        with pytest.raises(anthropic.BadRequestError, match="batches"):
            client.messages.batches.create(requests=[])

    def test_errors_are_typed(self, start: StartGateway) -> None:
        gateway = start(**dialect("anthropic", limit=15))
        url = f"{gateway.url}/openai"
        with anthropic.Anthropic(api_key="sk-wrong", base_url=url) as stranger:
            with pytest.raises(anthropic.AuthenticationError) as unknown:
                stranger.messages.create(model="claude", max_tokens=1, messages=MESSAGES)
        body: Any = unknown.value.body
        assert body["type"] == "error"
        assert body["error"]["type"] == "authentication_error"
        assert body["request_id"] == unknown.value.request_id
        with anthropic.Anthropic(api_key=BOB, base_url=url) as client:
            client.messages.create(model="claude", max_tokens=1, messages=MESSAGES)
            with pytest.raises(anthropic.RateLimitError) as refused:
                client.messages.create(model="claude", max_tokens=1, messages=MESSAGES)
            assert "per-user-daily" in str(refused.value)

    def test_a_stream_that_breaks_ends_in_an_error_of_the_sdk(
        self, client: anthropic.Anthropic, gateway: Gateway
    ) -> None:
        with (
            pytest.raises(anthropic.APIError, match="ended the stream early"),
            client.messages.stream(
                model="claude", max_tokens=64, messages=MESSAGES,
                extra_headers={"x-stub": "fault=cut:6"},
            ) as stream,
        ):  # fmt: skip
            stream.get_final_message()
        assert gateway.used("alice") > 10
        assert gateway.access_log()[-1]["usage_source"] == "counted"

    def test_the_list_of_models_is_filtered(self, start: StartGateway) -> None:
        gateway = start(
            **dialect("anthropic"),
            more='[[keys]]\nname = "c"\nkey = "sk-carol-12345"\nallowed_models = ["gpt-4o*"]\n',
        )
        with anthropic.Anthropic(
            api_key="sk-carol-12345", base_url=f"{gateway.url}/openai"
        ) as client:
            page = client.models.list()
            assert [each.id for each in page.data] == ["gpt-4o", "gpt-4o-mini"]
            assert (page.first_id, page.last_id) == ("gpt-4o", "gpt-4o-mini")
            with pytest.raises(anthropic.PermissionDeniedError):
                client.messages.create(model="claude", max_tokens=1, messages=MESSAGES)


def test_what_a_path_of_openai_says_in_an_anthropic_route(start: StartGateway) -> None:
    gateway = start(**dialect("anthropic"))
    body = orjson.dumps({"model": "m", "messages": MESSAGES})
    headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"}
    status, _, answer = request(gateway.port, "POST", "/openai/chat/completions", body, headers)
    assert status == 200
    assert orjson.loads(answer)["object"] == "chat.completion"
    assert gateway.used("alice") == 19
