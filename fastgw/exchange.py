"""One request and its answer: the journey of the architecture, in order.

    read_head -> authenticate, route (plan) -> body -> admit -> acquire -> send -> relay -> settle
    -> finish

An exchange is driven from three sides: the client's connection (`on_body`, `on_disconnect` …), the
provider's (`on_response` …) and the settlement (`admit`). It has one exit, `_finish`, reached from
every path, that settles without waiting and cannot fail: whatever ended the exchange, what it cost
is debited once.

`phase` says where it is; `reason` how it ended: ok, a code, or a word of docs/errors.md.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import orjson

from fastgw import clock
from fastgw.errors import Overloaded, Refusal, upstream_failure
from fastgw.http1.body import LAST_CHUNK, chunk
from fastgw.http1.request import UNSIZED
from fastgw.http1.serialize import own_answer
from fastgw.inspection import REJECTED, inspect, unless_rejected, unread, without_asking
from fastgw.keyring import key_info
from fastgw.model import Usage
from fastgw.policy.limit_headers import exceeded, limit_fields
from fastgw.relay import STREAMS, EditedRelay, Relay, make_meter, whole_answer
from fastgw.reservation import charge_so_far
from fastgw.upstream.pool import Ticket
from fastgw.usage.meter import UNMETERED, Metered, read_answer

if TYPE_CHECKING:
    from fastgw.downstream.connection import DownstreamConnection
    from fastgw.engine import Engine
    from fastgw.http1.request import RequestHead
    from fastgw.http1.response import ResponseHead
    from fastgw.plan import Plan
    from fastgw.policy.account import Account, Promise
    from fastgw.reservation import Reservation
    from fastgw.upstream.connection import UpstreamConnection
    from fastgw.usage.meter import Meter

log = logging.getLogger(__name__)


class Exchange:
    """See the module."""

    __slots__ = (
        "_accounts", "_body", "_body_done", "_body_size", "_connection", "_cors", "_engine",
        "_held", "_injected", "_length", "_meter", "_pieces", "_promises", "_prompt", "_relay",
        "_reservation", "_retried", "_ticket", "_upstream", "began", "bytes_out", "first_byte",
        "model", "phase", "plan", "request", "request_id", "sent", "status", "streams",
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
        self.began = clock.monotonic()
        # what the body says
        self.model = ""
        self.streams = False
        self._pieces: list[bytes] = []
        self._held = 0  # of the engine's `held`
        self._body_size = 0
        self._body_done = False
        self._body, self._injected = b"", False
        self._prompt = -1
        self._cors = b""
        # where it stands
        self._accounts: tuple[Account, ...] = ()
        self._reservation: Reservation | None = None
        self._promises: list[Promise] = []
        self._ticket: Ticket | None = None
        self._upstream: UpstreamConnection | None = None
        self._retried = False
        self._meter: Meter | None = None
        self._relay: Relay | None = None
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
                plan = engine.planner.plan(request, clock.wall(), self._connection.address)
                request.plan = plan
            elif not plan.key.timeless and not plan.key.valid_at(clock.wall()):
                plan = request.plan = None
                plan = engine.planner.plan(request, clock.wall(), self._connection.address)
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

    def _inform(self, asked: bool = False) -> None:
        """A key asks about itself: tell it, once its accounts were asked for."""
        plan, engine = self.plan, self._engine
        assert plan is not None
        self.phase = "inform"
        now = clock.wall()
        accounts = engine.planner.known_accounts(plan, now)
        if engine.ledger.stale(accounts, now) and engine.settlement.up and not asked:
            engine.settlement.wait(self, accounts, now)
            return
        fields = b"content-type: application/json\r\ncache-control: no-store\r\n" + self._cors
        self._answer(200, fields, key_info(plan.key, accounts, now))

    def _answer(self, status: int, fields: bytes, body: bytes = b"") -> None:
        """Answer from here; `fields` are header lines, each with CRLF."""
        connection, request = self._connection, self.request
        self.status = status
        if not self.request_id:
            self.request_id = self._engine.new_id()
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
            self._inspect(data)
            return
        if not self._hold(len(data)):
            return
        self._pieces.append(data)
        if last:
            body = b"".join(self._pieces)
            self._pieces.clear()
            self._inspect(body)

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
        self._engine.held -= self._held
        self._held = 0

    def _inspect(self, body: bytes) -> None:
        """The whole body is here: what does it ask for, and may it?"""
        plan = self.plan
        assert plan is not None
        try:
            self._body, self.model, self.streams, self._injected, self._prompt, reserved = inspect(
                plan, self.request, body
            )
            self._reservation = reserved
            self._begin_admission()
        except Refusal as refusal:
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
            now = clock.wall()
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
                if engine.ledger.stale(accounts, now) and engine.settlement.up:
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
                raise exceeded(full, clock.wall())
            engine.settlement.wake()
        self._acquire()

    def _reserve(self) -> None:
        """As `_decide`, where a budget has a hard cap."""
        engine, reservation = self._engine, self._reservation
        assert reservation is not None
        if not engine.settlement.up:
            engine.may_go_on()
        if reservation.decide(engine, self, self._accounts, clock.wall()):
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
            data = b"%bx-request-id: %b\r\ncontent-length: %d\r\n\r\n%b" % (
                plan.head,
                self.request_id,
                len(self._body),
                self._body,
            )
            whole = True
            if self._prompt >= 0 and not self._injected:
                self._body = b""  # large, and counted already
        else:
            whole = self._body_done
            data = b"%bx-request-id: %b\r\n%b\r\n%b" % (
                plan.head,
                self.request_id,
                self._framing(),
                self._upload_bytes(whole),
            )
        self.sent = clock.monotonic()
        connection.send(self, self.request.method, data, whole)
        if self._held and not connection.unsent:
            self._let_go()
        self._connection.resume_body()

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

    # relay

    def on_response(self, head: ResponseHead, body: bytes, ended: bool) -> None:
        """The provider's head is here, with the part of the body that came with it."""
        plan = self.plan
        assert plan is not None
        self.phase = "relay"
        self.status = head.status
        if self._held:
            self._let_go()
        if body:
            self.first_byte = clock.monotonic()
        rejected = self._injected and head.status in REJECTED and not head.encoding
        if rejected and ended and self._ask_again(body):
            return
        connection = self._connection
        request = self.request
        extra = b"%b%bx-request-id: %b\r\nrequest-id: %b\r\n" % (
            self._cors,
            limit_fields(self._accounts, clock.wall()) if self._accounts else b"",
            self.request_id,
            self.request_id,
        )
        closes = connection.closes_after_answer or not request.keep_alive
        if ended and head.media not in STREAMS and not head.encoding and plan.edit is None:
            # All of it at once, as most buffered answers come: no relay, no meter to set up.
            connection.write(whole_answer(request, head, extra, body, closes))
            self.bytes_out = len(body)
            self._upstream = None
            verdict = UNMETERED
            if plan.reads and head.status < 400:
                verdict = read_answer(plan.api, body, plan.counts, plan.echoes, self._count_prompt)
            self._finish("upstream_error_event" if verdict.error else "ok", verdict)
            connection.done(not closes)
            return
        meter = self._meter = make_meter(plan, head, self._injected)
        strips = self._injected and head.status < 400 and not head.encoding
        edit = unless_rejected if rejected else plan.edit if head.status < 300 else None
        if edit is not None:
            relay: Relay = EditedRelay(connection.write, request, head, edit, closing=closes)
        else:
            relay = Relay(connection.write, request, head, strips=strips, closing=closes)
        self._relay = relay
        if relay.strips:
            out = meter.feed(body) if body else b""
            if ended:
                out += meter.rest()
            relay.begin(request, head, extra, out, ended)
        else:
            relay.begin(request, head, extra, body, ended)
            if body:
                meter.feed(body)
        if ended:
            self._upstream = None
            self._end("ok", complete=True)

    def on_response_body(self, body: bytes, framed: bytes | None, ended: bool) -> None:
        """More of the answer."""
        relay, meter = self._relay, self._meter
        assert relay is not None
        assert meter is not None
        if not self.first_byte:
            self.first_byte = clock.monotonic()
        if relay.strips:
            out = meter.feed(body) if body else b""
            if ended:
                out += meter.rest()
            if out or ended:
                relay.body(out, framed if out is body else None, ended)
        else:
            relay.body(body, framed, ended)
            if body:
                meter.feed(body)
        if ended:
            self._upstream = None
            self._end("ok", complete=True)

    def _ask_again(self, answer: bytes) -> bool:
        """The provider rejects the request: send it again if that is for what we added."""
        if self.plan is None or (body := without_asking(self.plan, self._body, answer)) is None:
            return False
        self._body, self._injected = body, False
        self._relay = self._meter = self._upstream = None
        self._acquire()
        return True

    def on_upstream_failure(self, reason: str) -> None:
        """No (more) answer from the provider."""
        upstream, self._upstream = self._upstream, None
        plan, relay = self.plan, self._relay
        if relay is None or not relay.begun:
            if (
                reason == "reset"
                and relay is None
                and upstream is not None
                and upstream.reused
                and not self._retried
                and self.request.method in (b"GET", b"HEAD")
                and not self._length
            ):
                # A kept connection that died as it was used again (RFC 9110, 9.2.2).
                self._retried = True
                self._acquire(fresh=True)
                return
            self._refuse(upstream_failure(reason))
            return
        if relay.streams and self._meter is not None and self._meter.between_events:
            relay.error_event(upstream_failure("cut"), plan.api.shape if plan else "openai")
        self._end("upstream_stalled" if reason == "stalled" else "upstream_cut", complete=False)

    # back-pressure

    def on_client_full(self) -> None:
        """The client does not take what was written."""
        if self._upstream is not None:
            self._upstream.pause()

    def on_client_ready(self) -> None:
        """The client takes bytes again."""
        if self._upstream is not None:
            self._upstream.resume()

    def on_upstream_full(self) -> None:
        """The provider does not take the upload."""
        self._connection.pause_body()

    def on_upstream_ready(self) -> None:
        """The provider takes bytes again."""
        self._connection.resume_body()

    # ends

    def on_disconnect(self, reason: str = "client_disconnected") -> None:
        """The client is gone: stop the provider at once; what was sent is charged."""
        if self.phase != "finished":
            self._finish(reason, self._verdict(complete=False))

    def overdue(self, now: float) -> None:
        """Once a second: cut an exchange that runs longer than the upstream's `total_timeout`, and
        charge a stream for what has passed."""
        plan = self.plan
        if (
            plan is not None
            and self._upstream is not None
            and now - self.began > plan.pool.settings.total_timeout
        ):
            self._upstream.close()
            self.on_upstream_failure("stalled" if self._relay is not None else "timeout")
        elif self._meter is not None and self._accounts and (made := self._meter.so_far()):
            # Others see a long answer eat the budget while it is written, and the journal keeps it.
            usage = Usage(self._count_prompt(), made, source="counted")
            usage = self._engine.planner.priced(plan, self.model, usage)
            self._promises = charge_so_far(self._engine, self._accounts, self._promises, usage)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with a refusal; nothing was relayed yet."""
        if self.phase == "finished":
            return
        connection = self._connection
        self.status = refusal.status
        if not self.request_id:
            self.request_id = self._engine.new_id()
        closing = refusal.closes or not self.request.keep_alive or connection.closes_after_answer
        connection.write(
            self._engine.refusal(
                refusal,
                self.request_id,
                closing=closing,
                head_only=self.request.method == b"HEAD",
                fields=self._cors,
                request=self.request,
            )
        )
        self._finish(refusal.code, UNMETERED)
        connection.done(not closing)

    def _end(self, reason: str, complete: bool) -> None:
        """The answer is over, whole or not."""
        if complete and self._relay is not None and not self._relay.begun:
            if not (self._injected and self._ask_again(self._relay.kept)):
                self._refuse(upstream_failure("unreadable"))
            return
        verdict = self._verdict(complete)
        if verdict.error and reason == "ok":
            reason = "upstream_error_event"
        relay = self._relay
        self._finish(reason, verdict)
        if complete and relay is not None:
            self._connection.done(not relay.closes)
        else:
            self._connection.cut(flush=self.request.minor == 1)

    def _verdict(self, complete: bool) -> Metered:
        """What the exchange cost."""
        plan = self.plan
        if self._meter is not None:
            return self._meter.finish(complete, self._count_prompt)
        if plan is not None and plan.metered and plan.operation and self._upstream is not None:
            # The provider has the prompt, and the client left before the answer began.
            return self._engine.prompt_only(self._count_prompt())
        return UNMETERED

    def _count_prompt(self) -> int:
        if self._prompt < 0:
            self._prompt = self._engine.count_prompt(self._body, self.plan)
        return self._prompt

    def _finish(self, reason: str, verdict: Metered) -> None:
        """The one exit: settle, tell, let go."""
        self.phase = "finished"
        engine = self._engine
        if self._relay is not None:
            self.bytes_out = self._relay.sent
        if self._accounts and self.plan is not None and self.plan.in_usd:
            usage = engine.planner.priced(self.plan, self.model, verdict.usage, verdict.model)
            verdict = verdict._replace(usage=usage)
        if self._promises:
            engine.ledger.charge(self._promises, verdict.usage, clock.wall())
            engine.ledger.release(self._promises)
            engine.settlement.wake()
        elif self._accounts and verdict.usage.source != "none":
            engine.ledger.debit(self._accounts, verdict.usage, clock.wall())
            engine.settlement.wake()
        if self._held:
            self._let_go()
        if self._ticket is not None:
            self._ticket.cancel()
            self._ticket = None
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        try:
            engine.recorder.record(self, self._connection, reason, verdict)
        except Exception:
            log.exception("an exchange could not be recorded")

    def __repr__(self) -> str:
        return f"<Exchange {self.request_id.decode()} {self.phase}>"
