"""The first half of an exchange: from the head of a request to the request at the provider.

    read_head -> authenticate, route (plan) -> body -> admit -> acquire -> send

`exchange` has the other half, and the words that both use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from fastgw import clock
from fastgw.callbacks import Callbacks
from fastgw.errors import ModelNotAllowed, Overloaded, Refusal
from fastgw.http1.body import LAST_CHUNK, chunk
from fastgw.http1.request import UNSIZED
from fastgw.http1.serialize import own_answer
from fastgw.inspection import KEEP_PROMPT, inspect, unread
from fastgw.keyring import key_info
from fastgw.policy.limit_headers import exceeded
from fastgw.upstream.pool import Ticket
from fastgw.usage.meter import UNMETERED
from fastgw.usage.request import HUGE

if TYPE_CHECKING:
    from fastgw.cutoff import Watch
    from fastgw.downstream.connection import DownstreamConnection
    from fastgw.engine import Engine
    from fastgw.http1.request import RequestHead
    from fastgw.plan import Plan
    from fastgw.policy.account import Account, Promise
    from fastgw.relay import Relay
    from fastgw.reservation import Reservation
    from fastgw.upstream.connection import UpstreamConnection
    from fastgw.usage.meter import Meter, Metered

PIECE: Final = 64
"""Bytes that a piece of a body takes in memory beside its own: a body may come in pieces of one."""

_monotonic: Final = clock.monotonic
_wall: Final = clock.wall


class Asking(Callbacks):
    """See the module. `Exchange` is the only one; it says how an exchange ends."""

    __slots__ = (
        "_accounts", "_asked_without", "_body", "_body_done", "_body_size", "_connection", "_cors",
        "_engine", "_held", "_injected", "_kept", "_length", "_meter", "_pieces", "_promises",
        "_prompt", "_relay", "_reservation", "_retried", "_rough", "_ticket", "_told", "_upstream",
        "_wants_usage", "_watch",
        "began", "bytes_out", "first_byte", "model", "phase", "plan", "request", "request_id",
        "sent", "status", "streams",
    )  # fmt: skip

    def __init__(
        self, engine: Engine, connection: DownstreamConnection, request: RequestHead, length: int
    ) -> None:
        self._engine = engine
        self._connection = connection
        self.request = request
        self._length = length
        self.plan: Plan | None = None
        self.phase = "read_head"
        self.began = _monotonic()
        # what the body says
        self.model = ""
        self.streams = False
        self._pieces: list[bytes] = []
        self._held = self._kept = 0  # of the engine's `held`, and of its `kept`
        self._body_size = 0
        self._body_done = False
        self._body, self._injected = b"", False
        self._prompt = self._rough = -1
        self._cors = b""
        # where it stands
        self._accounts: tuple[Account, ...] = ()
        self._reservation: Reservation | None = None
        self._promises: list[Promise] = []
        self._ticket: Ticket | None = None
        self._upstream: UpstreamConnection | None = None
        self._retried = False
        self._asked_without = False  # the option, after the provider rejected the request with it
        self._meter: Meter | None = None
        self._watch: Watch | None = None  # where a budget may end the stream
        self._wants_usage = False
        self._relay: Relay | None = None
        self._told = 0  # reports of the meter that were charged
        self.request_id = b""
        self.status = 0
        self.sent = 0.0
        self.first_byte = 0.0
        self.bytes_out = 0

    # authenticate and route

    def start(self) -> None:
        """The head is here: find the key and the route, or refuse."""
        engine = self._engine
        request = self.request
        plan: Plan | None = request.plan
        try:
            if engine.cors.on:
                self._cors = engine.cors.fields(request)
                if (preflight := engine.cors.preflight(request)) is not None:
                    self._answer(204, preflight)
                    return
            if plan is None or plan.generation != engine.planner.generation:
                self.phase = "authenticate"
                plan = engine.planner.plan(request, _wall(), self._connection.address)
                request.plan = plan
            elif not plan.key.timeless and not plan.key.valid_at(_wall()):
                plan = request.plan = None
                plan = engine.planner.plan(request, _wall(), self._connection.address)
            self.plan = plan
            self.request_id = plan.request_id or engine.new_id()
            if plan.informs:
                self._inform()
                return
            self.phase = "body"
            if not plan.buffered:
                self._admit_head()
            elif not self._body_done:
                self._connection.invite_body()
        except Refusal as refusal:
            self._refuse(refusal)

    def reject(self, refusal: Refusal) -> None:
        """As `start`, for a request that cannot be served whoever sent it."""
        engine = self._engine
        try:
            self._cors = engine.cors.fields(self.request) if engine.cors.on else b""
            self.plan = engine.planner.plan(self.request, _wall(), self._connection.address)
        except Refusal as other:
            refusal = other
        self._refuse(refusal)

    def _inform(self, asked: bool = False) -> None:
        """A key asks about itself: tell it, once its accounts were asked for."""
        plan, engine = self.plan, self._engine
        assert plan is not None
        self.phase = "inform"
        now = _wall()
        standing = engine.planner.standing(plan, now)
        accounts = [account for _, account in standing if account is not None]
        if engine.ledger.stale(accounts, now) and engine.settlement.up and not asked:
            engine.settlement.wait(self, accounts, now)
            return
        fields = b"content-type: application/json\r\ncache-control: no-store\r\n" + self._cors
        self._answer(200, fields, key_info(plan.key, standing, now))

    def _answer(self, status: int, fields: bytes, body: bytes = b"") -> None:
        """Answer from here; `fields` are header lines, each with CRLF."""
        connection, request = self._connection, self.request
        self.status = status
        if not self.request_id:
            self.request_id = self.request.request_id or self._engine.new_id()
        closing = not request.keep_alive or connection.closes_after_answer
        connection.write(
            own_answer(status, self.request_id, fields, body, closing, request.method == b"HEAD")
        )
        self.bytes_out = len(body)
        self._finish("ok", UNMETERED)
        connection.done(not closing)

    # body

    def on_body(self, data: bytes, last: bool) -> None:
        """The next bytes of the request body."""
        plan = self.plan
        if plan is None or self.phase == "finished":
            return
        self._body_done = last
        if not plan.buffered:
            self._upload(data, last)
            return
        if last and not self._pieces:
            self._inspect(plan, data)
            return
        if not self._hold(len(data) + PIECE):
            return
        self._pieces.append(data)
        if last:
            body = b"".join(self._pieces)
            self._pieces.clear()
            self._inspect(plan, body)

    def _hold(self, size: int) -> bool:
        """Count body bytes that wait in memory; refuse where all bodies together are too large."""
        engine = self._engine
        self._held += size
        engine.held += size
        if engine.held <= engine.max_held:
            return True
        self._pieces.clear()
        self._refuse(Overloaded("too many large request bodies at once; try again"))
        return False

    def _let_go(self) -> None:
        """The body waits no more: what is held of it now is what is kept."""
        self._engine.held -= self._held - self._kept
        self._held = self._kept

    def _inspect_large(self, plan: Plan, body: bytes) -> None:
        """As any body. It is kept until the answer is over, for a count that is rarely needed;
        where all that are kept would be too large, it is counted now, and let go once it is sent.
        """
        engine = self._engine
        size = len(body)
        crowded = plan.metered and engine.kept + size > engine.max_kept
        plain = plan.plain and not crowded and size <= HUGE
        (
            self._body, self.model, self.streams, self._injected, self._prompt,
            self._reservation, self._wants_usage,
        ) = inspect(plan, self.request, body, plain, crowded)  # fmt: skip
        if self._prompt >= 0:
            return
        size = len(self._body)
        if not plan.metered:
            self._prompt = 0  # nobody will ask
        elif engine.kept + size <= engine.max_kept:
            self._kept = size
            engine.kept += size
            if size > self._held:
                engine.held += size - self._held
                self._held = size
        else:
            self._count_prompt()

    def _give_up(self) -> None:
        """Nothing is held or kept of the body any more."""
        self._engine.kept -= self._kept
        self._kept = 0
        self._let_go()

    def _inspect(self, plan: Plan, body: bytes) -> None:
        """The whole body is here: what does it ask for, and may it?"""
        try:
            if len(body) > KEEP_PROMPT:
                self._inspect_large(plan, body)
            else:
                (
                    self._body, self.model, self.streams, self._injected, self._prompt,
                    self._reservation, self._wants_usage,
                ) = inspect(plan, self.request, body, plan.plain)  # fmt: skip
            self._begin_admission()
        except Refusal as refusal:
            if isinstance(refusal, ModelNotAllowed):
                self.model = refusal.model
            self._refuse(refusal)

    def _admit_head(self) -> None:
        """The body is not looked at: admit on the head alone."""
        if self.plan is not None and self.plan.reserves:
            self._reservation = unread(self.plan, self._length)
        self._begin_admission()
        if self.phase != "finished":
            self._connection.invite_body()

    def on_broken_body(self, refusal: Refusal) -> None:
        """The rest of the body will not come."""
        if self._relay is not None:
            self._end("client_body", complete=False)
        else:
            self._refuse(refusal)

    # admit

    def _begin_admission(self) -> None:
        plan = self.plan
        assert plan is not None
        self.phase = "admit"
        if plan.metered:
            now = _wall()
            accounts = plan.accounts.get(self.model)
            if accounts is None:
                accounts = self._engine.planner.accounts(plan, self.model, now)
            self._accounts = accounts
            if accounts:
                engine = self._engine
                if self._reservation is not None:
                    if plan.in_usd:
                        self._reservation.price(engine.planner.price(plan, self.model))
                    self._reserve()
                    return
                up = engine.settlement.up
                if not up or not engine.ledger.passes(accounts, now):
                    if engine.ledger.stale(accounts, now) and up:
                        engine.settlement.wait(self, accounts, now)
                        return
                    self._decide()
                    return
        self._acquire()

    def admit(self) -> None:
        """The accounts are known now, or the store is away: decide."""
        try:
            if self.phase == "admit":
                if self._reservation is not None:
                    self._reserve()
                else:
                    self._decide()
            elif self.phase == "inform":
                self._inform(asked=True)
            # else the client left meanwhile
        except Refusal as refusal:
            self._refuse(refusal)

    def _decide(self) -> None:
        engine = self._engine
        if not engine.settlement.up and engine.on_failure != "local":
            engine.may_go_on()
            engine.ledger.admit(self._accounts)
        else:
            full = engine.ledger.refuses(self._accounts)
            if full is not None:
                raise exceeded(full, _wall())
        self._acquire()

    def _reserve(self) -> None:
        """As `_decide`, where a budget has a hard cap."""
        engine, reservation = self._engine, self._reservation
        assert reservation is not None
        if not engine.settlement.up:
            engine.may_go_on()
        if reservation.decide(engine, self, self._accounts, _wall()):
            self._promises = reservation.promises
            if reservation.clamped:
                self._body = orjson.dumps(reservation.message)
            self._acquire()

    def fail(self) -> None:
        """A fault of ours as the wait for the store was over."""
        if self.phase != "finished":
            self._refuse(Refusal("a fault of the gateway; its log has the reason"))

    # acquire and send

    def _acquire(self, fresh: bool = False) -> None:
        plan = self.plan
        assert plan is not None
        self.phase = "acquire"
        got = plan.pool.acquire(self, fresh)
        if isinstance(got, Ticket):
            self._ticket = got
        else:
            self._send(got)

    def on_acquired(self, connection: UpstreamConnection) -> None:
        """A connection to the provider is ours."""
        self._ticket = None
        self._send(connection)

    def on_acquire_failure(self, reason: str) -> None:
        """No connection to be had."""
        self._ticket = None
        self.on_upstream_failure(reason)

    def _send(self, connection: UpstreamConnection) -> None:
        plan = self.plan
        assert plan is not None
        self.phase = "send"
        self._upstream = connection
        if plan.buffered:
            if self._held:
                self._send_large(connection, plan)
                return
            data = b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (
                plan.head,
                self.request_id,
                len(self._body),
                self._body,
            )
            whole = True
            if self._prompt >= 0 and not self._injected:
                self._body = b""  # counted already, or of no more use
        else:
            whole = self._body_done
            data = b"%bx-request-id: %b\r\n%b\r\n%b" % (
                plan.head,
                self.request_id,
                self._framing(),
                self._upload_bytes(whole),
            )
        self.sent = _monotonic()
        self._connection.resume_body()  # before the provider has a say in it
        connection.send(self, self.request.method, data, whole)

    def _send_large(self, connection: UpstreamConnection, plan: Plan) -> None:
        """As `_send`, where the body is held: no copy of it is made to stand behind the head."""
        head = b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (
            plan.head,
            self.request_id,
            len(self._body),
        )
        self.sent = _monotonic()
        self._connection.resume_body()
        connection.send_apart(self, self.request.method, head, self._body)
        if self._prompt >= 0 and not self._injected:
            self._body = b""  # counted already, or of no more use
        if not self._kept and not connection.unsent:
            self._let_go()

    def _framing(self) -> bytes:
        if self._length == UNSIZED:
            return b"transfer-encoding: chunked\r\n"
        return b"content-length: %d\r\n" % self._length if self.request.has_length else b""

    def _upload(self, data: bytes, last: bool) -> None:
        """A body that is passed on as it comes."""
        self._pieces.append(data)
        self._body_size += len(data)
        upstream = self._upstream
        if upstream is not None:
            upstream.send_body(self._upload_bytes(last), last)
        elif self._body_size > self._engine.buffer_size:
            self._connection.pause_body()

    def _upload_bytes(self, last: bool) -> bytes:
        data = b"".join(self._pieces)
        self._pieces.clear()
        if self._length != UNSIZED:
            return data
        framed = chunk(data) if data else b""
        return framed + LAST_CHUNK if last else framed

    # what the other half says

    def _end(self, reason: str, complete: bool) -> None:
        raise NotImplementedError

    def _refuse(self, refusal: Refusal) -> None:
        raise NotImplementedError

    def _count_prompt(self) -> int:
        raise NotImplementedError

    def _finish(self, reason: str, verdict: Metered) -> None:
        raise NotImplementedError
