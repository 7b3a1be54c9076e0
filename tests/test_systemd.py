"""The variables of a service manager: taken once, ignored when they are for another process."""

from __future__ import annotations

import os

import pytest

from fastgw.systemd import Notifier, take_sockets


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "nonsense", "LISTEN_PID": str(os.getpid())},
        {"LISTEN_FDS": "0", "LISTEN_PID": str(os.getpid()), "LISTEN_FDNAMES": ""},
    ],
)
def test_sockets_that_are_not_ours(environ: dict[str, str]) -> None:
    assert take_sockets(environ) == ((), None)
    assert environ == {}  # no child takes them for its own


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "3000000"}, 3),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
    ],
)
def test_the_watchdog(environ: dict[str, str], seconds: float) -> None:
    assert Notifier(environ).watchdog == seconds
    assert environ == {}


def test_a_manager_that_is_gone_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": "/nowhere/notify"})
    notifier.ready("serving")
    assert "cannot notify the service manager" in caplog.text
    notifier.close()
    Notifier({}).ready("nobody listens")
