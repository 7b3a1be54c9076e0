"""Tells the operator about each exchange: metrics and one line of the access log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fastgw import clock
from fastgw.access_log import quote
from fastgw.metrics import clean
from fastgw.money import NANO

if TYPE_CHECKING:
    from fastgw.access_log import AccessLog
    from fastgw.downstream.connection import DownstreamConnection
    from fastgw.errors import Refusal
    from fastgw.exchange import Exchange
    from fastgw.metrics import ExchangeSeries, Metrics
    from fastgw.plan import Plan, Planner
    from fastgw.policy.tallies import Tallies, Tally
    from fastgw.usage.meter import Metered
    from fastgw.usage.pricing import Price

log = logging.getLogger(__name__)

_RECORDS_OF_A_PLAN = 64

_TOLD = 1000
"""Models without price of which the log tells, once each."""

_LINE = (
    b'{"time":"%b","request_id":"%b","status":%d,"reason":"%b",%b,"stream":%b,"usage_source":"%b",'
    b'"input_tokens":%d,"output_tokens":%d,"cached_input_tokens":%d,"reasoning_tokens":%d,'
    b'"cost_usd":%b,'
    b'"duration_ms":%.3f,"processing_ms":%b,"first_byte_ms":%b,"bytes_in":%d,"bytes_out":%d%b}'
)
"""Filled in by hand: a dict of 24 entries and its JSON are four times the cost."""


class Recorder:
    """See the module. Called once for each exchange, at its end."""

    def __init__(
        self,
        metrics: Metrics,
        access_log: AccessLog,
        planner: Planner,
        tallies: Tallies | None = None,
    ) -> None:
        """`tallies`: who used what, if that is kept."""
        self._metrics = metrics
        self._tallies = tallies
        self.use(planner, access_log)
        self._told: set[str] = set()
        self._second = 0
        self._stamp = b""
        self._nowhere = self._bind(None, "", "")

    def use(self, planner: Planner, access_log: AccessLog) -> None:
        """Record by these from now on."""
        self.planner = planner
        self._access_log = access_log

    def record(
        self,
        exchange: Exchange,
        connection: DownstreamConnection,
        reason: str,
        verdict: Metered,
    ) -> None:
        """An exchange ended for `reason` and cost `verdict`."""
        now = clock.monotonic()
        plan = exchange.plan
        facts = b""
        price: Price | None = None
        tally: Tally | None = None
        if plan is None:
            series = self._nowhere
        else:
            served = exchange.sent > 0.0 and exchange.status < 400
            models = (exchange.model, verdict.model, served)
            bound = plan.records.get(models)
            if bound is None:
                if len(plan.records) >= _RECORDS_OF_A_PLAN:
                    plan.records.clear()
                bound = plan.records[models] = (
                    # Whoever is refused may name any model: no series for each.
                    self._bind(plan, *models[:2]) if served else self._bind(plan, "", ""),
                    self._facts(exchange, connection, verdict),
                    self._price(plan, models),
                    self._tally(plan, models),
                )
            series, facts, price, tally = bound
        request = exchange.request
        series.count(request.method.decode(), exchange.status, reason)
        began, sent, first = exchange.began, exchange.sent, exchange.first_byte
        series.duration(now - began)
        usage = verdict.usage
        cost = b"null"
        if sent:
            series.processing(sent - began)
            if usage.source != "none":
                series.usage(usage)
                nano = 0
                if price is not None:
                    nano = usage.cost or price.cost(usage)
                    series.spent.cost += nano
                    # half the cost of the general form
                    cost = b"0.%09d" % nano if nano < NANO else b"%d.%09d" % divmod(nano, NANO)
                else:
                    series.spent.unpriced += 1
                    if plan is not None and plan.in_usd:
                        self._unpriced(plan, verdict.model or exchange.model or plan.named)
                if tally is not None and self._tallies is not None:
                    self._tallies.add(tally, usage, nano, clock.wall())
                series.server_duration(now - sent)
                if first:
                    series.time_to_first_token(first - sent)
                    if exchange.streams and usage.output_tokens > 1:
                        series.time_per_output_token((now - first) / (usage.output_tokens - 1))
        log = self._access_log
        if log.enabled:
            log.write(
                _LINE
                % (
                    self._time(),
                    exchange.request_id,
                    exchange.status,
                    reason.encode(),
                    facts or self._facts(exchange, connection, verdict),
                    b"true" if exchange.streams else b"false",
                    usage.source.encode(),
                    usage.input_tokens,
                    usage.output_tokens,
                    usage.cached_input_tokens,
                    usage.reasoning_tokens,
                    cost,
                    (now - began) * 1000,
                    b"%.3f" % ((sent - began) * 1000) if sent else b"null",
                    b"%.3f" % ((first - sent) * 1000) if sent and first else b"null",
                    connection.bytes_in,
                    exchange.bytes_out,
                    _verbatim(verdict.reported) if verdict.reported else b"",
                )
            )

    def _price(self, plan: Plan, models: tuple[str, str, bool]) -> Price | None:
        asked, answered, served = models
        if plan.informs or not served:
            return None
        return self.planner.price(plan, asked, answered)

    def _unpriced(self, plan: Plan, model: str) -> None:
        """A budget in usd was charged nothing for a model: say so, once."""
        if model not in self._told and len(self._told) < _TOLD:
            self._told.add(model)
            log.warning(
                "model '%s' has no price at upstream %s: budgets in usd are charged nothing for "
                "it; add it to [[prices]]",
                model[:100],
                plan.route.upstream,
            )

    def _tally(self, plan: Plan, models: tuple[str, str, bool]) -> Tally | None:
        asked, answered, served = models
        if self._tallies is None or plan.informs or not served:
            return None
        names, values = self._metrics.label_names, self.planner.labels(plan, asked)
        labels = (f"{name}={clean(value)}" for name, value in zip(names, values, strict=True))
        model = clean(answered or asked)
        return self._tallies.find(plan.key.name, plan.route.upstream, model, labels)

    def _time(self) -> bytes:
        """The wall clock, RFC 3339 with milliseconds; the text is made once a second."""
        now = clock.wall()
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = clock.timestamp(second)[:-4].encode()
        return b"%b%03dZ" % (self._stamp, (now - second) * 1000)

    def _facts(
        self, exchange: Exchange, connection: DownstreamConnection, verdict: Metered
    ) -> bytes:
        """The part of a line that is the same for all requests of a plan with these models."""
        plan = exchange.plan
        request = exchange.request
        fields = {
            "key": plan.key.name if plan is not None else "",
            "client": connection.address,
            "method": request.method.decode(),
            "path": plan.path if plan is not None else _printable(request.path),
            "route": "" if plan is None or plan.informs else plan.route.path_prefix,
            "upstream": "" if plan is None or plan.informs else plan.route.upstream,
            "gen_ai.operation.name": plan.operation if plan is not None else "",
            "gen_ai.request.model": exchange.model[:200],
            "gen_ai.response.model": verdict.model[:200],
        }
        return quote(fields)[1:-1]

    def refused(
        self, connection: DownstreamConnection, refusal: Refusal, request_id: bytes
    ) -> None:
        """Bytes that were no request were answered with `refusal`."""
        self._nowhere.count("", refusal.status, refusal.code)
        if self._access_log.enabled:
            self._access_log.write(
                quote(
                    {
                        "time": clock.timestamp(clock.wall()),
                        "request_id": request_id.decode(),
                        "client": connection.address,
                        "status": refusal.status,
                        "reason": refusal.code,
                        "message": refusal.message,
                    }
                )
            )

    def _bind(self, plan: Plan | None, model: str, answered: str) -> ExchangeSeries:
        key: tuple[Any, ...] = ("", "", "", "", "", "")
        if plan is not None and not plan.informs:
            upstream = plan.pool.settings
            key = (
                plan.route.path_prefix,
                upstream.name,
                plan.operation,
                upstream.dialect,
                model,
                answered,
            )
        return self._metrics.series((*key, *self.planner.labels(plan, model)))


def _printable(path: bytes) -> str:
    return path[:512].decode("ascii", "replace")


MAX_USAGE = 2048
"""Bytes of a provider's usage that the access log takes; a longer one is left out."""


def _verbatim(reported: dict[str, Any]) -> bytes:
    """The usage as the provider reported it, as a member of the line."""
    try:
        member = b',"usage":%b' % quote(reported)
    except TypeError:  # a number or text that JSON cannot carry
        return b""
    return member if len(member) <= MAX_USAGE else b""
