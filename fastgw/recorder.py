"""Tells the operator about each exchange: metrics and one line of the access log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastgw import clock

if TYPE_CHECKING:
    from fastgw.access_log import AccessLog
    from fastgw.downstream.connection import DownstreamConnection
    from fastgw.errors import Refusal
    from fastgw.exchange import Exchange
    from fastgw.metrics import ExchangeSeries, Metrics
    from fastgw.plan import Plan, Planner
    from fastgw.usage.meter import Metered

_SERIES_OF_A_PLAN = 64


class Recorder:
    """See the module. Called once for each exchange, at its end."""

    def __init__(self, metrics: Metrics, access_log: AccessLog, planner: Planner) -> None:
        self._metrics = metrics
        self._access_log = access_log
        self.planner = planner
        self._nowhere = self._bind(None, "", "")

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
        if plan is None:
            series = self._nowhere
        else:
            models = (exchange.model, verdict.model)
            bound = plan.series.get(models)
            if bound is None:
                bound = self._bind(plan, *models)
                if len(plan.series) >= _SERIES_OF_A_PLAN:
                    plan.series.clear()
                plan.series[models] = bound
            series = bound
        request = exchange.request
        series.count(request.method.decode(), exchange.status, reason)
        began, sent, first = exchange.began, exchange.sent, exchange.first_byte
        series.duration(now - began)
        usage = verdict.usage
        if sent:
            series.processing(sent - began)
            if usage.source != "none":
                series.usage(usage)
                series.server_duration(now - sent)
                if first:
                    series.time_to_first_token(first - sent)
                    if exchange.streams and usage.output_tokens > 1:
                        series.time_per_output_token((now - first) / (usage.output_tokens - 1))
        log = self._access_log
        if log.enabled:
            log.write(
                {
                    "time": clock.timestamp(clock.wall()),
                    "request_id": exchange.request_id.decode(),
                    "key": plan.key.name if plan is not None else "",
                    "client": connection.address,
                    "method": request.method.decode(),
                    "path": plan.path if plan is not None else _printable(request.path),
                    "status": exchange.status,
                    "reason": reason,
                    "route": plan.route.path_prefix if plan is not None else "",
                    "upstream": plan.route.upstream if plan is not None else "",
                    "gen_ai.operation.name": plan.operation if plan is not None else "",
                    "gen_ai.request.model": exchange.model[:200],
                    "gen_ai.response.model": verdict.model[:200],
                    "stream": exchange.streams,
                    "usage_source": usage.source,
                    "input_tokens": usage.input_tokens,
                    "output_tokens": usage.output_tokens,
                    "cached_input_tokens": usage.cached_input_tokens,
                    "reasoning_tokens": usage.reasoning_tokens,
                    "duration_ms": _ms(now - began),
                    "processing_ms": _ms(sent - began) if sent else None,
                    "first_byte_ms": _ms(first - sent) if sent and first else None,
                    "bytes_in": connection.bytes_in,
                    "bytes_out": exchange.bytes_out,
                }
            )

    def refused(
        self, connection: DownstreamConnection, refusal: Refusal, request_id: bytes
    ) -> None:
        """Bytes that were no request were answered with `refusal`."""
        self._nowhere.count("", refusal.status, refusal.code)
        if self._access_log.enabled:
            self._access_log.write(
                {
                    "time": clock.timestamp(clock.wall()),
                    "request_id": request_id.decode(),
                    "client": connection.address,
                    "status": refusal.status,
                    "reason": refusal.code,
                    "message": refusal.message,
                }
            )

    def _bind(self, plan: Plan | None, model: str, answered: str) -> ExchangeSeries:
        key: tuple[Any, ...] = ("", "", "", "", "", "")
        if plan is not None:
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


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _printable(path: bytes) -> str:
    return path[:512].decode("ascii", "replace")
