"""What the stub provider reported, one JSON line for each exchange: the books that `fastgw audit`
holds beside the store's.

| field | meaning |
| --- | --- |
| `time`, `began` | end and beginning of the exchange, RFC 3339, UTC |
| `request_id` | the x-request-id that the gateway sent |
| `account` | who asked: the header x-stub-account, else the member `user` of the body |
| `model`, `stream`, `status` | what was asked for and answered |
| `reported` | the usage report went to the socket, whole |
| `input_tokens`, `output_tokens` | what the report says, whole or not; 0 where there is none |
| `whole` | the answer went to the socket to its end |
| `events`, `text_bytes` | events that were written, and the UTF-8 bytes of their text |
| `text_counted` | its tokens by each rule of the gateway's, which charges one of them unreported |
| `prompt_counted` | tokens of the prompt by the same rules |
| `end` | done, client_closed or the fault |

Where the other side left, `events` and `text_bytes` say what was handed to the socket: at most so
much has arrived.
"""

from __future__ import annotations

import asyncio
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from fastgw import clock
from fastgw.demo import answers
from fastgw.usage.dialects import DIALECTS
from fastgw.usage.prompt import counted
from fastgw.usage.tokens import counters
from fastgw.usage.vocabulary import DEFAULT, Family, loaded, warm

if TYPE_CHECKING:
    from fastgw.demo.behaviour import Behaviour
    from fastgw.usage.estimate import Counter

INTERVAL = 0.05
"""Seconds that a line waits at most."""

_REPORT = b'"usage":{'
_TEXTS = DIALECTS["auto"].any.texts


class Said(NamedTuple):
    """What an answer has told after so many of its events."""

    reported: bool
    text_bytes: int
    text_counted: tuple[int, ...] = (0,)


@lru_cache(maxsize=256)
def said_by_events(
    operation: str, model: str, behaviour: Behaviour, asked: bool
) -> tuple[Said, ...]:
    """What a stream has told after 0, 1, 2 … of its events."""
    said = [Said(False, 0)]
    ways = _ways(model)
    for event in answers.events(operation, model, behaviour, asked):
        data = event.partition(b"data: ")[2].strip()
        reported, size, _ = said[-1]
        text = _text(data)
        for way in ways:
            way.add(text)
        tokens = tuple(way.total() for way in ways)
        said.append(Said(reported or _REPORT in data, size + len(text.encode()), tokens))
    return tuple(said)


@lru_cache(maxsize=256)
def said_by_body(operation: str, model: str, behaviour: Behaviour) -> Said:
    """What a buffered answer tells."""
    body = answers.body(operation, model, behaviour)
    text = _text(body)
    ways = _ways(model)
    for way in ways:
        way.add(text)
    tokens = tuple(way.total() for way in ways)
    return Said(_REPORT in body, len(text.encode()), tokens)


def _ways(model: str) -> list[Counter]:
    """A counter for each rule of the gateway's; by bytes alone where no vocabulary is loaded."""
    if loaded(Family(DEFAULT)) is not None:
        warm([model])
    return counters(model)


def _text(data: bytes) -> str:
    if not data.startswith(b"{"):
        return ""
    return "".join(_TEXTS(orjson.loads(data)))


class Line:
    """One exchange on its way into the books."""

    __slots__ = (
        "_began", "_counted", "_request", "account", "at_once", "end", "events",
        "flushed", "model", "over", "said", "status", "stream", "usage",
    )  # fmt: skip

    def __init__(self, request_id: str, account: str, request: dict[str, Any], model: str) -> None:
        user = request.get("user")
        self._began = clock.wall()
        self._request = request_id
        self._counted = [counted(request, model, way) for way in _ways(model)]
        self.account = account or (user if isinstance(user, str) else "")
        self.model = model
        self.stream = request.get("stream") is True
        self.status = 0
        self.usage = (0, 0)
        """What the report says where there is one: tokens in, tokens out."""
        self.said: tuple[Said, ...] = (Said(False, 0),)
        """After 0, 1, 2 … events; one entry for an answer that is told at once."""
        self.at_once = True
        """Events are no measure: a report is out when the answer is."""
        self.events = 0
        self.flushed = 0
        """Events that are with the kernel, of those handed to the socket."""
        self.over = False
        self.end = ""

    def entry(self, delivered: bool) -> dict[str, Any]:
        """The line. `delivered`: the socket has taken all that it was handed."""
        whole = self.over and delivered
        said = self.said[min(self.events, len(self.said) - 1)]
        reported = said.reported and whole
        if not self.at_once:
            reported = self.said[min(self.flushed, len(self.said) - 1)].reported
        given, made = self.usage if self.said[-1].reported else (0, 0)
        end = self.end
        return {
            "time": clock.timestamp(clock.wall()),
            "began": clock.timestamp(self._began),
            "request_id": self._request,
            "account": self.account,
            "model": self.model,
            "stream": self.stream,
            "status": self.status,
            "reported": reported,
            "input_tokens": given,
            "output_tokens": made,
            "whole": whole,
            "events": self.events,
            "text_bytes": said.text_bytes,
            "text_counted": said.text_counted,
            "prompt_counted": self._counted,
            "end": "client_closed" if not end or (end == "done" and not whole) else end,
        }


class StubLog:
    """The file. A line is written within INTERVAL of the end of its exchange."""

    def __init__(self, path: str) -> None:
        """Raises OSError where the file cannot be opened. Lines are added to what it holds."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._lines: list[bytes] = []

    def write(self, entry: dict[str, Any]) -> None:
        """Log one exchange that is over."""
        self._lines.append(orjson.dumps(entry))
        if len(self._lines) == 1:
            asyncio.get_running_loop().call_later(INTERVAL, self.flush)

    def flush(self) -> None:
        """Write what waits."""
        if not self._lines:
            return
        data = b"\n".join(self._lines) + b"\n"
        self._lines.clear()
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Write what waits and close."""
        self.flush()
        os.close(self._file)
