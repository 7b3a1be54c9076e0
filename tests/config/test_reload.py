"""Which settings a running process takes up."""

from __future__ import annotations

from dataclasses import replace

from fastgw.config.reload import take_up
from fastgw.config.tables import AccessLog, Admin, Config, Key, Metrics, Server, Store


def test_what_can_be_taken_up_is() -> None:
    old = Config()
    new = replace(
        old,
        server=Server(drain_timeout=1.0, max_connections=5, cors_origins=("*",)),
        admin=Admin(token="other"),
        keys=(Key(name="alice", digest=b"x" * 32),),
        access_log=AccessLog(path=""),
        digest="new",
    )
    assert take_up(old, new) == (new, [])
    assert take_up(old, old) == (old, [])


def test_what_needs_a_restart_is_left_and_named() -> None:
    old = Config()
    new = replace(
        old,
        server=Server(listen=("127.0.0.1:1",), workers=4, idle_timeout=3.0),
        admin=Admin(listen="", token="t"),
        store=Store(url="memory:", prefix="x"),
        metrics=Metrics(namespace="other"),
    )
    taken, left = take_up(old, new)
    assert left == [
        "server.listen",
        "server.workers",
        "admin.listen",
        "store.url",
        "store.prefix",
        "metrics.namespace",
    ]
    assert taken == replace(old, server=Server(idle_timeout=3.0), admin=Admin(token="t"))


def test_a_certificate_is_taken_up_but_tls_is_not_begun() -> None:
    plain, tls = Config(), Config(server=Server(tls_cert="a", tls_key="b"))
    renewed = Config(server=Server(tls_cert="c", tls_key="d"))
    assert take_up(tls, renewed) == (renewed, [])
    assert take_up(plain, tls) == (plain, ["server.tls_cert", "server.tls_key"])
    assert take_up(tls, plain) == (tls, ["server.tls_cert", "server.tls_key"])
