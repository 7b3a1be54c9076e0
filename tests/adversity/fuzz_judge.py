"""How h11 reads what the fuzzer sends and gets: the judge, apart from the parsers under test."""

from __future__ import annotations

from typing import NamedTuple

import h11


class Message(NamedTuple):
    """A message as the judge reads it; `complete` with nothing in doubt."""

    head: h11.Request | h11.Response
    body: bytes
    complete: bool


def read_requests(data: bytes) -> tuple[list[Message], str, bytes]:
    """The requests in `data`, the judge's complaint if any, and what follows the last."""
    found: list[Message] = []
    while data:
        if data[:2] == b"\r\n":
            data = data[2:]  # known difference: RFC 9112, 2.2 allows an empty line; h11 does not
            continue
        judge = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        judge.receive_data(data)
        message, error = _read(judge)
        if message is not None:
            found.append(message)
        if message is None or not message.complete:
            return found, error, data
        data = judge.trailing_data[0]
    return found, "", b""


def read_answer(data: bytes, method: bytes, fin: bool) -> tuple[Message | None, str, bytes]:
    """One answer to `method`; `fin` = the bytes end with an orderly end of the connection."""
    judge = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    judge.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    judge.send(h11.EndOfMessage())
    if data:
        judge.receive_data(data)
    if fin:
        judge.receive_data(b"")
    message, error = _read(judge)
    return message, error, judge.trailing_data[0]


def _read(judge: h11.Connection) -> tuple[Message | None, str]:
    head: h11.Request | h11.Response | None = None
    body = b""
    try:
        while True:
            event = judge.next_event()
            if isinstance(event, h11.Request | h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return Message(head, body, True), ""
            elif not isinstance(event, h11.InformationalResponse):
                return (Message(head, body, False) if head is not None else None), ""
    except h11.RemoteProtocolError as error:
        return (Message(head, body, False) if head is not None else None), str(error)
