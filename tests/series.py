"""Observes the tokens of one exchange, as the recorder does."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgw.metrics import ExchangeSeries
    from fastgw.model import Usage


def use(series: ExchangeSeries, usage: Usage) -> None:
    """One exchange that cost this."""
    series.input_tokens(usage.input_tokens)
    series.output_tokens(usage.output_tokens)
    if usage.cached_input_tokens:
        series.cached_tokens(usage.cached_input_tokens)
    if usage.cache_write_tokens:
        series.written_tokens(usage.cache_write_tokens)
    series.count_source(usage.source, 1)
