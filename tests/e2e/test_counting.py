"""What a gateway counts where its provider reports nothing: by the model's vocabulary where the
extra `tokenizers` is installed, else by bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastgw.demo.answers import words
from fastgw.usage.estimate import ByteCounter
from fastgw.usage.tokens import TokenCounter
from fastgw.usage.vocabulary import family_of, load
from tests.processes import ALICE, BOB, PER_USER, chat, used_while
from tests.redis_server import until

if TYPE_CHECKING:
    from fastgw.usage.estimate import Counter
    from tests.e2e.conftest import StartGateway

NUMBER = 120
UNREPORTED = f"usage=never;events={NUMBER}"


def counter(model: str) -> Counter:
    """As a gateway counts that has this model's vocabulary; nothing is loaded for other tests."""
    family = family_of(model)
    vocabulary = load(family.vocabulary)
    return ByteCounter() if vocabulary is None else TokenCounter(vocabulary, family)


def expected(model: str, text: str) -> int:
    counting = counter(model)
    counting.add(text)
    return counting.total()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["gpt-4o-mini", "us.anthropic.claude-sonnet-4", "llama-3.1-8b"])
def test_an_answer_is_counted_by_the_vocabulary_of_its_model(
    start: StartGateway, model: str, stream: bool
) -> None:
    gateway = start(
        budgets=PER_USER.format(limit=100_000), upstream=f'model_aliases = {{ ours = "{model}" }}'
    )
    assert chat(gateway, ALICE, stub=UNREPORTED, model="ours", stream=stream)[0] == 200
    line = gateway.access_log()[-1]
    assert line["usage_source"] == "counted"
    assert line["output_tokens"] == expected(model, "".join(words(NUMBER)))
    counting = counter(model)
    for text in ("user", "Hello!"):
        counting.add(text)
        if isinstance(counting, TokenCounter):
            counting.close()
    assert line["input_tokens"] == 3 + 3 + counting.total()


@pytest.mark.parametrize("stream", [False, True])
def test_a_large_prompt_costs_the_same_whether_it_is_kept_or_counted_at_once(
    start: StartGateway, stream: bool
) -> None:
    message = {"role": "user", "content": "A prompt that is kept while there is room. " * 1500}
    found = []
    for memory in ("512MiB", "256KiB"):  # an eighth of it is for prompts that are kept
        gateway = start(
            server=f'max_body_memory = "{memory}"', budgets=PER_USER.format(limit=1_000_000)
        )
        assert chat(gateway, ALICE, stub=UNREPORTED, messages=[message], stream=stream)[0] == 200
        line = gateway.access_log()[-1]
        assert line["usage_source"] == "counted"
        found.append(line["input_tokens"])
        assert gateway.api("/api/status")["body_memory"] == 0
    assert found[0] == found[1] > len(message["content"]) // 8


def test_a_model_that_the_configuration_does_not_name_is_counted_by_o200k(
    start: StartGateway,
) -> None:
    gateway = start(budgets=PER_USER.format(limit=100_000))
    text = "".join(words(NUMBER))
    for model in ("qwen3-8b", "gpt-4o"):
        assert chat(gateway, BOB, stub=UNREPORTED, model=model)[0] == 200
        assert gateway.access_log()[-1]["output_tokens"] == expected("gpt-4o", text)


def test_a_prompt_is_reserved_by_its_count(start: StartGateway) -> None:
    message: dict[str, Any] = {"role": "user", "content": "漢字仮名交じりの文章、" * 40}
    need = 3 + 3 + expected("gpt-4o", "user") + expected("gpt-4o", message["content"]) + 5
    for spare, status in ((0, 200), (-1, 429)):
        budgets = PER_USER.format(limit=19 + need + spare) + 'admission = "reserve"\nwait = 0\n'
        gateway = start(budgets=budgets)
        assert chat(gateway, ALICE, max_tokens=9)[0] == 200  # 19 tokens
        got, _, body = chat(gateway, ALICE, model="gpt-4o", messages=[message], max_tokens=5)
        assert got == status, orjson.loads(body)


@pytest.mark.parametrize("more", ["", 'admission = "reserve"\n', 'cutoff = "mid_stream"\n'])
def test_a_vocabulary_is_in_memory_once_something_is_counted(
    start: StartGateway, more: str
) -> None:
    """Most workers count nothing, and are half as large; hard caps and cut-offs always count."""
    pytest.importorskip("splintr", reason="the extra `tokenizers` is not installed")
    gateway = start(budgets=PER_USER.format(limit=100_000) + more)

    def has_vocabulary() -> bool:
        return "splintr" in Path(f"/proc/{gateway.child.pid}/maps").read_text()

    assert has_vocabulary() is bool(more)
    assert chat(gateway, ALICE)[0] == 200
    assert has_vocabulary() is bool(more)
    assert chat(gateway, ALICE, stub=UNREPORTED)[0] == 200
    assert has_vocabulary()
    if not more:
        until(lambda: "vocabulary o200k_base loaded" in gateway.log.read_text(), "a word of it")


def test_a_stream_as_it_runs_is_charged_without_a_vocabulary(start: StartGateway) -> None:
    """Loading one holds a worker, and the report at the end makes the count worthless."""
    gateway = start(budgets=PER_USER.format(limit=100_000))
    picture = {"url": "data:image/png;base64," + "A" * 400_000}
    prompt = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": picture}]
    message = {"role": "user", "content": prompt}
    done: list[int] = []

    def ask() -> None:
        stub = "events=40;pace=0.05"
        done.append(chat(gateway, ALICE, stub=stub, stream=True, messages=[message])[0])

    seen = used_while(gateway, ask)
    assert done == [200]
    assert any(520 < used < 600 for used in seen), seen  # an image counts for 520
    assert max(seen) < 600
    assert gateway.access_log()[-1]["usage_source"] == "reported"
    assert gateway.used("alice") == 50
    assert "splintr" not in Path(f"/proc/{gateway.child.pid}/maps").read_text()
