"""What fastgw knows of a provider's wire format: one class a format, one instance a class.

An `Api` answers two sets of questions. Of a request: which operation a path is, where the model,
the stream flag and the limit of the output stand. Of an answer: where its usage stands, what that
means in the normal form, which text the model wrote. Here are the answers of a format that has
nothing of its own; `openai`, `anthropic`, `gemini`, `bedrock`, `cohere`, `ollama` and `tgi` say
where theirs differ, and `dialects` which of them a provider speaks.

The normal form: input includes cached and cache-write tokens, output includes reasoning. Where a
total says more than both together, the rest is output.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from fastgw.compiled import interpreted
from fastgw.usage.payload import printable, read_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastgw.model import Usage

MAX_COUNT = 10**12
"""Tokens of one answer that may be believed: a number that no store could add up is no count."""

UNKNOWN = -1
"""Input tokens of a usage that tells only of the output; the meter puts its own count there."""

_OBJECT = rb"\{[^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*\}"
_MODEL = re.compile(rb'"(?:model|modelVersion)"\s*:\s*"([^"\\]{1,200})"')


def member_pattern(names: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """Patterns for a member called one of `names` (`a|b`) that holds an object: one finds that it
    is there, one the object, three levels deep. No match within a JSON string, whose quotes would
    be escaped."""
    start = rb'"(?:%b)"\s*:\s*' % names.encode()
    return re.compile(start + rb"\{"), re.compile(start + b"(" + _OBJECT + b")")


_USAGE = member_pattern("usage")


@interpreted
class Api:
    """See the module. What is not said of a format is as in OpenAI's or does not exist."""

    name: str = "openai"
    shape: str = "openai"
    """How its SDKs read an error: see `errors.render`."""
    credential: str = "authorization: Bearer "
    """The header line, up to the secret, that shows who calls."""

    OPERATIONS: ClassVar[Mapping[str, str]] = {}
    """End of a path below the base URL -> operation: the values of gen_ai_operation_name."""
    LIMITS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Operation -> members that limit the output of one choice (dots lead inwards); the first that
    is there counts. An operation that is not here makes no text."""
    TAKES_STREAM_OPTIONS: ClassVar[frozenset[str]] = frozenset()
    """Operations whose streams are asked for usage by `stream_options.include_usage`."""
    STREAMS: ClassVar[frozenset[str]] = frozenset()
    """Operations that stream unless the body says `"stream": false`."""
    ECHOES: ClassVar[frozenset[str]] = frozenset()
    """Operations whose answer repeats JSON of the client's."""
    MODELS: frozenset[str] = frozenset({"/models"})
    """Paths below the base URL of lists of models."""
    SHOWS_OLD_USAGE: tuple[str, ...] = ()
    """Paths below which an answer may repeat the usage of a request that was charged already."""
    CHOICES: ClassVar[tuple[str, ...]] = ("n", "best_of")
    """Members that say how many answers are made, and paid for."""

    PATH_MODEL: re.Pattern[str] | None = None
    """Where a path names the model: group 1."""

    USAGE = _USAGE[0]
    USAGE_OBJECT = _USAGE[1]
    BRIEF: bool = False
    """Whether `usage` of a buffered answer is all that counts, where it stands beside `choices` or
    the answer has no `type`."""
    MARK: bytes = b""
    """Stands in every usage that holds a count: bytes without it are not searched any further."""

    # the request

    def operation(self, below: str) -> str:
        """The operation of a path below the base URL, "" for one that we do not know. Providers
        that put more before it (`/deployments/NAME/chat/completions`) are known by its end."""
        path = below.lower()
        found = self.OPERATIONS.get(path, "")
        if found:
            return found
        for end, name in self.OPERATIONS.items():
            if path.endswith(end):
                return name
        return ""

    def path_model(self, below: str) -> str:
        """The model that the path names, "" where the body does."""
        found = self.PATH_MODEL.search(below) if self.PATH_MODEL is not None else None
        return found[1] if found else ""

    def with_model(self, below: str, model: str) -> str:
        """The path with another model in its place; unchanged where it names none."""
        found = self.PATH_MODEL.search(below) if self.PATH_MODEL is not None else None
        return below[: found.start(1)] + model + below[found.end(1) :] if found else below

    def path_streams(self, below: str) -> bool | None:
        """Whether the path asks for a stream; None where the body says."""
        return None

    def prompt(self, message: dict[str, Any]) -> dict[str, Any]:
        """The request body as a count of its prompt reads it: `messages`, `system`, `tools` …"""
        return message

    # the answer

    def usage_object(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """The usage object of a buffered answer or of one event; None where there is none. Events
        of a type unknown to us are not believed, whatever they carry."""
        raise NotImplementedError

    def normal_form(self, usage: dict[str, Any]) -> Usage | None:
        """Usage in the normal form, source `reported`; None if it holds no count at all. Input is
        UNKNOWN where the provider tells only of the output."""
        raise NotImplementedError

    def owns(self, message: dict[str, Any]) -> bool:
        """Whether an answer or event has this format: for upstreams that speak several."""
        return False

    def reads(self, usage: dict[str, Any]) -> bool:
        """Whether a usage object has this format's names."""
        return False

    def is_usage_only(self, event: dict[str, Any]) -> bool:
        """Whether this is the extra event that we asked for and the client did not."""
        return False

    def texts(self, message: dict[str, Any]) -> list[str]:
        """All text that the model wrote in an event or a buffered answer: answers, reasoning and
        tool arguments."""
        return []

    def calls(self, message: dict[str, Any]) -> int:
        """Tool calls that begin in an event, or stand in a buffered answer."""
        return 0

    def model(self, message: dict[str, Any]) -> str:
        """The model that answered, "" where the message does not say."""
        return text(message.get("model"))

    def failed(self, message: dict[str, Any]) -> bool:
        """Whether an event or answer is an error."""
        return (
            isinstance(message.get("error"), dict | str)
            or message.get("type") in ("error", "response.failed")
            or message.get("object") == "error"
        )

    def usage_at_end(self, tail: bytes) -> dict[str, Any] | None:
        """The last usage object in the end of a large answer."""
        found = self.USAGE_OBJECT.findall(tail)
        return read_object(found[-1]) if found else None

    def model_at(self, part: bytes) -> str:
        """The model named in a part of a large answer, "" where it is not."""
        found = _MODEL.search(part)
        return found[1].decode("utf-8", "replace") if found else ""


def text(value: Any) -> str:
    """A text that a log or store can carry, "" for what is none."""
    return printable(value) if isinstance(value, str) else ""


def number(value: Any) -> int | None:
    """A count, or None for what is none: bool, text, a fraction, NaN, below 0, beyond reason."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not value.is_integer():
        return None
    return int(value) if 0 <= value <= MAX_COUNT else None


def numbers(usage: dict[str, Any], *names: str) -> list[int | None]:
    """The counts of these members. A member that is there, not null and no count spoils all: beside
    a number that is none nothing is believed."""
    found = []
    for name in names:
        value = usage.get(name)
        count = number(value)
        if count is None and value is not None:
            return [None] * len(names)
        found.append(count)
    return found


def strings(value: Any, names: frozenset[str]) -> list[str]:
    """Every text under `value` that is a member called one of `names`, in order. Not recursive:
    the depth of an answer is its provider's choice."""
    found: list[str] = []
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        name, item = waiting.pop()
        if isinstance(item, str):
            if name in names:
                found.append(item)
        elif isinstance(item, dict):
            waiting.extend(reversed(item.items()))
        elif isinstance(item, list):
            waiting.extend((name, each) for each in reversed(item))
    return found


_JSON = frozenset({"input", "json", "args", "response"})
"""Members of a prompt that hold what a tool was given or gave, whatever its names."""

_DEEP = 12
"""Levels of a prompt that are looked into: its depth is the client's choice."""


def without_data(value: Any, names: frozenset[str], depth: int = _DEEP) -> Any:
    """A copy of a prompt in which an object with one of the members `names` (base64 of an image, a
    document) is an image: its bytes are no text, unless it says that they are."""
    if depth and isinstance(value, list):
        return [without_data(each, names, depth - 1) for each in value]
    if not depth or not isinstance(value, dict):
        return value
    if not names.isdisjoint(value) and value.get("type") != "text":
        return {"type": "image"}
    return {
        name: each if name in _JSON else without_data(each, names, depth - 1)
        for name, each in value.items()
    }
