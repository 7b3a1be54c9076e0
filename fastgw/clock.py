"""The only reader of time.

`monotonic` measures durations, `wall` places windows and log lines. Both return seconds as float.
A room that decides by time is handed the value (or the function), so a test can set it.
"""

import time

monotonic = time.perf_counter
"""Seconds from an arbitrary start, never backwards; resolution below a microsecond."""

wall = time.time
"""Seconds since the epoch (UTC)."""


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with milliseconds, as `2026-11-24T12:00:00.123Z`."""
    whole = int(seconds)
    return (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        + f".{int((seconds - whole) * 1000):03d}Z"
    )
