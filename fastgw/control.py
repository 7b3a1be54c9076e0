"""What a supervisor and its workers say to each other, over a pair of sockets that only they hold.

Downwards go the orders below, pickled: the worker is the supervisor's own child and runs the same
code. Upwards go JSON objects, since a worker reads bytes of strangers and its parent need not trust
it: `say` is one of

    ready     it serves; `addresses` it listens on
    answer    to Ask: `id`, `numbers`, `ready` ([whether, why]), `status`, `accounts` if asked for
    reloaded  to Reload: `generation`, `error` ("" if it went well)
    end       its last word: `numbers`, `unsettled`

A frame is its length in four bytes and then that many bytes. Rare and small: nothing here is on the
way of a request.
"""

from __future__ import annotations

import asyncio
import marshal
import pickle
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import orjson

from fastgw.config.heap import many_made
from fastgw.config.tables import Key

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fastgw.config.tables import Config

_LENGTH = 4

_SLICE = 1000
_ROW = attrgetter(
    "name",
    "digest",
    "previous_digest",
    "metadata",
    "allowed_models",
    "allowed_ips",
    "not_before",
    "expires_at",
    "disabled",
)


@dataclass(frozen=True, slots=True)
class Packed:
    """A configuration on its way. Its keys go in slices that cost a millisecond each to read, so
    that 100,000 of them keep no loop from turning; pickled as they are, they took a second."""

    config: Config
    keys: tuple[bytes, ...]

    @classmethod
    def of(cls, config: Config) -> Packed:
        """Pack. May be called in a thread."""
        slices = (config.keys[at : at + _SLICE] for at in range(0, len(config.keys), _SLICE))
        rows = tuple(marshal.dumps([_ROW(key) for key in some]) for some in slices)
        return cls(replace(config, keys=()), rows)

    def config_again(self) -> Config:
        """Unpack. May be called in a thread."""
        with many_made():
            keys = [
                Key(
                    name=name,
                    digest=digest,
                    previous_digest=previous,
                    metadata=metadata,
                    allowed_models=models,
                    allowed_ips=networks,
                    not_before=begin,
                    expires_at=end,
                    disabled=disabled,
                )
                for some in self.keys
                for name, digest, previous, metadata, models, networks, begin, end, disabled in (
                    marshal.loads(some)  # our parent's own
                )
            ]
            return replace(self.config, keys=tuple(keys))


@dataclass(frozen=True, slots=True)
class Start:
    """The first order: serve. `addresses` are bound by the worker, beside other workers; `files`
    are listening sockets that it inherited. `version` is that of the supervisor's code."""

    version: str
    number: int
    generation: int
    config: Packed
    addresses: tuple[str, ...]
    files: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reload:
    """Use this configuration for new requests."""

    generation: int
    config: Packed


@dataclass(frozen=True, slots=True)
class Ask:
    """Say how it goes; `accounts`: those of the budgets, too."""

    id: int
    accounts: bool


@dataclass(frozen=True, slots=True)
class Stop:
    """Drain and end; `at_once`: cut what runs."""

    at_once: bool


class Channel(asyncio.Protocol):
    """One end. `on_frame` gets each frame, `on_end` is called once when the other end is gone."""

    def __init__(self, on_frame: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_end = on_end
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    async def open(self, sock: socket.socket) -> None:
        """Use this connected socket."""
        sock.setblocking(False)
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=sock)

    def order(self, order: Start | Reload | Ask | Stop) -> None:
        """Send downwards."""
        self._send(pickle.dumps(order, pickle.HIGHEST_PROTOCOL))

    def say(self, say: str, **more: Any) -> None:
        """Send upwards."""
        self._send(orjson.dumps({"say": say, **more}))

    def _send(self, frame: bytes) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(len(frame).to_bytes(_LENGTH, "big") + frame)

    def close(self) -> None:
        """Let go, after what was sent."""
        if self._transport is not None:
            self._transport.close()

    # called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ours."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """Bytes came: hand on what is whole."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _LENGTH:
            end = at + _LENGTH + int.from_bytes(buffer[at : at + _LENGTH], "big")
            if len(buffer) < end:
                break
            frame = bytes(buffer[at + _LENGTH : end])
            at = end
            self._on_frame(frame)
        del buffer[:at]

    def connection_lost(self, error: Exception | None) -> None:
        """The other end is gone."""
        self._transport = None
        self._on_end()
