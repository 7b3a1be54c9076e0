"""Providers of other dialects: real SDKs and plain requests against the real process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import openai
import orjson
import pytest
from google import genai
from google.genai import errors as genai_errors

from tests.processes import ALICE, BOB, PER_USER, UPSTREAM_KEY, Gateway, Provider, chat, request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.conftest import StartGateway

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
        assert entry["usage"]["cache_read_input_tokens"] == 4  # as it was reported

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


GEMINI_AUTH = """
locations = ["header:authorization:Bearer", "header:x-api-key", "header:x-goog-api-key",
             "query:key"]
"""


class TestGemini:
    @pytest.fixture(params=["gemini", "auto"])
    def gateway(
        self, start: StartGateway, provider: Provider, request: pytest.FixtureRequest
    ) -> Gateway:
        return start(
            **dialect(request.param),
            auth=GEMINI_AUTH,
            base_url=f"http://127.0.0.1:{provider.port}",
        )

    @pytest.fixture
    def client(self, gateway: Gateway) -> Iterator[genai.Client]:
        url = f"{gateway.url}/openai"
        with genai.Client(api_key=ALICE, http_options={"base_url": url}) as made:
            yield made

    def test_content(self, client: genai.Client, gateway: Gateway, provider: Provider) -> None:
        answer = client.models.generate_content(model="gemini-x", contents="Hello!")
        assert answer.text == TEXT
        assert gateway.used("alice") == 19
        sent = provider.last()
        assert ALICE.encode() not in sent
        assert b"x-goog-api-key: " + UPSTREAM_KEY.encode() in sent
        assert b"/models/gemini-x:generateContent HTTP/1.1\r\n" in sent
        entry = gateway.access_log()[-1]
        assert entry["gen_ai.operation.name"] == "generate_content"
        assert entry["gen_ai.request.model"] == entry["gen_ai.response.model"] == "gemini-x"
        assert entry["stream"] is False

    def test_stream(self, client: genai.Client, gateway: Gateway) -> None:
        stream = client.models.generate_content_stream(model="gemini-x", contents="Hello!")
        assert "".join(chunk.text or "" for chunk in stream) == TEXT
        assert gateway.used("alice") == 19
        assert gateway.access_log()[-1]["stream"] is True

    def test_tools_and_counting_tokens(self, client: genai.Client, gateway: Gateway) -> None:
        assert client.models.count_tokens(model="gemini-x", contents="Hi").total_tokens == 10
        assert gateway.used("alice") == 0
        answer = client.models.generate_content(
            model="gemini-x",
            contents="Hello!",
            config={"http_options": {"headers": {"x-stub": "tools=1;usage=never"}}},
        )
        assert answer.function_calls is not None
        assert answer.function_calls[0].args == {"city": "Paris"}
        assert gateway.used("alice") > 3
        assert gateway.access_log()[-1]["usage_source"] == "counted"

    def test_errors_are_typed(self, gateway: Gateway) -> None:
        url = f"{gateway.url}/openai"
        with (
            genai.Client(api_key="sk-wrong", http_options={"base_url": url}) as stranger,
            pytest.raises(genai_errors.ClientError, match="invalid credentials") as unknown,
        ):
            stranger.models.generate_content(model="gemini-x", contents="Hello!")
        assert (unknown.value.code, unknown.value.status) == (401, "UNAUTHENTICATED")

    @pytest.mark.parametrize("fault", ["cut:4", "reset:4"])
    def test_a_stream_that_breaks_is_charged(
        self, client: genai.Client, gateway: Gateway, fault: str
    ) -> None:
        with pytest.raises(Exception):  # noqa: B017 - of whatever class the SDK has for it
            list(
                client.models.generate_content_stream(
                    model="gemini-x",
                    contents="Hello!",
                    config={"http_options": {"headers": {"x-stub": f"fault={fault}"}}},
                )
            )
        assert gateway.used("alice") == 14

    def test_a_key_in_the_query_never_reaches_the_provider(
        self, gateway: Gateway, provider: Provider
    ) -> None:
        body = orjson.dumps({"contents": [{"parts": [{"text": "Hello!"}]}]})
        path = f"/openai/v1beta/models/gemini-x:streamGenerateContent?key={ALICE}&alt=sse"
        status, _, answer = request(gateway.port, "POST", path, body)
        assert status == 200
        assert answer.count(b"data: ") == 9
        assert provider.last().startswith(
            b"POST /v1beta/models/gemini-x:streamGenerateContent?alt=sse HTTP"
        )
        assert gateway.used("alice") == 19

    def test_a_stream_as_an_array(self, gateway: Gateway) -> None:
        body = orjson.dumps({"contents": [{"parts": [{"text": "Hello!"}]}]})
        path = "/openai/v1beta/models/gemini-x:streamGenerateContent"
        headers = {"x-goog-api-key": ALICE}
        for used, stub in enumerate(("", "split=7", "pace=0.001"), 1):
            status, _, answer = request(
                gateway.port, "POST", path, body, {**headers, "x-stub": stub}
            )
            assert status == 200
            assert len(orjson.loads(answer)) == 9
            assert gateway.used("alice") == 19 * used

    def test_models_of_the_path_are_judged_renamed_and_listed(
        self, start: StartGateway, provider: Provider
    ) -> None:
        gateway = start(
            budgets=PER_USER.format(limit=1_000_000),
            upstream='dialect = "gemini"\nmodel_aliases = { gpt-4o = "gemini-9" }\n',
            auth=GEMINI_AUTH,
            base_url=f"http://127.0.0.1:{provider.port}",
            more='[[keys]]\nname = "c"\nkey = "sk-carol-12345"\nallowed_models = ["gpt-4o*"]\n'
            'metadata = { user_id = "carol" }\n',
        )
        url = f"{gateway.url}/openai"
        with genai.Client(api_key="sk-carol-12345", http_options={"base_url": url}) as client:
            client.models.generate_content(model="gpt-4o", contents="Hello!")
            assert b"/models/gemini-9:generateContent " in provider.last()
            with pytest.raises(genai_errors.ClientError) as refused:
                client.models.generate_content(model="gemini-x", contents="Hello!")
            assert refused.value.status == "PERMISSION_DENIED"
            names = [model.name for model in client.models.list()]
            assert names == ["models/gpt-4o", "models/gpt-4o-mini"]


class TestAskingForUsage:
    """An upstream that rejects stream_options is asked once, and then never again."""

    @pytest.fixture(params=["rejects=1", "rejects=2"])
    def refusing(
        self, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
    ) -> Iterator[Provider]:
        provider = Provider(tmp_path_factory.mktemp("refusing"), request.param)
        yield provider
        provider.stop()

    @pytest.mark.parametrize("options", [None, {}, {"include_usage": False}])
    def test_once(self, start: StartGateway, refusing: Provider, options: Any) -> None:
        gateway = start(provider_port=refusing.port, budgets=PER_USER.format(limit=1_000_000))
        with openai.OpenAI(
            api_key=ALICE, base_url=f"{gateway.url}/openai", max_retries=0
        ) as client:
            for _ in range(3):
                more: Any = {} if options is None else {"stream_options": options}
                if options is not None and refusing.entries():
                    more = {}  # what the client asks for itself it must see rejected
                stream = client.chat.completions.create(
                    model="m", messages=MESSAGES, stream=True, **more
                )
                text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
                assert text == TEXT
            ends = [entry["end"] for entry in refusing.entries()]
            assert ends == ["rejected", "done", "done", "done"]
            assert b"stream_options" not in refusing.last()
            assert gateway.used("alice") > 0
            assert {entry["status"] for entry in gateway.access_log()} == {200}
            with pytest.raises(openai.APIStatusError, match=r"Error code: 4(?:22|00)"):
                client.chat.completions.create(
                    model="m", messages=MESSAGES, stream=True,
                    stream_options={"include_usage": True},
                )  # fmt: skip

    def test_a_model_that_rejects_it_decides_for_no_other(
        self, start: StartGateway, provider: Provider
    ) -> None:
        gateway = start(budgets=PER_USER.format(limit=1_000_000))
        provider.forget()
        for _ in range(2):
            assert chat(gateway, ALICE, model="old", stream=True, stub="rejects=1")[0] == 200
        assert chat(gateway, BOB, model="new", stream=True)[0] == 200
        assert [entry["end"] for entry in provider.entries()] == [
            "rejected",
            "done",
            "done",
            "done",
        ]
        entries = gateway.access_log()
        assert [entry["usage_source"] for entry in entries] == ["counted", "counted", "reported"]
        assert min(entry["first_byte_ms"] for entry in entries) >= 0

    def test_a_large_prompt_is_sent_again_whole(
        self, start: StartGateway, refusing: Provider
    ) -> None:
        gateway = start(provider_port=refusing.port, budgets=PER_USER.format(limit=10_000_000))
        body = orjson.dumps(
            {"model": "m", "stream": True, "messages": [{"role": "user", "content": "x" * 50_000}]}
        )
        headers = {"Authorization": f"Bearer {ALICE}", "Content-Type": "application/json"}
        status, _, answer = request(gateway.port, "POST", "/openai", body, headers)
        assert status == 200
        assert answer.endswith(b"data: [DONE]\n\n")
        assert refusing.last().endswith(body)
