"""Names of models, and what is loaded for them."""

from __future__ import annotations

import pytest

from fastgw.usage import vocabulary
from fastgw.usage.vocabulary import DEFAULT, MOST_LOADED, Family, family_of, loaded, want, warm

VOCABULARIES = {
    "o200k_base": [
        "gpt-4o", "openai/gpt-4o-2024-08-06", "GPT-4o-mini", "ft:gpt-4o-mini-2024-07-18:org::id",
        "gpt-4.1-nano", "gpt-4.5-preview", "gpt-5", "gpt-5-mini-2025-08-07", "gpt-5.2", "o1",
        "o1-preview", "o3-mini", "openai/o4-mini", "chatgpt-4o-latest", "gpt-oss-120b",
        "us.anthropic.claude-3-5-sonnet-20241022-v2:0", "claude-opus-4-1", "gemini-2.5-pro",
        "grok-4", "command-r", "m", "",
    ],
    "cl100k_base": [
        "gpt-4", "gpt-4-0613", "gpt-4-32k", "gpt-4-turbo-2024-04-09", "gpt-3.5-turbo",
        "azure/gpt-35-turbo", "text-embedding-3-large", "text-embedding-ada-002", "davinci-002",
    ],
    "llama3": [
        "llama-3.3-70b-versatile", "meta-llama/Llama-3.1-8B-Instruct",
        "accounts/fireworks/models/llama-v3p1-405b-instruct", "us.meta.llama4-scout-17b",
        "deepseek-r1-distill-llama-70b",
    ],
    "qwen3": ["qwen3-32b", "Qwen/QwQ-32B", "deepseek-r1-distill-qwen-32b"],
    "deepseek_v3": ["deepseek-chat", "deepseek-reasoner", "deepseek-ai/DeepSeek-V3.1"],
    "mistral_v3": ["mistral-small-latest", "open-mixtral-8x22b", "codestral-2501", "pixtral-12b"],
    "glm4": ["glm-4.6", "zai-org/GLM-4.5-Air"],
    "kimi_k2": ["kimi-k2-0905-preview", "moonshot-v1-8k"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "name"), [(model, name) for name, models in VOCABULARIES.items() for model in models]
)
def test_models(model: str, name: str) -> None:
    assert family_of(model).vocabulary == name


def test_claude_writes_more_tokens_than_its_text_has_in_o200k() -> None:
    assert 1150 <= family_of("eu.anthropic.claude-sonnet-4-20250514-v1:0").factor <= 1200
    assert family_of("gpt-4o").factor == 1000


def test_the_first_named_are_loaded_once_and_no_more_than_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("splintr", reason="the extra `tokenizers` is not installed")
    monkeypatch.setattr(vocabulary, "_loaded", {})
    names = warm(["llama-3", "gpt-4o", "llama-3.1", "mistral-small", "qwen3", "glm-4"])
    assert names == (DEFAULT, "llama3", "mistral_v3")
    assert len(names) == MOST_LOADED
    have = loaded(family_of("llama-3"))
    assert have is not None
    assert warm(["llama-3"]) == names
    assert loaded(family_of("llama-3")) is have
    assert loaded(family_of("qwen3")) is loaded(Family(DEFAULT))
    assert have.count("Hello there") == 2


def test_what_is_wanted_is_loaded_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("splintr", reason="the extra `tokenizers` is not installed")
    monkeypatch.setattr(vocabulary, "_loaded", {})
    monkeypatch.setattr(vocabulary, "_wanted", set())
    assert loaded(family_of("llama-3")) is None
    want(["llama-3", "mistral-small", "qwen3"])  # and o200k: one too many
    assert not vocabulary._loaded
    own = loaded(family_of("llama-3.1"))
    assert own is not None
    assert list(vocabulary._loaded) == [own.name] == ["llama3"]
    unnamed = loaded(family_of("qwen3"))
    assert unnamed is not None
    assert unnamed.name == DEFAULT
    assert loaded(family_of("claude-3")) is unnamed
    assert list(vocabulary._loaded) == ["llama3", DEFAULT]
    assert vocabulary._wanted == {"mistral_v3"}
    assert loaded(family_of("llama-3.1")) is own


def test_without_the_package_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_loaded", {})
    monkeypatch.setattr(vocabulary, "_wanted", set())
    monkeypatch.setitem(__import__("sys").modules, "splintr", None)
    assert warm(["gpt-4o"]) == ()
    assert loaded(family_of("gpt-4o")) is None
    want(["gpt-4o"])
    assert loaded(family_of("gpt-4o")) is None
    assert not vocabulary._wanted
