"""A worker under a supervisor: `python -m fastgw.child FD`, started by nobody else.

Orders come over the inherited socket FD (see control). The worker drains and ends on Stop, on
SIGTERM, and when the supervisor is gone; what the terminal sends to all, SIGINT and SIGHUP, is the
supervisor's business.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import signal
import socket
import sys
from typing import TYPE_CHECKING

import uvloop

import fastgw
from fastgw import tasks
from fastgw.admin.aggregate import pack
from fastgw.control import Ask, Channel, Reload, Start, Stop
from fastgw.downstream import listener
from fastgw.errors import StoreUnavailable
from fastgw.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

LAST_WORD = 2.0
"""Seconds that the supervisor has to take the last frame."""


class Child:
    """See the module."""

    def __init__(self) -> None:
        self._channel = Channel(self._on_frame, self._on_end)
        self._start: asyncio.Future[Start] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()
        self._gone = asyncio.Event()
        self._worker: Worker | None = None
        self._generation = 0

    async def run(self, sock: socket.socket) -> int:
        """Serve until told to end; returns the exit code."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
        await self._channel.open(sock)
        stopping = tasks.spawn(self._stopping.wait(), "wait for the end")
        await asyncio.wait({self._start, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not self._start.done():
            return 0
        order = self._start.result()
        self._start = asyncio.get_running_loop().create_future()  # it may hold 100,000 keys
        _start_logging(order.number)
        if order.version != fastgw.__version__:
            log.error(
                "the supervisor runs fastgw %s, this is %s: restart it",
                order.version,
                fastgw.__version__,
            )
            return 1
        starting = asyncio.get_running_loop().create_task(self._serve(order))
        del order
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        elif not starting.cancelled() and (error := starting.exception()) is not None:
            if not isinstance(error, OSError | StoreUnavailable):
                raise error
            log.error("cannot start: %s", error)
            return 1
        else:
            await stopping
        return await self._end()

    async def _serve(self, order: Start) -> None:
        sockets = [listener.bind(address, shared=True) for address in order.addresses]
        sockets += [socket.socket(fileno=number) for number in order.files]
        config = order.config.config_again()
        worker = Worker(config, sockets=sockets, generation=order.generation, supervised=True)
        self._generation = order.generation
        await worker.start()
        self._worker = worker
        self._channel.say("ready", addresses=worker.addresses)

    async def _end(self) -> int:
        worker = self._worker
        unsettled = False
        if worker is not None:
            await worker.stop()
            unsettled = worker.unsettled
            self._channel.say("end", numbers=pack(worker.changes()), unsettled=unsettled)
        self._channel.close()
        try:
            async with asyncio.timeout(LAST_WORD):
                await self._gone.wait()
        except TimeoutError:
            pass
        return 1 if unsettled else 0

    def _stop(self) -> None:
        if self._stopping.is_set() and self._worker is not None:
            self._worker.hurry()
        self._stopping.set()

    # called by the channel

    def _on_end(self) -> None:
        self._gone.set()
        self._stopping.set()

    def _on_frame(self, frame: bytes) -> None:
        order = pickle.loads(frame)  # our parent's own
        try:
            self._obey(order)
        except Exception:
            # An answer that cannot be made must not cost the channel, and with it the worker.
            log.exception("an order failed: %s", type(order).__name__)

    def _obey(self, order: Start | Reload | Ask | Stop) -> None:
        if isinstance(order, Start):
            self._start.set_result(order)
        elif isinstance(order, Stop):
            self._stopping.set()
            if order.at_once and self._worker is not None:
                self._worker.hurry()
        elif isinstance(order, Ask):
            self._answer(order)
        elif isinstance(order, Reload):
            tasks.spawn(self._reload(order), "reload")

    def _answer(self, ask: Ask) -> None:
        worker = self._worker
        if worker is None:
            return
        accounts = [tuple(row) for row in worker.account_rows()] if ask.accounts else None
        self._channel.say(
            "answer",
            id=ask.id,
            numbers=pack(worker.changes()),
            ready=worker.readiness(),
            status=worker.status(),
            accounts=accounts,
        )

    async def _reload(self, order: Reload) -> None:
        worker = self._worker
        error = ""
        if worker is not None and order.generation > self._generation:
            try:
                await worker.reload(await asyncio.to_thread(order.config.config_again))
            except Exception as failure:
                log.exception("reload failed")
                error = str(failure)
            else:
                self._generation = order.generation
        self._channel.say("reloaded", generation=self._generation, error=error)


def _start_logging(number: int) -> None:
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)s worker {number} %(name)s: %(message)s",
    )


def main(arguments: Sequence[str]) -> int:
    """Run as the child whose socket is the file descriptor in the first argument."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sock = socket.socket(fileno=int(arguments[0]))
    sock.set_inheritable(False)

    async def run() -> int:
        return await Child().run(sock)

    return uvloop.run(run())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
