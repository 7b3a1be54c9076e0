from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.config.tables import CalendarWindow as CalendarSetting
from fastgw.policy.window import UNITS, AccountName, account_key, make_window, read_account_key


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize("unit", sorted(UNITS))
@given(now=st.floats(0, 4e9))
def test_epoch_windows_hold_their_moment_and_are_aligned(unit: str, now: float) -> None:
    start, end = make_window(unit).bounds(now)
    assert start <= now < end
    assert end - start == UNITS[unit]
    assert start % UNITS[unit] == 0
    assert make_window(unit).bounds(end)[0] == end


@pytest.mark.parametrize(
    ("unit", "zone", "now", "start", "end"),
    [
        ("day", "Europe/Berlin", "2026-03-29T12:00", "2026-03-28T23:00", "2026-03-29T22:00"),
        ("day", "Europe/Berlin", "2026-10-25T12:00", "2026-10-24T22:00", "2026-10-25T23:00"),
        ("month", "Europe/Berlin", "2026-12-31T23:30", "2026-12-31T23:00", "2027-01-31T23:00"),
        ("month", "UTC", "2024-02-29T00:00", "2024-02-01T00:00", "2024-03-01T00:00"),
        ("week", "UTC", "2026-11-24T12:00", "2026-11-23T00:00", "2026-11-30T00:00"),
        ("year", "Asia/Tokyo", "2026-06-01T00:00", "2025-12-31T15:00", "2026-12-31T15:00"),
    ],
)
def test_calendar_windows(unit: str, zone: str, now: str, start: str, end: str) -> None:
    assert make_window(CalendarSetting(unit, zone)).bounds(at(now)) == (at(start), at(end))


@given(
    st.builds(
        AccountName,
        st.text(min_size=1),
        st.sampled_from(["tokens", "requests"]),
        st.sampled_from(["day", "month@Europe/Berlin"]),
        st.integers(0, 10**10),
        st.lists(st.text(), max_size=4).map(tuple),
    ),
    st.builds(
        AccountName,
        st.text(min_size=1),
        st.just("tokens"),
        st.just("day"),
        st.just(0),
        st.lists(st.text(), max_size=4).map(tuple),
    ),
)
def test_account_keys_name_one_account(first: AccountName, second: AccountName) -> None:
    assert read_account_key(account_key(first)) == first
    assert (account_key(first) == account_key(second)) == (first == second)


@pytest.mark.parametrize("key", ["", "a|b", "a|tokens|day|x|alice"])
def test_other_keys_are_none_of_ours(key: str) -> None:
    assert read_account_key(key) is None
