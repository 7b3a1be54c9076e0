"""One request and its answer: the journey of the architecture, in order.

    read_head -> authenticate, route (plan) -> body -> admit -> acquire -> send    `asking`
    -> relay -> settle -> finish                                                   here

An exchange is driven from three sides: the client's connection (`on_body`, `on_disconnect` …), the
provider's (`on_response` …) and the settlement (`admit`). It has one exit, `_finish`, reached from
every path, that settles without waiting and cannot fail: whatever ended the exchange, what it cost
is debited once. What ends an answer is charged before it leaves: who has it whole was charged,
though the process be killed in between.

`phase` says where it is; `reason` how it ended: ok, a code, or a word of docs/errors.md.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from fastgw import clock
from fastgw.asking import Asking
from fastgw.cutoff import Watch, watched
from fastgw.errors import Overloaded, Refusal, upstream_failure
from fastgw.inspection import REJECTED, unless_rejected, without_asking
from fastgw.model import Usage
from fastgw.policy.account import Promise
from fastgw.policy.limit_headers import exceeded, limit_fields
from fastgw.relay import STREAMS, EditedRelay, Relay, make_meter, whole_answer
from fastgw.usage.answer import read_answer
from fastgw.usage.estimate import BYTES_PER_TOKEN
from fastgw.usage.meter import UNMETERED, Metered
from fastgw.usage.watched import WatchedMeter

if TYPE_CHECKING:
    from fastgw.http1.response import ResponseHead
    from fastgw.usage.meter import Meter

log = logging.getLogger(__name__)

_monotonic: Final = clock.monotonic
_wall: Final = clock.wall


UNREAD: Final = "an exchange could not be read; its bytes are charged"


class Exchange(Asking):
    """See the module."""

    __slots__ = ()

    # relay

    def on_response(self, head: ResponseHead, body: bytes, ended: bool) -> None:
        """The provider's head is here, with the part of the body that came with it."""
        plan = self.plan
        assert plan is not None
        self.status = head.status
        if self.phase == "drain":
            self._meter = make_meter(plan, head, self._injected)
            self.on_response_body(body, None, ended)
            return
        self.phase = "relay"
        if self._held:
            self._let_go()
        if (
            self._asked_without
            and head.status < 400
            and head.media in STREAMS  # else it took the request for none, and rejected that
            and plan.asks_usage is not None
        ):
            plan.asks_usage.rejected(self.model)  # it knows no such option; until the next reload
        if body:
            self.first_byte = _monotonic()
        rejected = self._injected and head.status in REJECTED and not head.encoding
        if rejected and ended and self._ask_again(body):
            return
        connection = self._connection
        request = self.request
        extra = b"%b%bx-request-id: %b\r\nrequest-id: %b\r\n" % (
            self._cors,
            limit_fields(self._accounts, _wall()) if self._accounts else b"",
            self.request_id,
            self.request_id,
        )
        closes = connection.closes_after_answer or not request.keep_alive
        if (
            ended
            and head.media not in STREAMS
            and not head.encoding
            and plan.edit is None
            and not (plan.cuts and self.streams)
        ):
            # All of it at once, as most buffered answers come: no relay, no meter to set up.
            self.bytes_out = len(body)
            self._upstream = None
            verdict = UNMETERED
            if plan.reads and head.status < 400:
                try:
                    verdict = read_answer(plan.api, body, plan.counts, self._count_prompt)
                except Exception:
                    log.exception(UNREAD)
                    verdict = self._guessed(len(body))
            verdict = self._pay(verdict)
            connection.write(whole_answer(request, head, extra, body, closes))
            self._finish("upstream_error_event" if verdict.error else "ok", verdict)
            connection.done(not closes)
            return
        meter = self._meter = make_meter(plan, head, self._injected)
        strips = self._injected and head.status < 400 and not head.encoding
        edit = unless_rejected if rejected else plan.edit if head.status < 300 else None
        if edit is not None:
            relay: Relay = EditedRelay(connection.write, request, head, edit, closing=closes)
        else:
            self._watch = self._watched(meter) if plan.cuts else None
            cuts = self._watch is not None
            relay = Relay(connection.write, request, head, strips=strips, closing=closes, cuts=cuts)
        self._relay = relay
        watch = self._watch
        if watch is None:
            out = meter.feed(body) if body else b""
        else:
            out = watch.feed(body)
            if watch.full is not None:
                verdict, end = self._cut_off(watch, ended)
                relay.begin(request, head, extra, out + end, True)
                self._was_cut(verdict)
                return
        if not ended:
            if meter.told:
                self._charge_so_far()
            if connection.full and self._upstream is not None:
                self._upstream.pause()  # full with the answer before, when there was none to pause
            relay.begin(request, head, extra, out, False)
            return
        self._upstream = None
        out += meter.rest()
        if not relay.begun:
            relay.begin(request, head, extra, out, True)
            self._end("ok", complete=True)
            return
        verdict = self._pay(self._verdict(complete=True))
        relay.begin(request, head, extra, out, True)
        self._over(verdict)

    def on_response_body(self, body: bytes, framed: bytes | None, ended: bool) -> None:
        """More of the answer."""
        relay, meter, watch = self._relay, self._meter, self._watch
        assert meter is not None
        if not self.first_byte:
            self.first_byte = _monotonic()
        if watch is None:
            out = meter.feed(body) if body else b""
            if framed is not None and out is body and relay is not None and relay.passes:
                # A chunk that passes as it is, as most of a stream.
                if meter.told != self._told:
                    self._charge_so_far()
                relay.sent += len(body)
                relay.write(framed)
                return
        else:
            out = watch.feed(body)
            if watch.full is not None:
                if relay is None:  # the client has left, and no more of it is paid for
                    if ended:
                        self._upstream = None
                    self.stop_draining()
                    return
                verdict, end = self._cut_off(watch, ended)
                relay.body(out + end, None, True)
                self._was_cut(verdict)
                return
        if not ended:
            if meter.told != self._told:
                self._charge_so_far()
            if relay is None:
                if not self._engine.drains.goes_on(self, len(body)):
                    self.stop_draining()
            elif out:
                relay.body(out, framed if out is body else None, False)
            return
        self._upstream = None
        out += meter.rest()
        if relay is not None and not relay.begun:
            relay.body(out, None, True)
            self._end("ok", complete=True)
            return
        verdict = self._pay(self._verdict(complete=True))
        if relay is not None:
            relay.body(out, None, True)
        self._over(verdict)

    def _ask_again(self, answer: bytes) -> bool:
        """The provider rejects the request: send it again if that is for what we added."""
        if self.plan is None or (body := without_asking(self.plan, self._body, answer)) is None:
            return False
        self._body, self._injected, self._asked_without = body, False, True
        self._relay = self._meter = self._upstream = None
        self.first_byte = 0.0
        self._acquire()
        return True

    def on_upstream_failure(self, reason: str) -> None:
        """No (more) answer from the provider."""
        if self.phase == "finished":
            return
        upstream, self._upstream = self._upstream, None
        if self.phase == "drain":
            self.stop_draining()
            return
        relay = self._relay
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
        stalled = reason == "stalled"
        self._tell(relay, upstream_failure("stalled" if stalled else "cut"))
        self._end("upstream_stalled" if stalled else "upstream_cut", complete=False)

    def _tell(self, relay: Relay, refusal: Refusal) -> None:
        """Say in a stream why it ends, if no event is half written."""
        if relay.streams and self._meter is not None and self._meter.between_events:
            shape = self.plan.api.shape if self.plan is not None else "openai"
            relay.error_event(refusal, shape, self.request_id)

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
        if self.phase != "drain":
            self._connection.pause_body()

    def on_upstream_ready(self) -> None:
        """The provider takes bytes again."""
        if self.phase != "drain":
            self._connection.resume_body()

    # ends

    def on_shutdown(self) -> None:
        """The worker waited long enough. What was sent is charged, and the client told why this is
        all: by an answer, by an event of its stream, or by an answer without its end."""
        if self.phase == "finished":
            return
        relay = self._relay
        refusal = Overloaded("the gateway is stopping; try again", (("retry-after", "1"),))
        if relay is None or not relay.begun:
            self._refuse(refusal, "shutdown", self._pay(self._verdict(complete=False)))
        else:
            self._tell(relay, refusal)
            self._end("shutdown", complete=False)

    def on_disconnect(self) -> None:
        """The client is gone. Stop the provider at once, and charge what was sent; or, if the
        upstream says so, read on to the usage that it reports at the end."""
        if self.phase == "finished":
            return
        if self._engine.drains.take(self):
            if self._relay is not None:
                self.bytes_out = self._relay.sent
                self._relay = None
            self.phase = "drain"
            assert self._upstream is not None
            self._upstream.resume()
            return
        self._finish("client_disconnected", self._verdict(complete=False))

    @property
    def drains(self) -> bool:
        """Whether the provider has the request and would tell what it costs."""
        plan = self.plan
        return (
            plan is not None
            and plan.reads
            and self._upstream is not None
            and (plan.buffered or self._body_done)
            and self.status < 400
        )

    def stop_draining(self) -> None:
        """Enough, or nothing more comes: what came is charged."""
        self._finish("client_disconnected", self._verdict(complete=False))

    def overdue(self, now: float) -> None:
        """Once a second: cut an exchange that runs longer than the upstream's `total_timeout`, and
        charge a stream for what has passed: others see a long answer eat the budget while it is
        written, and the journal keeps it."""
        plan = self.plan
        if (
            plan is not None
            and self._upstream is not None
            and now - self.began > plan.pool.settings.total_timeout
        ):
            self._upstream.close()
            self.on_upstream_failure("stalled" if self._relay is not None else "timeout")
        elif self._meter is not None:
            try:
                self._charge_so_far()
            except Exception:  # the others have their turn; its end charges it
                log.exception("a running exchange could not be charged")

    def _charge_so_far(self) -> None:
        meter, accounts = self._meter, self._accounts
        if meter is None or not accounts:
            return
        self._told = meter.told
        if self._watch is not None:
            usage = self._watch.count()
        else:
            usage = self._priced(meter.interim(self._rough_prompt))
        if usage.source == "none":
            return
        engine = self._engine
        if not self._promises:
            self._promises = [Promise(account) for account in accounts]
        exact = self._watch is not None
        engine.ledger.charge(self._promises, usage, _wall(), final=exact)

    def _priced(self, usage: Usage, answered: str = "") -> Usage:
        return self._engine.planner.priced(self.plan, self.model, usage, answered)

    # streams that a budget ends

    def _watched(self, meter: Meter) -> Watch | None:
        """What watches a stream that may cross a budget which cuts; None where none may."""
        engine = self._engine
        if not isinstance(meter, WatchedMeter) or not self._accounts:
            return None
        if engine.on_failure == "open" and not engine.settlement.up:
            return None
        if not self._promises:
            self._promises = [Promise(account) for account in self._accounts]
        reservation = self._reservation
        bound = reservation.estimate if reservation is not None and reservation.bounded else None
        found = watched(self._promises, bound)
        if not found:
            return None
        return Watch(meter, found, self._count_prompt, self._priced, self._charge_so_far)

    def _cut_off(self, watch: Watch, ended: bool) -> tuple[Metered, bytes]:
        """The stream has crossed a budget: stop the provider, charge what the client gets. Returns
        that, and the events that end the stream."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None and not ended:
            upstream.close()
        assert watch.full is not None
        verdict = self._verdict(complete=False)
        # The provider may report more than the client gets: what passed is charged.
        verdict = verdict._replace(usage=verdict.usage._replace(source="counted"))
        verdict = self._pay(verdict)
        refusal = exceeded(watch.full, _wall())
        shape = self.plan.api.shape if self.plan is not None else "openai"
        return verdict, watch.final(refusal, verdict.usage, self._wants_usage, shape)

    def _was_cut(self, verdict: Metered) -> None:
        relay = self._relay
        assert relay is not None
        self._finish("budget_cutoff", verdict)
        self._connection.done(not relay.closes)

    def _refuse(self, refusal: Refusal, reason: str = "", verdict: Metered = UNMETERED) -> None:
        """Answer with a refusal; nothing was relayed yet."""
        if self.phase == "finished":
            return
        connection = self._connection
        self.status = refusal.status
        if not self.request_id:
            self.request_id = self.request.request_id or self._engine.new_id()
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
        self._finish(reason or refusal.code, verdict)
        connection.done(not closing)

    def _end(self, reason: str, complete: bool) -> None:
        """The answer is over, whole or not."""
        if complete and self._relay is not None and not self._relay.begun:
            if not (self._injected and self._ask_again(self._relay.kept)):
                self._refuse(upstream_failure("unreadable"))
            return
        verdict = self._verdict(complete)
        if complete:
            self._over(verdict)
            return
        self._finish(reason, verdict)
        self._connection.cut(flush=self.request.minor == 1)

    def _over(self, verdict: Metered) -> None:
        """The answer was whole."""
        relay = self._relay
        if relay is None:
            if verdict.usage.source == "reported":
                verdict = verdict._replace(usage=verdict.usage._replace(source="drained"))
            self._finish("client_disconnected", verdict)
            return
        self._finish("upstream_error_event" if verdict.error else "ok", verdict)
        self._connection.done(not relay.closes)

    def _verdict(self, complete: bool) -> Metered:
        """What the exchange cost."""
        plan = self.plan
        try:
            if self._meter is not None:
                return self._meter.finish(complete, self._count_prompt)
            if plan is not None and plan.metered and plan.operation and self._upstream is not None:
                # The provider has the prompt, and the client left before the answer began.
                return self._engine.prompt_only(self._count_prompt())
        except Exception:
            log.exception(UNREAD)
            return self._guessed(self._relay.sent if self._relay is not None else self.bytes_out)
        return UNMETERED

    def _guessed(self, size: int) -> Metered:
        """The cost of an exchange that could not be read, a fault of ours: nobody is to have it for
        nothing. `size`: bytes of the answer."""
        prompt = self._prompt if self._prompt >= 0 else len(self._body) // BYTES_PER_TOKEN
        usage = Usage(prompt, size // BYTES_PER_TOKEN, source="counted")
        return Metered(usage, "", False)

    def _rough_prompt(self) -> int:
        """What `interim` takes for the prompt: of a stream that is read to its end, a report mostly
        takes its place."""
        if self._prompt >= 0:
            return self._prompt
        if self._rough < 0:
            self._rough = self._engine.rough_prompt(self._body, self.plan)
        return self._rough

    def _count_prompt(self) -> int:
        if self._prompt < 0:
            self._prompt = self._engine.count_prompt(self._body, self.plan)
            if self._kept:
                self._give_up()
                if not self._injected:
                    self._body = b""
        return self._prompt

    def _pay(self, verdict: Metered) -> Metered:
        """Charge what it cost, once; returns the verdict with its price."""
        accounts, engine = self._accounts, self._engine
        if not accounts:
            return verdict
        self._accounts = ()
        usage = verdict.usage
        if self.plan is not None and self.plan.in_usd:
            usage = engine.planner.priced(self.plan, self.model, usage, verdict.model)
            verdict = verdict._replace(usage=usage)
        if self._promises:
            engine.ledger.charge(self._promises, usage, _wall(), final=True)
            engine.ledger.release(self._promises)
        elif usage.source != "none":
            engine.ledger.debit(accounts, usage, _wall())
        return verdict

    def _finish(self, reason: str, verdict: Metered) -> None:
        """The one exit: settle, tell, let go."""
        engine = self._engine
        if self.phase == "drain":
            engine.drains.over(self)
        self.phase = "finished"
        if self._accounts:
            verdict = self._pay(verdict)
        if self._relay is not None:
            self.bytes_out = self._relay.sent
        if self._held:
            self._give_up()
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
