"""OpenAI's formats and all that are modelled on them: chat, completions, embeddings, responses.

Usage stands in `usage` of a buffered answer; in a stream of chat or completions in the event with
`choices: []` (OpenAI), in the finish event with choices (Mistral, DeepSeek), in `x_groq.usage`
(Groq) or in every event (Gemini, vLLM); in a stream of responses in `response.usage` of the last
event. The last value wins, per field; a null or a missing field erases nothing; an explicit 0 is a
value. Cached tokens are part of the input, reasoning is part of the output; where a provider leaves
reasoning out of completion_tokens (xAI, Gemini) the total tells.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Final

from fastgw.compiled import interpreted
from fastgw.model import Usage
from fastgw.usage.api import MAX_COUNT, Api, number, strings, text
from fastgw.usage.brief import UNREADABLE, read_usual

if TYPE_CHECKING:
    from msgspec import Raw

_PARTS = frozenset({"text", "thinking"})
"""Text in a content that is a list; Mistral's reasoning is one more list in it."""
_TEXT_MEMBERS = frozenset({"content", "reasoning_content", "reasoning", "refusal"})

_REPORTING_TYPES: Final = frozenset(
    {
        "transcript.text.done",
        "image_generation.completed",
        "image_edit.completed",
        "speech.audio.done",
    }
)
"""Types whose `usage` at the top counts: audio and images."""

_tuple = tuple.__new__
"""Makes a named tuple in half the time of its class, which names every field again."""

_DEPLOYMENT = re.compile(r"/deployments/([^/]+)/", re.IGNORECASE)

_FINAL_RESPONSE_EVENTS: Final = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}
)


def usage_object(message: dict[str, Any]) -> dict[str, Any] | None:
    """The usage object of a buffered answer or of one stream event; None where there is none.

    Events of a type unknown to us are not believed, whatever they carry.
    """
    usage = message.get("usage")
    if type(usage) is dict and "choices" in message:
        return usage  # as mostly
    kind = message.get("type")
    if isinstance(kind, str) and "choices" not in message:
        if kind in _FINAL_RESPONSE_EVENTS:
            response = message.get("response")
            usage = response.get("usage") if isinstance(response, dict) else None
            return usage if isinstance(usage, dict) else None
        if kind not in _REPORTING_TYPES and ("." in kind or message.get("object") is None):
            return None
    if not isinstance(usage, dict):
        groq = message.get("x_groq")
        usage = groq.get("usage") if isinstance(groq, dict) else None
    return usage if isinstance(usage, dict) else None


def normal_form(usage: dict[str, Any]) -> Usage | None:
    """Usage in the normal form, source `reported`; None if it holds no count at all."""
    given = usage.get("prompt_tokens")
    made = usage.get("completion_tokens")
    total = usage.get("total_tokens")
    inputs = usage.get("prompt_tokens_details")
    outputs = usage.get("completion_tokens_details")
    if (
        type(given) is type(made) is type(total) is int
        and len(usage) == 5
        and total == given + made <= MAX_COUNT
        and type(inputs) is type(outputs) is dict
        and given >= 0 <= made
    ):
        # OpenAI's own, and nothing else can be in it: 0.7 us instead of 1.1.
        cached, written = inputs.get("cached_tokens"), inputs.get("cache_write_tokens")
        reasoning = outputs.get("reasoning_tokens")
        if not (cached or written or reasoning):
            return _tuple(Usage, (given, made, 0, 0, 0, "reported", 0))
        return _tuple(
            Usage,
            (
                given,
                made,
                number(cached) or 0 if cached else 0,
                number(written) or 0 if written else 0,
                number(reasoning) or 0 if reasoning else 0,
                "reported",
                0,
            ),
        )
    get = usage.get
    if given is None and made is None:
        given = get("input_tokens")
        made = get("output_tokens")
    if (
        type(given) is not int
        or type(made) is not int
        or type(total) is not int
        or not 0 <= given <= MAX_COUNT
        or not 0 <= made <= MAX_COUNT
        or not 0 <= total <= MAX_COUNT
    ):
        # Something is missing, null or no integer: rare, so looked at apart.
        said = [value for value in (given, made, total) if value is not None]
        given, made, total = number(given), number(made), number(total)
        if len(said) != sum(value is not None for value in (given, made, total)):
            return None  # a count that is none: nothing beside it is believed either
        if given is None and made is None and total is None:
            return None
        if given is None:
            given = max(0, (total or 0) - (made or 0))
            total = None
        made = made or 0
    read, created = get("cache_read_input_tokens"), get("cache_creation_input_tokens")
    if read or created:  # Anthropic's names, kept by those that pass its numbers on
        read, created = number(read) or 0, number(created) or 0
        beside = get("prompt_tokens") is None and not (total is not None and total == given + made)
        given += read + created if beside else 0
    if total is not None and total > given + made:
        made = total - given  # reasoning that completion_tokens leaves out
    inputs = inputs or get("input_tokens_details")
    outputs = outputs or get("output_tokens_details")
    cached = written = None
    if isinstance(inputs, dict):
        cached = inputs.get("cached_tokens")
        written = inputs.get("cache_write_tokens")
    if cached is None:
        cached = get("prompt_cache_hit_tokens") or get("cached_tokens")
    reasoning = outputs.get("reasoning_tokens") if isinstance(outputs, dict) else None
    if reasoning is None:
        reasoning = get("reasoning_tokens")
    return Usage(
        max(0, given),
        max(0, made),
        number(cached) or 0 if cached else read or 0,
        number(written) or 0 if written else created or 0,
        number(reasoning) or 0 if reasoning else 0,
        "reported",
    )


def usual(raw: bytes | Raw) -> Usage | None:
    """The usage object `raw` in the normal form, as `normal_form` has it, where it is what OpenAI
    and most who follow it write; None for any other."""
    try:
        said = read_usual(raw)
    except UNREADABLE:
        return None
    given, made, total = said.prompt_tokens, said.completion_tokens, said.total_tokens
    if not (given >= 0 <= made and total == given + made <= MAX_COUNT):
        return None
    cached = written = reasoning = None
    if (inputs := said.prompt_tokens_details) is not None:
        cached, written = inputs.cached_tokens, inputs.cache_write_tokens
    if (outputs := said.completion_tokens_details) is not None:
        reasoning = outputs.reasoning_tokens
    if not (cached or written or reasoning):
        return _tuple(Usage, (given, made, 0, 0, 0, "reported", 0))
    cached, written, reasoning = cached or 0, written or 0, reasoning or 0
    if not (0 <= cached <= MAX_COUNT and 0 <= written <= MAX_COUNT and 0 <= reasoning <= MAX_COUNT):
        return None
    return _tuple(Usage, (given, made, cached, written, reasoning, "reported", 0))


def is_usage_only(event: dict[str, Any]) -> bool:
    """Whether this is the extra event of include_usage: no choices, and a usage that is not null.

    A usage beside choices is part of the answer and stays.
    """
    return event.get("choices") == [] and isinstance(event.get("usage"), dict)


def texts(message: dict[str, Any]) -> list[str]:
    """All visible text that the model wrote in a stream event or a buffered answer.

    Answers, reasoning and tool arguments; not the padding that OpenAI sends as `obfuscation`.
    """
    found: list[str] = []
    choices = message.get("choices")
    if isinstance(choices, list):
        for choice in choices:
            if isinstance(choice, dict):
                _choice_texts(choice, found)
        return found
    kind = message.get("type")
    if isinstance(kind, str) and kind.endswith(".delta"):
        delta = message.get("delta")
        if isinstance(delta, str) and kind.startswith("response."):
            found.append(delta)
        return found
    output = message.get("output")
    if isinstance(output, list) and message.get("object") == "response":
        for item in output:
            if isinstance(item, dict):
                _item_texts(item, found)
    return found


def calls(message: dict[str, Any]) -> int:
    """Tool calls that begin in a stream event, or stand in a buffered answer."""
    found = 0
    choices = message.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        part = (choice.get("delta") or choice.get("message")) if isinstance(choice, dict) else None
        several = part.get("tool_calls") if isinstance(part, dict) else None
        for call in several if isinstance(several, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            found += isinstance(function, dict) and bool(function.get("name"))
    items = message.get("output") if message.get("object") == "response" else None
    if message.get("type") == "response.output_item.added":
        items = [message.get("item")]
    for item in items if isinstance(items, list) else ():
        kind = item.get("type") if isinstance(item, dict) else None
        found += isinstance(kind, str) and kind.endswith("_call")
    return found


def model(message: dict[str, Any]) -> str:
    """The model that answered, "" where the message does not say."""
    name = message.get("model")
    if type(name) is str and name.isascii():
        return name
    if name is None:
        response = message.get("response")
        name = response.get("model") if isinstance(response, dict) else None
    return text(name)


def _choice_texts(choice: dict[str, Any], found: list[str]) -> None:
    text = choice.get("text")
    if isinstance(text, str):
        found.append(text)
    part = choice.get("delta")
    if not isinstance(part, dict):
        part = choice.get("message")
    if not isinstance(part, dict):
        return
    for name, value in part.items():
        if not value:
            continue
        if name in _TEXT_MEMBERS:
            if isinstance(value, str):
                found.append(value)
            elif isinstance(value, list):
                found.extend(strings(value, _PARTS))
        elif name == "tool_calls" and isinstance(value, list):
            for call in value:
                if isinstance(call, dict):
                    _call_texts(call.get("function"), found)
        elif name == "function_call":
            _call_texts(value, found)


def _call_texts(function: Any, found: list[str]) -> None:
    if isinstance(function, dict):
        found.extend(
            value
            for value in (function.get("name"), function.get("arguments"))
            if isinstance(value, str)
        )


def _item_texts(item: dict[str, Any], found: list[str]) -> None:
    arguments = item.get("arguments")
    if isinstance(arguments, str):
        found.append(arguments)
    for name in ("content", "summary"):
        parts = item.get(name)
        if isinstance(parts, list):
            found.extend(
                part["text"]
                for part in parts
                if isinstance(part, dict) and isinstance(part.get("text"), str)
            )


@interpreted
class OpenAI(Api):
    """See the module."""

    OPERATIONS: ClassVar = {
        "/chat/completions": "chat",
        "/completions": "text_completion",
        "/embeddings": "embeddings",
        "/responses": "responses",
        "/batches": "batch",
    }
    LIMITS: ClassVar = {
        "chat": ("max_completion_tokens", "max_tokens"),
        "text_completion": ("max_tokens",),
        "responses": ("max_output_tokens",),
    }
    TAKES_STREAM_OPTIONS = frozenset({"chat", "text_completion"})  # responses rejects them
    ECHOES = frozenset({"responses"})
    BRIEF = True
    MARK = b'_tokens"'
    SHOWS_OLD_USAGE = ("/responses/", "/chat/completions/", "/conversations/", "/batches/")

    PATH_MODEL = _DEPLOYMENT  # of Azure, whatever the body says

    usage_object = staticmethod(usage_object)
    normal_form = staticmethod(normal_form)
    is_usage_only = staticmethod(is_usage_only)
    texts = staticmethod(texts)
    calls = staticmethod(calls)
    model = staticmethod(model)

    def operation(self, below: str) -> str:
        """See Api. A batch has the exact path alone: others have lists of that name."""
        found = super().operation(below)
        return "" if found == "batch" and below.lower() != "/batches" else found

    def owns(self, message: dict[str, Any]) -> bool:
        """See Api."""
        return True  # asked last

    def reads(self, usage: dict[str, Any]) -> bool:
        """See Api."""
        return True


OPENAI = OpenAI()
