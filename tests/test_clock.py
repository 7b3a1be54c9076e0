"""Time as text: what a log or a report shows can be read back, whatever the machine's zone."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw import clock

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["UTC", "Pacific/Chatham"], autouse=True)
def _zone(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield
    time.tzset()


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_a_timestamp_reads_back_to_the_millisecond(moment: datetime) -> None:
    text = clock.timestamp(moment.timestamp())
    assert len(text) == len("2026-11-24T12:00:00.123Z")
    shown = datetime.fromisoformat(text)
    assert shown.utcoffset() == UTC.utcoffset(None)
    # cut off, not rounded: rounding up could name a second that has not come
    assert -0.0001 < moment.timestamp() - shown.timestamp() < 0.0011


def test_timestamps_sort_as_time_does() -> None:
    moments = [1_790_000_000 + step / 8 for step in range(-40, 40)]
    texts = [clock.timestamp(moment) for moment in moments]
    assert sorted(texts) == texts
    assert len(set(texts)) == len(texts)


def test_durations_never_run_backwards() -> None:
    moments = [clock.monotonic() for _ in range(1000)]
    assert sorted(moments) == moments
    assert time.get_clock_info("perf_counter").monotonic
