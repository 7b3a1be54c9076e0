"""The declared settings, and config.toml, which shows each of them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from fastgw.config import Config, load
from fastgw.config.tables import LISTED_TABLES, SINGLE_TABLES, Key, Upstream, spellings

EXAMPLE = Path(__file__).resolve().parents[2] / "config.toml"
ENVIRON = {"OPENAI_API_KEY": "sk-provider-secret"}
_OPTIONAL = re.compile(r"^# (?=[a-z_]+ = )", re.MULTILINE)


def test_the_example_runs_as_it_is() -> None:
    config = load([EXAMPLE], ENVIRON)
    assert [key.name for key in config.keys] == ["alice", "bob"]
    assert [(b.limit, b.unit, b.window) for b in config.budgets] == [(100, "tokens", "day")]
    assert config.upstreams[0].api_key == "sk-provider-secret"
    assert config.routes[0].path_prefix == "/openai"
    assert config.admin.token == ""
    assert load([EXAMPLE], ENVIRON | {"FASTGW_ADMIN_TOKEN": "t0ken"}).admin.token == "t0ken"


def test_what_the_example_comments_out_are_the_defaults(tmp_path: Path) -> None:
    """With every optional line taken in, nothing changes: so the values shown are the defaults."""
    text, count = _OPTIONAL.subn("", EXAMPLE.read_text())
    assert count > 40
    (tmp_path / "config.toml").write_text(text)
    whole = load([tmp_path / "config.toml"], ENVIRON)
    plain = load([EXAMPLE], ENVIRON)
    assert replace(whole, digest="") == replace(plain, digest="")
    assert plain.server == Config().server


@pytest.mark.parametrize("name", [*SINGLE_TABLES, *LISTED_TABLES])
def test_the_example_shows_every_setting(name: str) -> None:
    brackets = f"[[{name}]]" if name in LISTED_TABLES else f"[{name}]"
    parts = re.split(r"^(\[.*\])$", EXAMPLE.read_text(), flags=re.MULTILINE)
    section = parts[parts.index(brackets) + 1]
    for setting in spellings((SINGLE_TABLES | LISTED_TABLES)[name]):
        assert re.search(rf"^(#\s+)?{setting} = ", section, re.MULTILINE), f"{name}.{setting}"


def test_tables_of_texts_are_never_none() -> None:
    assert Key(name="x").metadata == {}
    assert Upstream(name="x", base_url="http://h").headers == {}
    assert Key(name="x").metadata is not Key(name="y").metadata
