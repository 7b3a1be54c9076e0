"""A TCP proxy that breaks connections at a byte of one's choice.

It stands between a gateway and its provider, or between a client and the gateway. A `Plan` says
what becomes of a connection: one `Fault` for what the connecting side sends (`request`), one for
what comes back (`response`).

    pass      bytes as they come
    cut       after `at` bytes both sides see the connection end (FIN), in order and without loss
    reset     after `at` bytes both sides see it reset (RST)
    delay     after `at` bytes it waits `seconds`, once
    dribble   one byte a write, each in a turn of the loop of its own

A fault at 0 strikes when the first byte arrives, which is not passed on. An end or a reset that
either side makes by itself is passed on as what it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import uvloop

from fastgw import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

Action = Literal["pass", "cut", "reset", "delay", "dribble"]
End = Literal["eof", "cut", "reset"]
READ = 64 * 1024


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens in one direction; `at` counts bytes of that direction."""

    action: Action = "pass"
    at: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to one connection. `refuse`: reset as soon as it is accepted."""

    request: Fault = Fault()
    response: Fault = Fault()
    refuse: bool = False


def abort(sock: socket.socket) -> None:
    """Close with RST instead of FIN: to linger for no time discards and resets."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Proxy:
    """A listening proxy in a thread of its own. `port` is where it listens.

    `plan` holds for connections accepted from now on; `choose`, if given, decides instead.
    """

    def __init__(self, target: int, choose: Callable[[], Plan] | None = None) -> None:
        """`target`: the port on loopback that connections are passed on to."""
        self.plan = Plan()
        self.accepted = 0
        self.struck = 0
        """Cuts and resets that came to pass."""
        self.target = target
        self.choose = choose
        self._links: set[asyncio.Task[Any]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._loop = uvloop.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy {self.port}", daemon=True)
        self._thread.start()

    def drop(self) -> None:
        """End all connections that are open now."""
        self._loop.call_soon_threadsafe(self._drop)

    def close(self) -> None:
        """Stop listening, end what is open, end the thread."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    # in the thread

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    def _drop(self) -> None:
        for link in self._links:
            link.cancel()

    async def _serve(self) -> None:
        accepting = tasks.spawn(self._accept(), "proxy: accept")
        await self._stopping.wait()
        accepting.cancel()
        self._drop()
        await asyncio.gather(accepting, *self._links, return_exceptions=True)
        self._listener.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            near, _ = await loop.sock_accept(self._listener)
            self.accepted += 1
            plan = self.plan if self.choose is None else self.choose()
            if plan.refuse:
                self.struck += 1
                abort(near)
                continue
            link = tasks.spawn(self._link(near, plan), "proxy: link")
            self._links.add(link)
            link.add_done_callback(self._links.discard)

    async def _link(self, near: socket.socket, plan: Plan) -> None:
        """One connection, from its first byte to its end on both sides."""
        far = socket.socket()
        try:
            for sock in (near, far):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await asyncio.get_running_loop().sock_connect(far, ("127.0.0.1", self.target))
            except OSError:
                abort(near)
                return
            end = await self._both(near, far, plan)
            if end == "cut":
                await asyncio.gather(_drain(near), _drain(far))
            elif end == "reset":
                abort(near)
                abort(far)
        finally:
            near.close()
            far.close()

    async def _both(self, near: socket.socket, far: socket.socket, plan: Plan) -> End:
        """Pass bytes both ways until both directions are over or one of them is struck."""
        over = asyncio.Event()
        waiting = {
            tasks.spawn(self._pump(near, far, plan.request, over), "proxy: request"),
            tasks.spawn(self._pump(far, near, plan.response, over), "proxy: response"),
        }
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for pump in done:
                    end: End = pump.result()
                    if end != "eof":
                        return end
            return "eof"
        finally:
            # No socket may be closed while the loop still watches it.
            for pump in waiting:
                pump.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _pump(
        self, source: socket.socket, target: socket.socket, fault: Fault, over: asyncio.Event
    ) -> End:
        """One direction. `over` is set by the one that is struck, so that not a byte passes in the
        other from then on."""
        loop = asyncio.get_running_loop()
        passed = 0
        strikes = fault.action in ("cut", "reset")
        try:
            while data := await loop.sock_recv(source, READ):
                if over.is_set():
                    return "eof"
                here = fault.at - passed
                passed += len(data)
                if strikes and here <= len(data):
                    over.set()
                    await loop.sock_sendall(target, data[:here])
                    self.struck += 1
                    return "cut" if fault.action == "cut" else "reset"
                if fault.action == "dribble":
                    for at in range(len(data)):
                        await loop.sock_sendall(target, data[at : at + 1])
                        await asyncio.sleep(0)
                    continue
                if fault.action == "delay" and 0 <= here < len(data):
                    await loop.sock_sendall(target, data[:here])
                    await asyncio.sleep(fault.seconds)
                    data = data[here:]
                await loop.sock_sendall(target, data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return "reset"
        return "eof"


async def _drain(sock: socket.socket) -> None:
    """Send FIN and read on to the other side's: a close over unread bytes would be a reset."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while await loop.sock_recv(sock, READ):
            pass
