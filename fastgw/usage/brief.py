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

from fastgw.model import Usage
from fastgw.usage.api import MAX_COUNT

if TYPE_CHECKING:
    from collections.abc import Callable

_tuple = tuple.__new__
"""Makes a named tuple in half the time of its class."""

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


class _Inputs(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _Outputs(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usual(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _Inputs | None = None
    completion_tokens_details: _Outputs | None = None


_read_usual: Callable[[bytes | msgspec.Raw], _Usual] = msgspec.json.Decoder(_Usual).decode


def usual(raw: bytes | msgspec.Raw) -> Usage | None:
    """The usage object `raw` in the normal form, as `openai.normal_form` has it, where it is what
    OpenAI and most who follow it write; None for any other."""
    try:
        said = _read_usual(raw)
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


read_asked: Callable[[bytes], Asked] = msgspec.json.Decoder(Asked).decode
"""Read a request body. Raises one of UNREADABLE."""

read_answered: Callable[[bytes], Answered] = msgspec.json.Decoder(Answered).decode
"""Read a buffered answer. Raises one of UNREADABLE."""
