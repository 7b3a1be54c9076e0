"""Tells the operator about each exchange: metrics and one line of the access log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from fastgw import clock
from fastgw.access_log import quote
from fastgw.metrics import clean
from fastgw.money import NANO
from fastgw.policy.admission import shortened
from fastgw.sse import CR, LF
from fastgw.turn import Turn
from fastgw.usage.payload import read_object

if TYPE_CHECKING:
    from fastgw.access_log import AccessLog
    from fastgw.downstream.connection import DownstreamConnection
    from fastgw.errors import Refusal
    from fastgw.exchange import Exchange
    from fastgw.metrics import ExchangeSeries, Metrics
    from fastgw.plan import Alike, Plan, Planner
    from fastgw.policy.tallies import Tallies, Tally
    from fastgw.usage.meter import Metered
    from fastgw.usage.pricing import Price

log = logging.getLogger(__name__)

_monotonic: Final = clock.monotonic
_wall: Final = clock.wall

_RECORDS_OF_A_PLAN: Final = 64
_NAMES: Final = 512
"""Characters of both models by which a record is kept: they are as long as client and provider
like."""

_TOLD = 1000
"""Models without price of which the log tells, once each."""

_AT_ONCE: Final = 256
"""Exchanges that wait to be told of at most."""

_THREE: Final = [b"%03d" % number for number in range(1000)]
"""Three digits: the microseconds of a time in milliseconds. Compiled, a format of bytes and whole
numbers that stands where it is used is half the cost of one with a fraction; else it is the same.
"""
_BEGIN: Final = b'"status":%d,"reason":"%b","key":'
_END: Final = b',%b,"stream":%b,"usage_source":"%b",'
"""The part of a line that is the same for exchanges that end alike, before and after the key."""


class Record:
    """What is the same for all exchanges of a plan that end alike, and the sums of those that did
    in this turn of the loop: `input`, `output` and `cached` in tokens, `cost` in nano-USD."""

    __slots__ = (
        "cached", "cost", "input", "line", "number", "outcome", "output", "price", "series",
        "source", "tally",
    )  # fmt: skip

    def __init__(
        self,
        series: ExchangeSeries,
        outcome: tuple[str, int, str],
        source: str,
        line: bytes,
        price: Price | None = None,
        tally: Tally | None = None,
    ) -> None:
        """`outcome`: method, status, reason. `source`: who said what they cost, "" where nothing
        was asked of a provider."""
        self.series = series
        self.outcome = outcome
        self.source = source
        self.line = line
        self.price = price
        self.tally = tally
        self.number = self.input = self.output = self.cached = self.cost = 0


class Recorder:
    """See the module. `record` is called once for each exchange, at its end. What ended in one turn
    of the loop is told of together at its end: the same work, with warm caches."""

    def __init__(
        self,
        metrics: Metrics,
        access_log: AccessLog,
        planner: Planner,
        tallies: Tallies | None = None,
        turn: Turn | None = None,
    ) -> None:
        """`tallies`: who used what, if that is kept. `turn`: of the loop, at whose end it tells."""
        self._turn = turn or Turn()
        self._turn.after = self.flush
        self._metrics = metrics
        self._tallies = tallies
        self._ended: list[tuple[Exchange, str, int, str, Metered, float]] = []
        self.use(planner, access_log)
        self._told: set[str] = set()
        self._second = 0
        self._stamp = b""
        self._nowhere = self._bind(None, "", "", planner.labels(None, ""))

    def use(self, planner: Planner, access_log: AccessLog) -> None:
        """Record by these from now on."""
        if self._ended:
            self.flush()
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
        ended = self._ended
        if not self._turn.awake:
            self._turn.wake()
        if len(ended) >= _AT_ONCE:
            self.flush()
            ended = self._ended
        ended.append(
            (exchange, connection.address, connection.bytes_in, reason, verdict, _monotonic())
        )

    def flush(self) -> None:
        """Tell of all exchanges that ended since the last call."""
        ended, self._ended = self._ended, []
        if not ended:
            return
        wall = _wall()
        stamp = self._time(wall)
        writes = self._access_log.enabled
        lines: list[bytes] = []
        touched: list[Record] = []
        for exchange, address, bytes_in, reason, verdict, now in ended:
            try:
                usage = verdict.usage
                given, made, cached, _, reasoning, said, _ = usage
                sent = exchange.sent
                source = said if sent else ""
                plan = exchange.plan
                streams = exchange.streams
                alike = (exchange.model, verdict.model, exchange.status, reason, source, streams)
                record = plan.records.get(alike) if plan is not None else None
                if record is None:
                    record = self._record(exchange, address, verdict, alike)
                    if plan is not None and len(exchange.model) + len(verdict.model) <= _NAMES:
                        if len(plan.records) >= _RECORDS_OF_A_PLAN:
                            plan.records.clear()
                        plan.records[alike] = record
                if not record.number:
                    touched.append(record)
                record.number += 1
                series = record.series
                began, first = exchange.began, exchange.first_byte
                series.duration(now - began)
                cost = processing = waited = b"null"
                if sent:
                    series.processing(sent - began)
                    micro = int((sent - began) * 1e6)
                    processing = b"%d.%b" % (micro // 1000, _THREE[micro % 1000])
                    if first:
                        micro = int((first - sent) * 1e6)
                        waited = b"%d.%b" % (micro // 1000, _THREE[micro % 1000])
                    if source != "none":
                        series.input_tokens(given)
                        series.output_tokens(made)
                        record.input += given
                        record.output += made
                        if cached:
                            series.cached_tokens(cached)
                            record.cached += cached
                        if usage.cache_write_tokens:
                            series.written_tokens(usage.cache_write_tokens)
                        if record.price is not None:
                            nano = usage.cost or record.price.cost(usage)
                            record.cost += nano
                            # half the cost of the general form
                            cost = (
                                b"0.%09d" % nano if nano < NANO else b"%d.%09d" % divmod(nano, NANO)
                            )
                        elif plan is not None and plan.in_usd:
                            self._unpriced(plan, verdict.model or exchange.model or plan.named)
                        series.server_duration(now - sent)
                        if first:
                            series.time_to_first_token(first - sent)
                            if streams and made > 1:
                                series.time_per_output_token((now - first) / (made - 1))
                if writes:
                    micro = int((now - began) * 1e6)
                    # By hand: a dict of 24 entries and its JSON are four times the cost.
                    lines.append(
                        b'{"time":"%b","request_id":"%b",%b"input_tokens":%d,"output_tokens":%d,'
                        b'"cached_input_tokens":%d,"reasoning_tokens":%d,"cost_usd":%b,'
                        b'"duration_ms":%d.%b,"processing_ms":%b,"first_byte_ms":%b,'
                        b'"bytes_in":%d,"bytes_out":%d%b}'
                        % (
                            stamp,
                            exchange.request_id,
                            record.line,
                            given,
                            made,
                            cached,
                            reasoning,
                            cost,
                            micro // 1000,
                            _THREE[micro % 1000],
                            processing,
                            waited,
                            bytes_in,
                            exchange.bytes_out,
                            _verbatim(verdict.reported) if verdict.reported else b"",
                        )
                    )
            except Exception:
                log.exception("an exchange could not be recorded")
        if lines:
            self._access_log.write_all(lines)
        for each in touched:
            self._sum(each, wall)

    def _record(self, exchange: Exchange, address: str, verdict: Metered, alike: Alike) -> Record:
        plan = exchange.plan
        asked, answered, status, reason, source, streams = alike
        lines = plan.lines.get(alike) if plan is not None else None
        if lines is None:
            lines = (
                _BEGIN % (status, reason.encode()),
                _END
                % (
                    self._facts(exchange, address, verdict),
                    b"true" if streams else b"false",
                    verdict.usage.source.encode(),
                ),
            )
            if plan is not None and len(asked) + len(answered) <= _NAMES:
                if len(plan.lines) >= _RECORDS_OF_A_PLAN:
                    plan.lines.clear()
                plan.lines[alike] = lines
        line = lines[0] + quote("" if plan is None else plan.key.name) + lines[1]
        outcome = (exchange.request.method.decode(), status, reason)
        if plan is None:
            return Record(self._nowhere, outcome, source, line)
        # What a stop of the gateway ends is refused, and paid for.
        served = source != "" and (status < 400 or source != "none")
        if not served:
            # Whoever is refused may name any model: no series for each.
            return Record(
                self._bind(plan, "", "", self.planner.labels(plan, "")), outcome, source, line
            )
        labels = self.planner.labels(plan, asked)
        series = self._bind(plan, asked, answered, labels)
        price = tally = None
        if not plan.informs:
            price = self.planner.price(plan, asked, answered)
            tally = self._tally(plan, answered or asked, labels)
        return Record(series, outcome, source, line, price, tally)

    def _sum(self, record: Record, now: float) -> None:
        """Hand over what those that ended alike came to."""
        number, record.number = record.number, 0
        series = record.series
        series.count(record.outcome, number)
        if record.source in ("", "none"):
            return
        sums = (number, record.input, record.output, record.cached, record.cost)
        record.input = record.output = record.cached = record.cost = 0
        series.count_source(record.source, number)
        series.spent.cost += sums[4]
        if record.price is None:
            series.spent.unpriced += number
        if record.tally is not None and self._tallies is not None:
            self._tallies.add(record.tally, sums, now)

    def _unpriced(self, plan: Plan, model: str) -> None:
        """A budget in usd was charged nothing for a model: say so, once."""
        model = model[:100]
        if model not in self._told and len(self._told) < _TOLD:
            self._told.add(model)
            log.warning(
                "model %r has no price at upstream %s: budgets in usd are charged nothing for "
                "it; add it to [[prices]]",
                model,  # as a client wrote it: it may hold line ends
                plan.route.upstream,
            )

    def _tally(self, plan: Plan, model: str, values: tuple[str, ...]) -> Tally | None:
        if self._tallies is None:
            return None
        key = plan.key
        pairs = key.pairs
        if pairs is None or values is not key.labels:
            names = self._metrics.label_names
            pairs = tuple(f"{name}={clean(each)}" for name, each in zip(names, values, strict=True))
            if values is key.labels:
                key.pairs = pairs
        return self._tallies.find(key.name, plan.route.upstream, clean(model), pairs)

    def _time(self, now: float) -> bytes:
        """The wall clock, RFC 3339 with milliseconds; the text is made once a second."""
        second = int(now)
        if second != self._second:
            self._second = second
            self._stamp = clock.timestamp(second)[:-4].encode()
        return b"%b%03dZ" % (self._stamp, (now - second) * 1000)

    def _facts(self, exchange: Exchange, address: str, verdict: Metered) -> bytes:
        """The part of a line that is the same for all requests like this one, whoever sent it."""
        plan = exchange.plan
        request = exchange.request
        asked = exchange.model
        fields = {
            "client": address,
            "method": request.method.decode(),
            "path": plan.path if plan is not None else _printable(request.path),
            "route": "" if plan is None or plan.informs else plan.route.path_prefix,
            "upstream": "" if plan is None or plan.informs else plan.route.upstream,
            "gen_ai.operation.name": plan.operation if plan is not None else "",
            # as it names an account, so that an audit finds that
            "gen_ai.request.model": shortened(asked),
            "gen_ai.response.model": verdict.model[:200],
        }
        return quote(fields)[1:-1]

    def refused(
        self, connection: DownstreamConnection, refusal: Refusal, request_id: bytes
    ) -> None:
        """Bytes that were no request were answered with `refusal`."""
        self._nowhere.count(("", refusal.status, refusal.code), 1)
        if self._access_log.enabled:
            self._access_log.write(
                quote(
                    {
                        "time": clock.timestamp(_wall()),
                        "request_id": request_id.decode(),
                        "client": connection.address,
                        "status": refusal.status,
                        "reason": refusal.code,
                        "message": refusal.message,
                    }
                )
            )

    def _bind(
        self, plan: Plan | None, model: str, answered: str, labels: tuple[str, ...]
    ) -> ExchangeSeries:
        if plan is None or plan.informs:
            return self._metrics.series(("", "", "", "", "", "", *labels))
        upstream = plan.pool.settings
        names = (plan.route.path_prefix, upstream.name, plan.operation, upstream.dialect)
        # Short, as they are shown: what a client wrote is as long as it likes, and this is kept.
        return self._metrics.series(
            (*names, clean(model), clean(answered), *(clean(each) for each in labels))
        )


def _printable(path: bytes) -> str:
    return path[:512].decode("ascii", "replace")


MAX_USAGE = 2048
"""Bytes of a provider's usage that the access log takes; a longer one is left out."""


def _verbatim(reported: dict[str, Any] | bytes) -> bytes:
    """The usage as the provider reported it, as a member of the line."""
    if isinstance(reported, bytes):
        if (
            len(reported) <= MAX_USAGE
            and reported.isascii()
            and LF not in reported
            and CR not in reported
        ):
            return b',"usage":%b' % reported
        reported = read_object(reported) or {}
    try:
        member = b',"usage":%b' % quote(reported)
    except TypeError:  # a number or text that JSON cannot carry
        return b""
    return member if len(member) <= MAX_USAGE else b""
