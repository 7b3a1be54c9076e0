"""What tomllib reads, in parts."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.config import toml

if TYPE_CHECKING:
    from collections.abc import Callable

USUAL = '[[keys]]\nname = "a"\nkey = "12345678"\nmetadata = { user_id = "a", tier = "x" }\n\n'
WAYS = [
    "",
    "[[keys]]\n",
    "[[keys]]",
    "[[keys]]\n[[keys]]\n",
    USUAL * 3,
    "a = 1\n" + USUAL,
    USUAL.replace("\n", "\r\n") * 2,
    USUAL + "# note\n" + USUAL,
    USUAL + "expires_at = 2026-12-31T00:00:00Z\n[keys.more]\nx = 1\n" + USUAL,
    USUAL + "[[budgets]]\nname = 1\n" + USUAL + "[server]\nlisten = 2\n",
    "[[ keys ]]\na = 1\n" + USUAL,
    "[server]\na = 1\n" + USUAL + "[server.b]\nc = 1\n",
    '[server]\na = """\n[[keys]]\n"""\n' + USUAL,
    "a = '''\n[[keys]]\nname = \"a\"\n[[keys]]\n'''\n",
    "a = [\n[[1]]\n]\n" + USUAL,
    USUAL + 'x = "\\u0041\\n"\ny = "\t"\n',
    USUAL + 'disabled = true\nallowed_models = ["a, b", "c"]\nempty = ""\nnone = []\ntable = {}\n',
    USUAL + 'a = "ä€😀"\nb = { a-b = "}" }\nc = ["]", "#"]\n',
    USUAL + '# note \\x "\n\n  # ]\n',
    USUAL + "expires_at = 2026-12-31T23:59:59Z\n# a = 1\ndisabled = false # no\n" + USUAL,
    USUAL + "expires_at = 2026-12-31T23:59:59Z\n#a = 1\n\n# 2\n" + USUAL,
    USUAL + "expires_at = 2026-02-30T23:59:59Z\n" + USUAL,
    USUAL + "expires_at = 2026-12-31T24:00:00Z\n" + USUAL,
    USUAL + "expires_at = 2026-12-31T23:59:60Z\n" + USUAL,
    USUAL + "expires_at = 0000-12-31T23:59:59Z\n" + USUAL,
    USUAL + "expires_at = ٢٠٢٦-12-31T23:59:59Z\n" + USUAL,
    USUAL + "# \x07\n" + USUAL,
    USUAL + 'a.b = "1"\n"q" = "2"\n',
    "\ufeff" + USUAL,
]
WRONG = [
    USUAL + 'name = "b"\n[[keys]]\nname = "a"\nname = "b"\n',
    USUAL + 'name = "b"\nmetadata = { a = "1", a = "2" }\n',
    "keys = []\n" + USUAL,
    "[keys]\na = 1\n" + USUAL,
    "[server]\n" + USUAL + "[server]\n",
    USUAL + "x = 01\n" + USUAL,
    USUAL + 'x = "\x01"\n',
    "a = [\n" + USUAL + "]\n",
    'a = """\n' + USUAL,
    '[[keys]]\nname = "a"\rkey = "b"\n',
]


def read_by(loads: Callable[[str], Any], text: str) -> Any:
    """What the text says, or the words of its refusal."""
    try:
        return loads(text)
    except tomllib.TOMLDecodeError as error:
        return str(error)


@pytest.mark.parametrize("text", WAYS)
def test_every_way_to_write_it(text: str) -> None:
    assert read_by(toml.loads, text) == read_by(tomllib.loads, text)


@pytest.mark.parametrize("text", WRONG)
def test_what_tomllib_refuses_is_refused_in_its_words(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError) as expected:
        tomllib.loads(text)
    with pytest.raises(tomllib.TOMLDecodeError) as found:
        toml.loads(text)
    assert str(found.value) == str(expected.value)


_line = st.sampled_from(
    ["[[keys]]", "[[keys]]", "[[keys]]", 'name = "a"', 'key = "12345678"', 'key_hash = "b"',
     'metadata = { a = "1", b = "2" }', 'metadata = { a = "1", a = "2" }', "[server]", "[keys.x]",
     "[[keys.y]]", "a.b = 1", "c = true", "d = [", "]", '"""', "'''", 'e = """', "f = '''",
     'g = ["x", "y"]', "# [[keys]]", "", "# x", "d1 = 2026-12-31T23:59:59Z", 'i = "x" # y',
     "[[budgets]]", "keys = 1", "h = {", "}"]
)  # fmt: skip


@given(st.lists(_line, max_size=14).map("\n".join))
def test_all_texts_are_read_as_tomllib_reads_them(text: str) -> None:
    assert read_by(toml.loads, text) == read_by(tomllib.loads, text)


def test_the_parser_of_tomllib_is_handed_what_is_not_plain_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or 100,000 keys took a second and a half longer."""
    read: list[str] = []
    loads = tomllib.loads

    def watched(text: str) -> dict[str, Any]:
        read.append(text)
        return loads(text)

    monkeypatch.setattr(tomllib, "loads", watched)
    assert len(toml.loads("a = 1\n" + USUAL * 50)["keys"]) == 50
    assert read == ["\na = 1"]
