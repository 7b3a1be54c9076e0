"""The loads of the benchmark: what the clients ask, what the stub answers, and who is measured."""

from __future__ import annotations

from typing import NamedTuple

PYTHON_PROXIES = ("litellm", "httpx")
OURS = ("fastgw", "fastgw-redis", "fastgw-compiled", "fastgw-compiled-redis")
RIVALS = ("nginx", "haproxy", "nginx-lua", "envoy")
PACE = 50
"""Events a second of a paced stream."""


class Workload(NamedTuple):
    """A load. What a request costs is divided by `unit`: requests or events."""

    name: str
    title: str
    targets: tuple[str, ...]
    """In the order of the table; the names of bench.targets."""
    unit: str = "requests"
    connections: int = 64
    body_bytes: int = 300
    behaviour: str = "pad=240"
    """Of the stub provider."""
    stream: bool = False
    paced: bool = False
    """One stream for each connection, as long as a measurement is to last."""
    keys: int = 1

    @property
    def group(self) -> str:
        """The name that the command line takes: w5 of w5-10k."""
        return self.name.partition("-")[0]

    def stub(self, seconds: float) -> str:
        """Behaviour of the stub for measurements of so many seconds."""
        return f"events={max(10, round(seconds * PACE))};pace={1 / PACE}" * self.paced or (
            self.behaviour
        )


def _bodies() -> list[Workload]:
    return [
        Workload(
            f"w5-{name}",
            f"JSON, prompt of {title} in, 600 bytes out, 16 connections",
            ("direct", "nginx", "haproxy", "fastgw"),
            connections=16,
            body_bytes=size,
        )
        for name, title, size in (
            ("10k", "10 KB", 10_000),
            ("100k", "100 KB", 100_000),
            ("1m", "1 MB", 1_000_000),
        )
    ]


def _answers() -> Workload:
    return Workload(
        "w5-answer",
        "JSON, 300 bytes in, answer of 100 KB, 16 connections",
        ("direct", "nginx", "nginx-32k", "haproxy", "fastgw"),
        connections=16,
        behaviour="pad=100000",
    )


def _keys() -> list[Workload]:
    return [
        Workload(
            f"w6-{number}",
            f"JSON, {title}",
            ("nginx", "fastgw", "fastgw-redis"),
            keys=number,
        )
        for number, title in (
            (1, "one key"),
            (1_000, "1,000 keys in turn, each with a budget of its own"),
            (100_000, "100,000 keys in turn, which share 1,000 budgets"),
        )
    ]


WORKLOADS = (
    Workload(
        "w1",
        "JSON, 300 bytes in, 600 bytes out, 64 keep-alive connections",
        ("direct", *RIVALS, *PYTHON_PROXIES, *OURS),
    ),
    Workload(
        "w2",
        "64 streams of 200 events of about 200 bytes, a new one each millisecond",
        ("direct", *RIVALS, *PYTHON_PROXIES, "fastgw", "fastgw-compiled"),
        unit="events",
        behaviour="events=200;pace=0.001",
        stream=True,
    ),
    Workload(
        "w2-bulk",
        "64 streams of 200 events of 180 bytes, all at once",
        ("direct", "nginx", "nginx-32k", "haproxy", "envoy", "fastgw", "fastgw-compiled"),
        unit="events",
        behaviour="events=200",
        stream=True,
    ),
    Workload(
        "w3",
        f"1,000 streams of {PACE} events/s",
        ("direct", *RIVALS, "fastgw", "fastgw-compiled"),
        unit="events",
        connections=1000,
        stream=True,
        paced=True,
    ),
    Workload(
        "w4",
        "JSON, one connection: what is added to the time of an answer",
        ("direct", *RIVALS, *PYTHON_PROXIES, *OURS),
        connections=1,
    ),
    *_bodies(),
    _answers(),
    *_keys(),
    Workload(
        "w7",
        "What the parts of fastgw cost: JSON, 64 connections",
        (
            *("nginx", "fastgw-off", "fastgw-no-budget"),
            *("fastgw", "fastgw-redis", "fastgw-reserve"),
            *("fastgw-compiled-off", "fastgw-compiled", "fastgw-compiled-redis"),
            "fastgw-compiled-reserve",
        ),
    ),
    Workload("w8", "Two workers: JSON, 64 connections", ("fastgw", "fastgw-two")),
)
GROUPS = tuple(dict.fromkeys(workload.group for workload in WORKLOADS))
