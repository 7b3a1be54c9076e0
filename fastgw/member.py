"""One worker as its supervisor sees it: the process, the channel, what it said last."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson

import fastgw
from fastgw import clock
from fastgw.admin.aggregate import AccountRow, unpack
from fastgw.control import Ask, Channel, Reload, Start, Stop

if TYPE_CHECKING:
    from fastgw.exposition import Numbers

log = logging.getLogger(__name__)

LAST_WORD = 2.0
"""Seconds after its end in which the rest of what a worker said must have come."""

MAX_ASKED = 8
"""Questions that a worker may leave open; then it is not asked again until it answers."""


class Owner(Protocol):
    """The supervisor."""

    def on_ready(self, member: Member) -> None:
        """It serves."""

    def on_numbers(self, member: Member, numbers: Numbers) -> None:
        """It told what it counted."""

    def on_end(self, member: Member, how: str, ran: float) -> None:
        """Its process is gone."""


class Member:
    """A place among the workers; one process after the other fills it.

    `state` is starting, ready, draining or waiting. Times are monotonic seconds.
    """

    def __init__(self, number: int, owner: Owner) -> None:
        self.number = number
        self._owner = owner
        # for the supervisor's book
        self.pause = 0.0
        self.failures = 0
        """Processes in a row that ended before they were ready."""
        self.timer: asyncio.TimerHandle | None = None
        self._reset()

    def _reset(self) -> None:
        self.state = "waiting"
        self.pid = 0
        self.generation = 0
        self.began = 0.0
        self.ready_at = 0.0
        self.answered_at = 0.0
        self.ready: tuple[bool, str] = (False, "starting")
        self.status: dict[str, Any] = {}
        self.accounts: list[AccountRow] = []
        self.unsettled = False
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._open = False  # the channel
        self._code: int | None = None
        self._asked = 0
        self._answered = 0
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._reloads: dict[int, asyncio.Future[str]] = {}

    @property
    def running(self) -> bool:
        """Whether there is a process, or will be at once."""
        return self.state != "waiting"

    async def start(self, order: Start) -> None:
        """Start a process and tell it to serve."""
        self._reset()
        self.state = "starting"
        self.began = clock.monotonic()
        self.generation = order.generation
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        try:
            child = _spawn(theirs.fileno(), order.files)
        except OSError as error:
            ours.close()
            self.state = "waiting"
            self._owner.on_end(self, f"cannot be started: {error.strerror}", 0.0)
            return
        finally:
            theirs.close()
        self._child = child
        self.pid = child.pid
        self._open = True
        channel = self._channel = Channel(self._on_frame, self._on_channel_end)
        await channel.open(ours)
        channel.order(order)

        def wait() -> None:
            code = child.wait()
            try:
                loop.call_soon_threadsafe(self._on_exit, code)
            except RuntimeError:
                pass  # the loop is closed: nobody cares any more

        threading.Thread(target=wait, name=f"worker {self.number}", daemon=True).start()

    def order(self, order: Reload | Ask | Stop) -> None:
        """Send an order, if there is somebody to get it."""
        if self._channel is not None:
            self._channel.order(order)

    def stop(self, at_once: bool) -> None:
        """Tell it to drain and end."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.running:
            self.state = "draining"
            self.order(Stop(at_once))

    def kill(self) -> None:
        """End the process now."""
        if self._child is not None and self._code is None:
            self._child.send_signal(signal.SIGKILL)

    def ask(self, *, accounts: bool) -> asyncio.Future[None] | None:
        """Ask how it goes; the future is done when it has answered. None if it hangs."""
        if self._asked - self._answered >= MAX_ASKED:
            return None
        self._asked += 1
        answer = self._answers[self._asked] = asyncio.get_running_loop().create_future()
        self.order(Ask(self._asked, accounts))
        return answer

    async def answer(self, accounts: bool) -> None:
        """Ask and wait for the answer."""
        answer = self.ask(accounts=accounts)
        if answer is not None:
            await asyncio.shield(answer)

    async def reloaded(self, generation: int, within: float) -> str:
        """Wait until it has taken up this generation; what went wrong, "" if nothing did."""
        if self.generation >= generation:
            return ""
        future = self._reloads.setdefault(generation, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(within):
                return await asyncio.shield(future)
        except TimeoutError:
            return "does not answer"

    # called by the channel and the process

    def _on_frame(self, frame: bytes) -> None:
        said = orjson.loads(frame)
        what = said["say"]
        if what == "answer":
            self._on_answer(said)
        elif what == "ready":
            if self.state == "starting":
                self.state = "ready"
            self.ready = (True, "ready")
            self.ready_at = self.answered_at = clock.monotonic()
            self.failures = 0
            log.info("worker %d (process %d) is ready", self.number, self.pid)
            self._owner.on_ready(self)
        elif what == "reloaded":
            self.generation = max(self.generation, said["generation"])
            for generation in [each for each in self._reloads if each <= self.generation]:
                _done(self._reloads.pop(generation), "")
            if said["error"]:
                for future in self._reloads.values():
                    _done(future, said["error"])
                self._reloads.clear()
        elif what == "end":
            self.unsettled = bool(said["unsettled"])
            self._owner.on_numbers(self, unpack(said["numbers"]))

    def _on_answer(self, said: dict[str, Any]) -> None:
        self.answered_at = clock.monotonic()
        self._answered = said["id"]
        self.ready = (bool(said["ready"][0]), str(said["ready"][1]))
        self.status = said["status"]
        if self.state == "ready" and self.ready[1] == "draining":
            self.state = "draining"  # somebody told the worker itself to end
        if said["accounts"] is not None:
            self.accounts = [AccountRow(*row) for row in said["accounts"]]
        self._owner.on_numbers(self, unpack(said["numbers"]))
        answer = self._answers.pop(said["id"], None)
        if answer is not None and not answer.done():
            answer.set_result(None)

    def _on_channel_end(self) -> None:
        self._open = False
        self._look_if_over()

    def _on_exit(self, code: int) -> None:
        self._code = code
        if self._open:
            asyncio.get_running_loop().call_later(LAST_WORD, self._give_up_channel, self._child)
        self._look_if_over()

    def _give_up_channel(self, child: subprocess.Popen[bytes] | None) -> None:
        """Whoever holds the other end of a dead worker's channel does not keep its place taken."""
        if self._child is child and self._open:
            if self._channel is not None:
                self._channel.close()
            self._on_channel_end()

    def _look_if_over(self) -> None:
        """It is over when the process has ended and its last word is read."""
        code = self._code
        if self._open or code is None:
            return
        ran = clock.monotonic() - self.ready_at if self.ready_at else 0.0
        answers, reloads, unsettled = self._answers, self._reloads, self.unsettled
        self._reset()
        self.unsettled = unsettled
        for answer in answers.values():
            answer.cancel()
        for future in reloads.values():
            _done(future, "ended")
        self._owner.on_end(self, _ending(code), ran)


def _done(future: asyncio.Future[str], error: str) -> None:
    if not future.done():
        future.set_result(error)


def _ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _spawn(channel: int, files: tuple[int, ...]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fastgw.child", str(channel)],
        stdin=subprocess.DEVNULL,
        pass_fds=(channel, *files),
        env=_environment(),
        # Out of the terminal's reach: Ctrl-C is for the supervisor, which tells its workers.
        process_group=0,
    )


def _environment() -> dict[str, str]:
    """Ours; where fastgw runs from a source tree, the child must find that, too: it does not look
    into the working directory, which may be anybody's."""
    environ = dict(os.environ)
    root = str(Path(fastgw.__file__).parents[1])
    if Path(root).name not in ("site-packages", "dist-packages"):
        have = environ.get("PYTHONPATH")
        environ["PYTHONPATH"] = f"{root}{os.pathsep}{have}" if have else root
    return environ
