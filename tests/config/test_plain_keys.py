"""Plain keys are read as the reader of tables reads them; all else is left to that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastgw.config import load
from fastgw.config.plain_keys import PlainKeys
from fastgw.config.problems import Problems, Source
from fastgw.config.reader import _Reader
from fastgw.config.tables import Key
from fastgw.errors import ConfigError

HASH = "sha256:" + "0123456789abcdef" * 4
SECRET = {"name": "alice", "key": "sk-alice-1"}
PLAIN: list[dict[str, Any]] = [
    SECRET,
    {"name": "a.b-c_d@e:f+g", "key_hash": HASH},
    {**SECRET, "metadata": {"user_id": "alice", "team": "ü, {}"}},
    {**SECRET, "metadata": {}},
    {**SECRET, "previous_key_hash": HASH, "disabled": True},
    {**SECRET, "allowed_models": ["gpt-4*", "o3"], "allowed_ips": "10.0.0.0/8"},
    {**SECRET, "expires_at": "2027-01-01T00:00:00Z"},
    {**SECRET, "not_before": "2026-01-01T00:00:00Z"},
]
OTHERWISE: list[dict[str, Any]] = [
    {},
    {"name": "alice"},
    {"name": 1, "key": "sk-alice-1"},
    {"name": "", "key": "sk-alice-1"},
    {"name": "a b", "key": "sk-alice-1"},
    {"name": "alice", "key": "short"},
    {"name": "alice", "key": "${ALICE_KEY}"},
    {"name": "alice", "key": "sk-alice 1"},
    {"name": "alice", "key": "sk-alice-ü"},
    {"name": "alice", "key_file": "alice"},
    {"name": "alice", "key_hash": "sha256:12"},
    {"name": "alice", "key_hash": HASH, "key": "sk-alice-1"},
    {**SECRET, "key_file": "alice"},
    {**SECRET, "key_hash": HASH, "metadata": {}},
    {**SECRET, "metadata": "x"},
    {**SECRET, "metadata": {"n": 1}},
    {**SECRET, "metadata": {"n": "${X}"}},
    {**SECRET, "metadata": {"": "x"}},
    {**SECRET, "metadata": {"n": "\0"}},
    {**SECRET, "metdata": {}},
    {**SECRET, "disabled": "yes"},
    {**SECRET, "allowed_models": ["*a*"]},
    {**SECRET, "previous_key_hash": "sha256:12"},
    {**SECRET, "not_before": "2026-01-01T00:00:00Z", "expires_at": "2027-01-01T00:00:00Z"},
]


@pytest.mark.parametrize("entry", PLAIN)
def test_a_plain_key_is_what_the_reader_of_tables_makes_of_it(entry: dict[str, Any]) -> None:
    problems = Problems()
    source = Source("c.toml", Path(), 0, "", {"keys": [entry]})
    reader = _Reader({}, problems)
    whole = reader._element(source, "keys", 0, entry)
    assert problems.lines() == []
    assert PlainKeys({}).read(entry) == Key(**whole.values)


@pytest.mark.parametrize("entry", OTHERWISE)
def test_all_else_is_left_to_the_reader_of_tables(entry: dict[str, Any]) -> None:
    reader = PlainKeys({})
    assert reader.read(entry) is None
    assert reader.read(SECRET) is not None


def test_equal_texts_are_shared() -> None:
    reader = PlainKeys({})
    pair = [{**SECRET, "metadata": {"tier"[:2] + "er": "prem" + "x" * n[0]}} for n in ((1,), (1,))]
    one, two = (reader.read(entry) for entry in pair)
    assert one is not None
    assert two is not None
    assert next(iter(one.metadata.values())) is next(iter(two.metadata.values()))


REST = """\
[[upstreams]]
name = "o"
base_url = "https://api.openai.com/v1"
[[routes]]
path_prefix = "/o"
upstream = "o"
"""


def test_what_stands_twice_is_told_of_plain_keys_of_several_files(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[auth]\nkey_files = ["keys.toml"]\n'
        '[[keys]]\nname = "a"\nkey = "12345678"\n[[keys]]\nname = "b"\nkey = "23456789"\n' + REST
    )
    (tmp_path / "keys.toml").write_text(
        '[[keys]]\nname = "b"\nkey = "34567890"\n\n[[keys]]\nname = "c"\nkey = "12345678"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load([tmp_path / "a.toml"], {})
    assert [line.replace(f"{tmp_path}/", "") for line in caught.value.problems] == [
        'keys.toml:2: [[keys]] name: "b" is already used at a.toml:7; give each its own',
        'keys.toml:7: [[keys]] key: the same secret as that of key "a" at a.toml:5; '
        "give each key its own",
    ]
