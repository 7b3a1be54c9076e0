"""What most messages are asked for, read without the rest of them.

A request is asked for its model, an answer for its usage. The readers here go over the whole
message, and refuse what is no sound JSON, but make objects of the named members only: a third of
the time of reading all of it. Whatever they do not take, and whatever is not as usual, is read in
full by who asked. Of a repeated member the last one counts, as in all readers here.

Beyond what orjson takes they pass invalid UTF-8 and numbers past the range of a float where these
are not asked for; `payload.read_object` passes both, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

UNREADABLE: Final = (msgspec.DecodeError, ValueError, RecursionError)
"""What a reader raises where it does not take the bytes; UnicodeDecodeError is a ValueError."""

MISSING: Final = msgspec.UNSET


class Asked(msgspec.Struct, gc=False):
    """A request body: any value; None where a member is missing, MISSING for `stream_options`."""

    model: Any = None
    stream: Any = None
    stream_options: Any = MISSING


class Answered(msgspec.Struct, gc=False):
    """A buffered answer in OpenAI's form: any value, None where a member is missing. `usage` and
    `choices` are left as bytes: MISSING, or something."""

    usage: msgspec.Raw | msgspec.UnsetType = MISSING
    model: Any = None
    error: Any = None
    type: Any = None
    choices: msgspec.Raw | msgspec.UnsetType = MISSING


class Inputs(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """All that is usual in `prompt_tokens_details`, tokens."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None
    text_tokens: int | None = None
    image_tokens: int | None = None


class Outputs(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """All that is usual in `completion_tokens_details`, tokens."""

    reasoning_tokens: int | None = None
    audio_tokens: int | None = None
    accepted_prediction_tokens: int | None = None
    rejected_prediction_tokens: int | None = None
    text_tokens: int | None = None
    image_tokens: int | None = None


class UsualUsage(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A usage object as OpenAI and most who follow it write it, tokens: whole numbers under
    known names and nothing else, so that the access log can take its bytes as they came."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Inputs | None = None
    completion_tokens_details: Outputs | None = None


read_asked: Callable[[bytes], Asked] = msgspec.json.Decoder(Asked).decode
"""Read a request body. Raises one of UNREADABLE."""

read_answered: Callable[[bytes], Answered] = msgspec.json.Decoder(Answered).decode
"""Read a buffered answer. Raises one of UNREADABLE."""

read_usual: Callable[[bytes | msgspec.Raw], UsualUsage] = msgspec.json.Decoder(UsualUsage).decode
"""Read a usage object. Raises one of UNREADABLE, for a member of another name as well."""

_READ: Final = (
    "usage", "usageMetadata", "usage_metadata", "meta", "details", "x_groq",
    "amazon-bedrock-invocationMetrics",
    "inputTokens", "outputTokens", "cacheReadInputTokens", "cacheWriteInputTokens",
    "inputTokenCount", "outputTokenCount", "cacheReadInputTokenCount", "cacheWriteInputTokenCount",
    "prompt_token_count", "generation_token_count",
    "inputTextTokenCount", "outputTextTokenCount", "totalOutputTextTokenCount",
    "prompt_eval_count", "eval_count",
    "model", "modelVersion", "model_id",
    "error", "type", "object", "event_type", "stopReason", "done",
)  # fmt: skip
"""Members of an answer, at its top, that tell what it cost, which model it is of, and of which
format, in any of them."""

_SEEN: Final = (
    "choices", "candidates", "promptFeedback", "message", "generated_text", "token",
    "response", "interaction", "delta", "results",
)  # fmt: skip
"""Members that tell the format by being there: large ones, of which nothing else is read."""

_DEEP: Final = ("response", "interaction", "delta", "results")
"""Of those the ones that may hold a usage, if they are no text."""

_EMPTY: Final[dict[int, Any]] = {ord("{"): {}, ord("["): [], ord('"'): ""}

_Members: Any = msgspec.defstruct(
    "_Members",
    [(f"m{at}", msgspec.Raw | msgspec.UnsetType, MISSING) for at in range(len(_READ) + len(_SEEN))],
    rename={f"m{at}": name for at, name in enumerate(_READ + _SEEN)},
    gc=False,
)
_read_members: Callable[[bytes], Any] = msgspec.json.Decoder(_Members).decode


def read_members(data: bytes) -> dict[str, Any] | None:
    """A large answer without what it holds besides its report: of a member that is not read only
    its kind is there, of most not even that. None for one that has to be read in full."""
    try:
        said = _read_members(data)
        found: dict[str, Any] = {}
        for at, name in enumerate(_READ + _SEEN):
            raw = getattr(said, f"m{at}")
            if raw is MISSING:
                continue
            value = bytes(raw) if at < len(_READ) else memoryview(raw)
            if at < len(_READ) or value[0] not in _EMPTY:
                found[name] = orjson.loads(value)
                continue
            found[name] = _EMPTY[value[0]]
            if name in _DEEP and found[name] != "":
                return None
    except UNREADABLE:
        return None
    return found
