"""Lines of settings, in all the ways TOML can be written."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fastgw.config.locate import line_of, locate

TEXT = '''\
# comment with [header] and "quote
top = 1
[server]
listen = [ # ] not the end
  "a]", 'b"',
  """c
]""",
]
"quo ted".'x.y' . bare = "esc \\" # no"
long = """
[fake]
name = 1 \\""" ""\"""""
[[keys]]  # one
name = "a"
metadata = { user_id = "x, y = 1", "t.t" = { z = [1, { w = 2 }] } }

[[ keys ]]
name = "b"
[keys.metadata]
tier = 1979-05-27 07:32:00
[[keys.sub]]
a = 1
[[keys.sub]]
a = 2
[metrics.labels]
k = 'v' # end without newline'''


def test_every_way_to_write_it() -> None:
    lines = locate(TEXT)
    assert lines["top",] == 2
    assert lines["server",] == 3
    assert lines["server", "listen"] == 4
    assert lines["server", "listen", 1] == 5
    assert lines["server", "listen", 2] == 6
    assert lines["server", "quo ted", "x.y", "bare"] == 9
    assert lines["server", "long"] == 10
    assert lines["keys", 0] == 13
    assert lines["keys", 0, "metadata", "t.t", "z", 1, "w"] == 15
    assert lines["keys", 1] == 17
    assert lines["keys", 1, "name"] == 18
    assert lines["keys", 1, "metadata", "tier"] == 20
    assert lines["keys", 1, "sub", 1, "a"] == 24
    assert lines["metrics", "labels", "k"] == 26
    assert ("server", "fake") not in lines


def test_the_nearest_line_is_taken() -> None:
    lines = locate(TEXT)
    assert line_of(lines, ("keys", 1, "missing")) == 17
    assert line_of(lines, ("absent", "x")) == 1


def test_windows_line_ends() -> None:
    assert locate('a = """x\r\ny"""\r\n[b]\r\nc = 1\r\n')["b", "c"] == 4


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, item in items:
        found |= paths(item, (*path, name))
    return found


_basic = st.sampled_from(
    ['"a#b"', "'c]d'", '"e\\"="', '"""f\n[x]\ny = \\"""g"""', "'''h\n'k\n'''", "1", "true",
     "1.5e3", "1979-05-27T07:32:00Z", '""', "''", '""""q"""']
)  # fmt: skip
_name = st.sampled_from(["a", "b-1", '"q.q"', "'s s'", '"e\\"s"', "a.b", 'c . "d"', '"]"', '"="'])
_gap = st.sampled_from(["", " ", "\n", " # ] } \" '''\n", "\n\n  "])


def _array(items: list[tuple[str, str]]) -> str:
    return "[" + ",".join(f"{gap}{item}{gap}" for item, gap in items) + "]"


def _table(items: list[tuple[str, str]]) -> str:
    return "{ " + ", ".join(f"{name} = {item}" for name, item in items) + " }"


_value = st.recursive(
    _basic,
    lambda inner: (
        st.lists(st.tuples(inner, _gap), max_size=3).map(_array)
        | st.lists(st.tuples(_name, inner), max_size=3).map(_table)
    ),
    max_leaves=6,
)
_line = (
    st.tuples(_name, _value).map(" = ".join)
    | _name.map("[{}] # x".format)
    | _name.map("[[ {} ]]".format)
    | st.just("# ''' \"\"\"")
)


@given(st.lists(_line, max_size=10))
def test_every_path_that_tomllib_knows_has_a_line(statements: list[str]) -> None:
    text = ""
    first: dict[tuple[str | int, ...], range] = {}
    for statement in statements:
        try:
            known = paths(tomllib.loads(text + statement))
        except tomllib.TOMLDecodeError:
            continue  # it excludes an earlier one
        start = text.count("\n") + 1
        text += statement + "\n"
        for path in known:
            first.setdefault(path, range(start, text.count("\n") + 1))
    lines = locate(text)
    assert set(lines) == set(first)
    for path, where in first.items():
        assert lines[path] in where, path
