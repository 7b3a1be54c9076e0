"""A proxy between a gateway and its Redis that loses what a network loses.

It is the proxy of `proxy.py`, whose plans cut and reset at a byte, and more, for all connections at
once and changed at any time:

    lose      a script call that was not seen before is executed, its reply is swallowed and the
              connection reset; the same call sent again passes
    delay     each reply waits so many seconds
    stall     nothing passes, in either direction, until it is taken back

A gateway must not be able to tell a lost reply from a call that never arrived.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import TYPE_CHECKING

from fastgw import tasks
from tests.adversity.proxy import READ, Plan, Proxy

if TYPE_CHECKING:
    import socket

    from tests.adversity.proxy import End

_SCRIPT_CALL = re.compile(rb"\*\d+\r\n\$\d+\r\n(?:EVALSHA|EVAL|FCALL)\r\n", re.IGNORECASE)
"""Anywhere in what is sent at once: it may come after a SCRIPT LOAD."""


class RedisProxy(Proxy):
    """See the module. Faults are attributes, set from any thread."""

    def __init__(self, target: int) -> None:
        """`target`: the port of the server on loopback."""
        self.loses = False
        self.lost = 0
        """Replies that were swallowed."""
        self.delay = 0.0
        self.resets = 0
        """Connections that `reset` ended."""
        self._seen: set[bytes] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._breaking = asyncio.Event()
        super().__init__(target)

    def stall(self) -> None:
        """Pass nothing from now on."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def flow(self) -> None:
        """Take `stall` back."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def reset(self) -> None:
        """Reset all connections that are open now, in the middle of whatever passes."""
        self._loop.call_soon_threadsafe(self._reset)

    # in the thread

    def _reset(self) -> None:
        self._breaking.set()
        self._breaking = asyncio.Event()

    async def _both(self, near: socket.socket, far: socket.socket, plan: Plan) -> End:
        if plan != Plan():
            return await super()._both(near, far, plan)
        call = _Call()
        waiting = {
            tasks.spawn(self._requests(near, far, call), "redis proxy: requests"),
            tasks.spawn(self._replies(far, near, call), "redis proxy: replies"),
            tasks.spawn(self._broken(self._breaking), "redis proxy: reset"),
        }
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            ends = {each.result() for each in done}
            return "reset" if "reset" in ends else "cut"
        finally:
            # No socket may be closed while the loop still watches it.
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _broken(self, breaking: asyncio.Event) -> End:
        await breaking.wait()
        self.resets += 1
        return "reset"

    async def _requests(self, near: socket.socket, far: socket.socket, call: _Call) -> End:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(near, READ):
                await self._flowing.wait()
                call.sent(data)
                await loop.sock_sendall(far, data)
        except OSError:
            return "reset"
        return "cut"

    async def _replies(self, far: socket.socket, near: socket.socket, call: _Call) -> End:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(far, READ):
                await self._flowing.wait()
                script, digest = call.answered()
                refused = data.startswith(b"-")  # NOSCRIPT: nothing was executed
                if script and self.loses and not refused and digest not in self._seen:
                    self._seen.add(digest)
                    self.lost += 1
                    return "reset"
                if self.delay:
                    await asyncio.sleep(self.delay)
                await loop.sock_sendall(near, data)
        except OSError:
            return "reset"
        return "cut"


class _Call:
    """The call under way on a connection, which carries one at a time."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._script = False
        self._over = True

    def sent(self, data: bytes) -> None:
        """More of a call."""
        if self._over:
            self._over = False
            self._hash = hashlib.sha256()
            match = _SCRIPT_CALL.search(data)
            self._script = match is not None
            data = data[match.start() :] if match is not None else data
        self._hash.update(data)

    def answered(self) -> tuple[bool, bytes]:
        """A reply is here, or more of it: whether it is the beginning of a script's, and of which
        call."""
        script = self._script and not self._over
        self._over = True
        return script, self._hash.digest()
