"""How a stream ends that is cut because a budget is used up: as the format's own streams do when
`max_tokens` is reached, so that its SDKs end cleanly.

An `Ending` is shown every event that the client has, and then makes the last ones. It knows when
the answer has ended by itself: then there is nothing to cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgw.usage.anthropic import ANTHROPIC
from fastgw.usage.cohere import COHERE
from fastgw.usage.gemini import GEMINI
from fastgw.usage.ollama import OLLAMA
from fastgw.usage.openai import OPENAI
from fastgw.usage.vertex import VERTEX

if TYPE_CHECKING:
    from fastgw.model import Usage
    from fastgw.usage.api import Api

Event = tuple[str, dict[str, Any] | None]
"""Type of a server-sent event ("" for none) and its data; None is `[DONE]`."""


class Ending:
    """Of a format whose streams cannot be ended by us: an error event has to do. `comments`:
    whether its readers pass over comments in server-sent events."""

    __slots__ = ("over",)

    comments = True

    def __init__(self) -> None:
        self.over = False

    def see(self, message: dict[str, Any]) -> None:
        """The client gets this event."""
        results = message.get("results")  # watsonx
        for each in results if isinstance(results, list) else ():
            reason = each.get("stop_reason") if isinstance(each, dict) else None
            self.over |= isinstance(reason, str) and reason.lower() != "not_finished"
        self.over |= isinstance(message.get("generated_text"), str)  # TGI

    def events(self, usage: Usage, asked: bool) -> list[Event]:
        """The last events, of an answer of this usage. `asked`: the client wants it told. None
        where the stream began in a way that we do not know."""
        return []


class ChoicesEnding(Ending):
    """OpenAI's chat and completions. Each choice ends by itself."""

    __slots__ = ("_base", "_chat", "_ended", "_open")

    def __init__(self, chat: bool) -> None:
        super().__init__()
        self._chat = chat
        self._base: dict[str, Any] = {}
        self._open: set[int] = set()
        self._ended: set[int] = set()

    def see(self, message: dict[str, Any]) -> None:
        """See Ending."""
        choices = message.get("choices")
        if not isinstance(choices, list):
            return
        names = ("id", "object", "created", "model", "service_tier", "system_fingerprint")
        self._base = {name: message[name] for name in names if name in message}
        for choice in choices:
            if isinstance(choice, dict):
                index = choice.get("index")
                index = index if isinstance(index, int) else 0
                (self._ended if choice.get("finish_reason") else self._open).add(index)
        self.over = bool(self._ended) and self._open <= self._ended

    def events(self, usage: Usage, asked: bool) -> list[Event]:
        """See Ending."""
        if not self._base:
            return []
        null: dict[str, Any] = {"usage": None} if asked else {}
        part: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        found: list[Event] = [
            (
                "",
                {
                    **self._base,
                    "choices": [
                        {"index": index, **part, "logprobs": None, "finish_reason": "length"}
                    ],
                    **null,
                },
            )
            for index in sorted(self._open - self._ended) or (0,)
        ]
        if asked:
            told = {
                "prompt_tokens": usage.input_tokens,
                "completion_tokens": usage.output_tokens,
                "total_tokens": usage.total_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
                "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            }
            found.append(("", {**self._base, "choices": [], "usage": told}))
        return [*found, ("", None)]


class ResponsesEnding(Ending):
    """OpenAI's responses. The last event repeats the answer as far as it came: items that ended,
    and the text of the one that did not."""

    __slots__ = ("_items", "_number", "_response", "_texts")

    def __init__(self) -> None:
        super().__init__()
        self._response: dict[str, Any] = {}
        self._number = -1
        self._items: dict[int, dict[str, Any]] = {}
        self._texts: dict[int, list[str]] = {}

    def see(self, message: dict[str, Any]) -> None:
        """See Ending."""
        kind = message.get("type")
        number, at = message.get("sequence_number"), message.get("output_index")
        response, item, delta = (message.get(name) for name in ("response", "item", "delta"))
        self._number = number if isinstance(number, int) else self._number + 1
        if isinstance(response, dict):
            self._response = response
            self.over = kind not in ("response.created", "response.in_progress", "response.queued")
        elif not isinstance(at, int):
            return
        elif isinstance(item, dict):
            self._items[at] = item
            if kind == "response.output_item.done":
                self._texts.pop(at, None)
        elif kind == "response.output_text.delta" and isinstance(delta, str):
            self._items.setdefault(
                at, {"id": message.get("item_id"), "type": "message", "role": "assistant"}
            )
            self._texts.setdefault(at, []).append(delta)

    def events(self, usage: Usage, asked: bool) -> list[Event]:
        """See Ending."""
        if not self._response:
            return []
        told = {
            "input_tokens": usage.input_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_input_tokens},
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
            "total_tokens": usage.total_tokens,
        }
        response = {
            **self._response,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [self._item(at) for at in sorted(self._items)],
            "usage": told,
        }
        kind = "response.incomplete"
        event = {"type": kind, "sequence_number": self._number + 1, "response": response}
        return [(kind, event)]

    def _item(self, at: int) -> dict[str, Any]:
        item = self._items[at]
        if at in self._texts:
            text = "".join(self._texts[at])
            part = {"type": "output_text", "text": text, "annotations": []}
            return {**item, "status": "incomplete", "content": [part]}
        if item.get("status") == "in_progress":
            return {**item, "status": "incomplete"}
        return item


class MessageEnding(Ending):
    """Anthropic's messages: the block that is open is closed."""

    __slots__ = ("_begun", "_open")

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._open: int | None = None

    def see(self, message: dict[str, Any]) -> None:
        """See Ending."""
        kind, index, delta = (message.get(name) for name in ("type", "index", "delta"))
        if kind in ("content_block_start", "content_block_delta"):
            self._open = index if isinstance(index, int) else 0
        elif kind == "content_block_stop":
            self._open = None
        elif kind == "message_start":
            self._begun = True
        elif kind == "message_stop" or (
            kind == "message_delta" and isinstance(delta, dict) and delta.get("stop_reason")
        ):
            self.over = True

    def events(self, usage: Usage, asked: bool) -> list[Event]:
        """See Ending."""
        if not self._begun:
            return []
        found: list[dict[str, Any]] = []
        if self._open is not None:
            found.append({"type": "content_block_stop", "index": self._open})
        found.append(
            {
                "type": "message_delta",
                "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
                "usage": {"output_tokens": usage.output_tokens},
            }
        )
        found.append({"type": "message_stop"})
        return [(each["type"], each) for each in found]


class GeminiEnding(Ending):
    """Gemini's generateContent. Its older SDKs take a comment for JSON."""

    __slots__ = ("_base", "_ended", "_open")

    comments = False

    def __init__(self) -> None:
        super().__init__()
        self._base: dict[str, Any] = {}
        self._open: set[int] = set()
        self._ended: set[int] = set()

    def see(self, message: dict[str, Any]) -> None:
        """See Ending."""
        candidates = message.get("candidates")
        if not isinstance(candidates, list):
            return
        self._base = {
            name: message[name] for name in ("modelVersion", "responseId") if name in message
        }
        for each in candidates:
            if isinstance(each, dict):
                index = each.get("index")
                index = index if isinstance(index, int) else 0
                (self._ended if each.get("finishReason") else self._open).add(index)
        self.over = bool(self._ended) and self._open <= self._ended

    def events(self, usage: Usage, asked: bool) -> list[Event]:
        """See Ending."""
        if not self._open:
            return []
        content = {"role": "model", "parts": [{"text": ""}]}
        told: dict[str, Any] = {
            "promptTokenCount": usage.input_tokens,
            "candidatesTokenCount": usage.output_tokens - usage.reasoning_tokens,
            "totalTokenCount": usage.total_tokens,
        }
        if usage.reasoning_tokens:
            told["thoughtsTokenCount"] = usage.reasoning_tokens
        if usage.cached_input_tokens:
            told["cachedContentTokenCount"] = usage.cached_input_tokens
        ends = [
            {"content": content, "finishReason": "MAX_TOKENS", "index": index}
            for index in sorted(self._open - self._ended)
        ]
        return [("", {"candidates": ends, "usageMetadata": told, **self._base})]


class OllamaEnding(Ending):
    """Ollama's own lines."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, Any] = {}

    def see(self, message: dict[str, Any]) -> None:
        """See Ending."""
        if "done" in message:
            self._last = message
            self.over = message["done"] is True

    def events(self, usage: Usage, asked: bool) -> list[Event]:
        """See Ending."""
        if not self._last:
            return []
        names = ("model", "created_at")
        last = {name: self._last[name] for name in names if name in self._last}
        if "message" in self._last:
            last["message"] = {"role": "assistant", "content": ""}
        else:
            last["response"] = ""
        last |= {
            "done": True,
            "done_reason": "length",
            "prompt_eval_count": usage.input_tokens,
            "eval_count": usage.output_tokens,
        }
        return [("", last)]


class CohereEnding(Ending):
    """Cohere's v2 chat; a stream of v1 ends in an error event."""

    __slots__ = ("_begun", "_open")

    def __init__(self) -> None:
        super().__init__()
        self._begun = False
        self._open: tuple[str, Any] | None = None  # what ends the part that is open

    def see(self, message: dict[str, Any]) -> None:
        """See Ending."""
        kind = message.get("type")
        if kind in ("content-start", "content-delta"):
            self._open = ("content-end", message.get("index", 0))
        elif kind in ("tool-call-start", "tool-call-delta"):
            self._open = ("tool-call-end", message.get("index", 0))
        elif kind in ("content-end", "tool-call-end"):
            self._open = None
        elif kind == "message-start":
            self._begun = True
        self.over |= kind == "message-end" or message.get("event_type") == "stream-end"

    def events(self, usage: Usage, asked: bool) -> list[Event]:
        """See Ending."""
        if not self._begun:
            return []
        counts = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        told = {"billed_units": counts, "tokens": counts}
        found: list[dict[str, Any]] = []
        if self._open is not None:
            found.append({"type": self._open[0], "index": self._open[1]})
        delta = {"finish_reason": "MAX_TOKENS", "usage": told}
        found.append({"type": "message-end", "delta": delta})
        return [(each["type"], each) for each in found]


def ending_for(api: Api, operation: str) -> Ending:
    """How the streams of an operation end."""
    if api is OPENAI or api is VERTEX:
        return ResponsesEnding() if operation == "responses" else ChoicesEnding(operation == "chat")
    if api is ANTHROPIC:
        return MessageEnding()
    if api is GEMINI:
        return GeminiEnding()
    if api is OLLAMA:
        return OllamaEnding()
    if api is COHERE:
        return CohereEnding()
    return Ending()
