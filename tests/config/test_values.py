"""Variables and units."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.config.tables import Auth, Budget, Server, UsageReport, settings_of
from fastgw.config.values import BAD, ValueReader, expand

ENVIRON = {"A": "one", "EMPTY": ""}


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("x${A}y", "xoney"),
        ("${NO:-d e}", "d e"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY}", ""),
        ("${NO:-}", ""),
        ("${A:-d}", "one"),
        ("$$", "$"),
        ("$${A}", "${A}"),
        ("$$$${A}", "$${A}"),
        ("$A cost $5", "$A cost $5"),
    ],
)
def test_variables(text: str, expanded: str) -> None:
    assert expand(text, ENVIRON) == expanded


@pytest.mark.parametrize("text", ["${A", "${}", "${A-b}", "${1}"])
def test_broken_variables(text: str) -> None:
    with pytest.raises(ValueError, match=r"no \$\{VAR\}"):
        expand(text, ENVIRON)


def test_every_unset_variable_is_named() -> None:
    with pytest.raises(ValueError, match="variable X, Y is not set"):
        expand("${X}${Y}${X}", ENVIRON)


@given(st.text())
def test_doubled_dollars_are_literal(text: str) -> None:
    assert expand(text.replace("$", "$$"), {}) == text


def read(table: type[Any], name: str, raw: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    where = f"{table.__name__.lower()}.{name}"
    setting = settings_of(table)[name]
    reader = ValueReader(setting, where, ENVIRON, lambda below, what: said.append(what))
    return reader.read(raw), said


@pytest.mark.parametrize(
    ("table", "name", "raw", "value"),
    [
        (Server, "max_head", 100, 100),
        (Server, "max_head", "1.5KiB", 1536),
        (Server, "max_head", "2 MB", 2_000_000),
        (Server, "idle_timeout", 2, 2.0),
        (Server, "idle_timeout", "250ms", 0.25),
        (Server, "idle_timeout", "1d", 86_400.0),
        (UsageReport, "retention", "1d", 86_400.0),
        (Budget, "warn_at", 0.8, 0.8),
        (Budget, "shadow", True, True),
        (Auth, "key_files", "x.toml", ("x.toml",)),
    ],
)
def test_units(table: type[Any], name: str, raw: Any, value: Any) -> None:
    assert read(table, name, raw) == (value, [])


@pytest.mark.parametrize(
    ("table", "name", "raw"),
    [
        (Server, "max_head", "100"),
        (Server, "max_head", 1.5),
        (Server, "max_head", True),
        (Server, "idle_timeout", "5 parsecs"),
        (Server, "idle_timeout", "-5s"),
        (Server, "idle_timeout", float("nan")),
        (Server, "idle_timeout", float("inf")),
        (Server, "idle_timeout", 10**400),
        (UsageReport, "retention", "86399s"),
        (Server, "max_connections", True),
        (Server, "max_connections", 10.0),
        (Server, "max_connections", 2**53),
        (Server, "tls_cert", "a\x00b"),
        (Budget, "shadow", "true"),
        (Budget, "warn_at", 1.01),
        (Budget, "window", 5),
        (Budget, "match", "x"),
    ],
)
def test_refused(table: type[Any], name: str, raw: Any) -> None:
    value, said = read(table, name, raw)
    assert value is BAD
    assert len(said) == 1


def test_a_wrong_item_leaves_the_others() -> None:
    value, said = read(Auth, "key_files", ["a", 5, "${NO}"])
    assert value == ("a", BAD, BAD)
    assert len(said) == 2
