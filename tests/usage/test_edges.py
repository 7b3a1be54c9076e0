from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.usage.edges import EDGE, MOST_TRIES, first_members, is_object, last_members

_VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | st.floats(-1, 1) | st.text('",:{}[]\\ us', max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "model", "a,", '"', "{"]), inner, max_size=3)
    ),
    max_leaves=12,
)
_OBJECTS = st.dictionaries(st.sampled_from(["usage", "model", "id", "data", "x"]), _VALUES)


@given(_OBJECTS, st.booleans())
def test_at_every_cut_only_members_of_its_own(whole: dict[str, Any], pretty: bool) -> None:
    body = orjson.dumps(whole, option=orjson.OPT_INDENT_2 if pretty else 0)
    for at in range(len(body) + 1):
        for found in (first_members(body[:at]), last_members(body[at:])):
            assert found.items() <= whole.items() or all(
                whole[name] == value for name, value in found.items()
            )
    assert last_members(body) == whole


def test_what_stands_deeper_is_no_member() -> None:
    decoy = {"model": "cheap", "usage": {"output_tokens": 1}}
    inner = [{"input": decoy, "text": '"usage": {"a": 1}, "model": "x"}'}] * 20
    last = {"stop": None, "usage": {"o": 5}}
    body = orjson.dumps({"model": "m", "id": "1", "content": inner, **last})
    assert first_members(body[:200]) == {"model": "m", "id": "1"}
    assert last_members(body[-200:]) == last


def test_a_name_in_the_last_bytes_is_looked_for_within_bounds() -> None:
    body = b'{"a":' * 4000 + b"1" + b"}" * 4000
    assert last_members(body[-EDGE:]) == {}
    many = {f"{number:03}": 1 for number in range(2 * MOST_TRIES)}
    found = last_members(orjson.dumps(many)[-2500:])
    assert len(found) == MOST_TRIES


@pytest.mark.parametrize("start", [b'{"a":1', b'\xef\xbb\xbf {"a":1', b"\r\n {"])
def test_what_an_object_begins_with(start: bytes) -> None:
    assert is_object(start)
    assert not is_object(b"[" + start)
    assert first_members(start) == {}
    assert first_members(b"data: 1") == {}
