"""Files, folders and key files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastgw.config.problems import Problems
from fastgw.config.source import Sources

KEY = '[[keys]]\nname = "k"\nkey = "12345678"\n'


def gather(*paths: Path, **environ: str) -> tuple[Sources, list[str]]:
    problems = Problems()
    sources = Sources(environ, problems)
    sources.add(paths)
    return sources, problems.lines()


def test_key_files_are_relative_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "conf[1]/keys.d").mkdir(parents=True)
    main = tmp_path / "conf[1]/main.toml"
    main.write_text('[auth]\nkey_files = ["${DIR}/*.toml", "none.d/*.toml"]\n')
    for name in ("b.toml", "a.toml", "c.txt"):
        (tmp_path / "conf[1]/keys.d" / name).write_text(KEY)
    sources, problems = gather(main, DIR="keys.d")
    assert problems == []
    assert [Path(each.name).name for each in sources.files] == ["main.toml", "a.toml", "b.toml"]
    assert [each.keys_only for each in sources.files] == [False, True, True]
    assert sources.complete


def test_a_key_file_that_is_named_must_exist(tmp_path: Path) -> None:
    main = tmp_path / "main.toml"
    main.write_text('[auth]\nmode = "strict"\nkey_files = [\n  "team.toml",\n]\n')
    sources, (line,) = gather(main)
    assert line.startswith(f"{main}:4: [auth] key_files: a key file that is not there")
    assert not sources.complete


@pytest.mark.parametrize("written", ["keys.d", ""])
def test_a_folder_is_no_key_file(tmp_path: Path, written: str) -> None:
    (tmp_path / "keys.d").mkdir()
    main = tmp_path / "main.toml"
    main.write_text(f'[auth]\nkey_files = ["{written}"]\n')
    sources, (line,) = gather(main)
    assert line == (
        f'{main}:2: [auth] key_files: a folder; name the files in it, as "keys.d/*.toml"'
    )
    assert not sources.complete


def test_a_file_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(KEY)
    sources, _ = gather(tmp_path, path, tmp_path / "." / "a.toml")
    assert len(sources.files) == 1


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"# a\n# \xe9\n")
    (tmp_path / "open.toml").write_text('a = 1\nb = """x\n')
    names = ["away.toml", "empty", "latin.toml", "open.toml"]
    sources, problems = gather(*(tmp_path / name for name in names))
    shown = [line.replace(f"{tmp_path}/", "") for line in problems]
    assert shown[0] == (
        "away.toml: cannot be read: no such file or directory; check the path and its rights"
    )
    assert shown[1] == "empty: a folder without *.toml; put config.toml there"
    assert shown[2] == "latin.toml:2: is not UTF-8; save it in that encoding"
    assert shown[3].startswith("open.toml:2: not TOML: ")
    assert not sources.complete
