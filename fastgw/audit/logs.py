"""Reads the two logs that an audit compares, a line at a time."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from fastgw.usage.estimate import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Asked(NamedTuple):
    """An exchange by the provider's log; demo/stub_log has the fields. Times are epoch seconds,
    `key` is its tag of who asked, `given` and `made` are tokens of the report. Text and prompt are
    counted in each of the ways in which a gateway may count."""

    time: float
    began: float
    request_id: str
    key: str
    status: int
    reported: bool
    given: int
    made: int
    whole: bool
    text_counted: tuple[int, ...]
    prompt_counted: tuple[int, ...]
    end: str


class Charged(NamedTuple):
    """An exchange by the access log. `sent`: the provider was asked, as far as the gateway knows;
    `given` and `made` are tokens that were charged, `source` is who said so."""

    time: float
    began: float
    request_id: str
    key: str
    method: str
    path: str
    route: str
    operation: str
    model: str
    source: str
    given: int
    made: int
    reason: str
    sent: bool


class Unreadable(NamedTuple):
    """A line that is none: cut by a kill, or of another kind of file."""

    time: float


def _asked(line: dict[str, Any]) -> Asked:
    prompt = line["prompt_counted"]
    return Asked(
        _seconds(line["time"]),
        _seconds(line["began"]),
        line["request_id"],
        line["account"],
        line["status"],
        line["reported"],
        line["input_tokens"],
        line["output_tokens"],
        line["whole"],
        (-(-line["text_bytes"] // BYTES_PER_TOKEN), *line.get("text_counted", ())),
        tuple(prompt) if isinstance(prompt, list) else (prompt,),
        line["end"],
    )


def _charged(line: dict[str, Any]) -> Charged | None:
    if "message" in line:
        return None  # bytes that were no request
    time = _seconds(line["time"])
    return Charged(
        time,
        time - line["duration_ms"] / 1000,
        line["request_id"],
        line["key"],
        line["method"],
        line["path"],
        line["route"],
        line["gen_ai.operation.name"],
        line["gen_ai.request.model"],
        line["usage_source"],
        line["input_tokens"],
        line["output_tokens"],
        line["reason"],
        line["processing_ms"] is not None,
    )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def read_stub_log(path: str) -> Iterator[Asked | Charged | Unreadable]:
    """The exchanges of a provider's log. Raises OSError."""
    return _read(path, _asked)


def read_access_log(path: str) -> Iterator[Asked | Charged | Unreadable]:
    """The exchanges of an access log. Raises OSError."""
    return _read(path, _charged)


def _read(
    path: str, made: Callable[[dict[str, Any]], Asked | Charged | None]
) -> Iterator[Asked | Charged | Unreadable]:
    last = 0.0
    with open(path, "rb") as file:
        for data in file:
            try:
                line = made(orjson.loads(data))
            except (ValueError, KeyError, TypeError):
                yield Unreadable(last)
                continue
            if line is not None:
                last = line.time
                yield line
