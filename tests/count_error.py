"""How far our own count is from what providers report, over recorded answers.

python -m tests.count_error

Prints a table: answers by the maker of the model and by what is in them; the tokens that were
reported; and the error of three counts of the text that can be seen, summed and (least … most):
by the model's own vocabulary, by o200k, by bytes. docs/counting.md has the table.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from fastgw.relay import STREAMS
from fastgw.usage import vocabulary
from fastgw.usage.estimate import ByteCounter
from fastgw.usage.payload import read_objects
from fastgw.usage.tokens import TokenCounter
from fastgw.usage.vocabulary import DEFAULT, Family, family_of, loaded, warm
from tests.test_recorded import MEDIA, expected_usage, formats, recordings

if TYPE_CHECKING:
    from collections.abc import Iterable

EVERY = ["gpt-4o", "gpt-4", "llama", "mistral", "deepseek", "qwen", "glm", "kimi"]
MAKERS = {family_of(name): name.title() for name in ("llama", "mistral", "qwen")} | {
    family_of("gpt-4o"): "OpenAI",
    family_of("gpt-4"): "OpenAI",
    family_of("claude"): "Claude",
    family_of("deepseek"): "DeepSeek",
    family_of("glm"): "GLM",
    family_of("kimi"): "Kimi",
    family_of(""): "others",
}

NOT_OF_A_KIND = {
    "anthropic-compaction-cache": "bills rounds that the answer does not show",
    "groq-websearch": "shows what its tools found as reasoning, and bills the answer",
    "j-ollama-compat": "reports 15 tokens for 548 characters",
    "perplexity-text": "reports tokens of its search",
    "moonshot": "made up",
}
"""Recordings that are left out of the table."""
_THINKS = re.compile(r"gpt-5|(?:^|/)o[1-9]|grok|gemini-[3-9]")
"""Models that think unseen, even where they report no reasoning."""


class Found(NamedTuple):
    """One answer: tokens as reported, by its own vocabulary, by o200k, by bytes."""

    maker: str
    holds: str
    reported: int
    own: int
    o200k: int
    by_bytes: int


def read(entry: dict[str, Any]) -> Found | None:
    """Count one recorded answer; None where nothing was reported or nothing can be seen."""
    usage = expected_usage(entry)
    reported = (usage or {}).get("output_tokens")
    if not usage or not reported or entry["id"] in NOT_OF_A_KIND:
        return None
    api = next(formats(entry))
    if entry["framing"] == "json":
        messages = list(read_objects([entry["bytes"]]))
    else:
        framer = STREAMS[MEDIA[entry["framing"]]]()
        block = framer.feed(entry["bytes"]) + framer.rest()
        messages = list(read_objects(framer.payloads(block)))
    text = "".join(part for message in messages for part in api.texts(message))
    calls = sum(map(api.calls, messages))
    if not text:
        return None
    named = next(filter(None, map(api.model, messages)), "")
    named = named or (entry["request"] or {}).get("model") or ""
    family = family_of(named)
    by_bytes = ByteCounter()
    by_bytes.add(text)
    holds = "text"
    thinks = usage.get("reasoning_tokens") or _THINKS.search(named)
    shown = entry["expected"]["reasoning_chars"]
    if thinks and shown < max(1, usage.get("reasoning_tokens") or 0):
        holds = "hidden reasoning"
    elif calls:
        holds = "tool calls"
    counts = []
    for words in (loaded(family), loaded(Family(DEFAULT))):
        assert words is not None
        counter = TokenCounter(words, family)
        counter.add(text)
        counter.add_calls(calls)
        counts.append(counter.total())
    return Found(MAKERS[family], holds, reported, counts[0], counts[1], by_bytes.total())


def error(found: list[Found], counts: Iterable[int]) -> str:
    """The error of these counts in percent: of the sum, and of single answers."""
    counts = list(counts)
    whole = sum(each.reported for each in found)
    single = [
        100 * (count - each.reported) / each.reported
        for count, each in zip(counts, found, strict=True)
    ]
    spread = f" ({min(single):+.0f} … {max(single):+.0f})" if len(found) > 1 else ""
    return f"{100 * (sum(counts) - whole) / whole:+.0f}{spread}"


def table(entries: Iterable[dict[str, Any]]) -> list[str]:
    """The lines of the table."""
    rows: dict[tuple[str, str], list[Found]] = {}
    for entry in entries:
        found = read(entry)
        if found is not None:
            rows.setdefault((found.holds, found.maker), []).append(found)
    lines = [
        "| maker | in the answer | answers | reported | own vocabulary % | o200k % | bytes / 4 % |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (holds, maker), several in sorted(rows.items(), key=lambda row: (row[0][0] != "text", row)):
        own = error(several, [each.own for each in several])
        o200k = error(several, [each.o200k for each in several])
        by_bytes = error(several, [each.by_bytes for each in several])
        reported = sum(each.reported for each in several)
        lines.append(
            f"| {maker} | {holds} | {len(several)} | {reported:,} | {own} | {o200k} | {by_bytes} |"
        )
    return lines


if __name__ == "__main__":
    vocabulary.MOST_LOADED = len(EVERY)
    if not warm(EVERY):
        sys.exit("the extra `tokenizers` is not installed")
    sys.stdout.write("\n".join(table(recordings())) + "\n")
