"""Problem lines: order, places, suggestions."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fastgw.config.problems import Place, Problems, Source, meant, nearest, quoted

TEXT = "[server]\nx = 1\ny = 2\n[[keys]]\nmetadata = { 'a b' = 1 }\n"


def source(name: str, order: int) -> Source:
    return Source(name, Path(), order, TEXT, tomllib.loads(TEXT))


def test_lines_come_in_file_order() -> None:
    problems = Problems()
    one, two = source("one", 0), source("two", 1)
    problems.add(Place(two, ("server",)).at("x"), "d")
    problems.add(Place(one, ("keys", 0)).at("metadata", "a b"), "c")
    problems.add(Place(one, ("server",)).at("y"), "b")
    problems.add(Place(one), "a")
    assert problems.lines() == [
        "one:1: a",
        "one:3: [server] y: b",
        'one:5: [[keys]] metadata."a b": c',
        "two:2: [server] x: d",
    ]


def test_quoted_is_one_short_line() -> None:
    assert quoted("a\nb\x1b") == '"a\\u000ab\\u001b"'
    assert len(quoted("x" * 1000)) == 62


@pytest.mark.parametrize(
    ("word", "near"),
    [("max_conections", "max_connections"), ("Max-Head", "max_head"), ("zzz", None)],
)
def test_nearest(word: str, near: str | None) -> None:
    assert nearest(word, ["max_connections", "max_head"]) == near


def test_meant() -> None:
    assert meant("opnai", ["openai"]) == 'did you mean "openai"?'
    assert meant("zzz", ["a", "b"]) == "there is a, b"
    assert meant("zzz", []) == "there is none"
