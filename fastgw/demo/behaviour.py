"""How the stub provider is to answer: chosen for the server and for each request.

A request chooses by the header `x-stub: key=value;key=value`, or by a model named
`stub;key=value;…`. Unknown keys are refused, so that a test cannot pass by a typing error.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Numbers are tokens, seconds or bytes as named."""

    events: int = 9
    """Words of the answer; of a stream, its deltas."""
    pace: float = 0.0
    """Seconds between two events; 0 sends all at once."""
    first: float = 0.0
    """Seconds before the answer begins."""
    usage: str = "asked"
    """asked: as OpenAI does. always: also where it was not asked for. never. finish: in the event
    that ends the choice, beside it."""
    prompt: int = 10
    completion: int = -1
    """Reported output tokens; -1: as many as events."""
    cached: int = 0
    reasoning: int = 0
    pad: int = 0
    """Bytes of padding in each event, or in the answer."""
    done: int = 1
    """0: the stream ends without [DONE]."""
    crlf: int = 0
    """1: events end in CRLF."""
    gzip: int = 0
    tools: int = 0
    """1: the answer is a tool call."""
    framing: str = "auto"
    """length, chunked or close; auto: length for JSON, chunked for streams."""
    split: int = 0
    """Send the body in pieces of so many bytes, each in a turn of its own."""
    rejects: int = 0
    """1: 422 for a request with `stream_options`; 2: 400, its body chunked."""
    null_after: int = 0
    """1: an event with `usage: null` follows the usage."""
    fault: str = ""
    """status:N, cut:N, reset:N, stall:N, error_event:N (after N events of a stream, or N bytes of
    JSON), never, close, garbage."""

    @property
    def output(self) -> int:
        """Reported output tokens."""
        return self.events if self.completion < 0 else self.completion

    def changed(self, text: str) -> Behaviour:
        """With the settings of `key=value;key=value`. Raises ValueError for an unknown key."""
        changes: dict[str, str | int | float] = {}
        kinds = {field.name: getattr(self, field.name) for field in fields(self)}
        for part in text.split(";"):
            name, _, value = part.strip().partition("=")
            if name in ("", "stub"):
                continue
            if name not in kinds:
                raise ValueError(f"the stub has no setting {name!r}")
            changes[name] = type(kinds[name])(value)
        return replace(self, **changes)  # type: ignore[arg-type]
