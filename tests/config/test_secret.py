"""From a secret to a digest."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from fastgw.config.problems import Place, Problems, Source
from fastgw.config.secret import read_digests
from fastgw.config.values import BAD

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "sk-0123456789"
DIGEST = hashlib.sha256(SECRET.encode()).digest()


def read(folder: Path, **entry: Any) -> tuple[bytes, bytes, list[str]]:
    problems = Problems()
    place = Place(Source("c.toml", folder, 0), ("keys", 0))
    digest, previous = read_digests(entry, place, {"SECRET": SECRET}, problems)
    return digest, previous, problems.lines()


@pytest.mark.parametrize("content", [SECRET, SECRET + "\n", SECRET + "\r\n"])
def test_all_ways_lead_to_one_digest(tmp_path: Path, content: str) -> None:
    (tmp_path / "s").write_bytes(content.encode())
    for entry in (
        {"key": SECRET},
        {"key": "${SECRET}"},
        {"key_hash": f"sha256:{DIGEST.hex()}"},
        {"key_hash": f"sha256:{DIGEST.hex().upper()}"},
        {"key_file": "s"},
    ):
        assert read(tmp_path, **entry) == (DIGEST, b"", []), entry


def test_previous(tmp_path: Path) -> None:
    other = "ab" * 32
    found = read(tmp_path, key=SECRET, previous_key_hash=f"sha256:{other}")
    assert found == (DIGEST, bytes.fromhex(other), [])


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ({}, "missing; give one of key, key_hash or key_file"),
        ({"key": SECRET, "key_file": "s"}, "here are key, key_file; keep one"),
        ({"key": "1234567"}, "8 characters"),
        ({"key": 12345678}, "text in quotes"),
        ({"key": SECRET + " "}, "no header can carry"),
        ({"key_hash": DIGEST.hex()}, "sha256:"),
        ({"key_hash": "sha256:" + "0" * 63}, "64 hexadecimal digits"),
        ({"key_hash": "sha256:" + "g" * 64}, "64 hexadecimal digits"),
        ({"key_file": "away"}, "cannot be read: no such file"),
        ({"key_file": "."}, "cannot be read: is a directory"),
        ({"key_file": "long"}, "no header can carry"),
    ],
)
def test_refused(tmp_path: Path, entry: dict[str, Any], part: str) -> None:
    (tmp_path / "long").write_text(f"{SECRET}\n{SECRET}\n")
    digest, _, problems = read(tmp_path, **entry)
    assert digest is BAD
    assert len(problems) == 1
    assert part in problems[0]
    assert SECRET not in problems[0]
