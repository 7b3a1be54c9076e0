"""What the benchmark brings itself: the compiled build, where it is missing or old."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from bench import install

if TYPE_CHECKING:
    from pathlib import Path

MAKEFILE = """
compiled: .venv-compiled/installed
.venv-compiled/installed: source
\techo $(PYTHON) >> built
\trm -f $@ && mkdir -p .venv-compiled && %s
\ttouch $@
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "COMPILED", tmp_path / ".venv-compiled")
    (tmp_path / "source").touch()
    (tmp_path / "Makefile").write_text(MAKEFILE % "true")
    return tmp_path


def test_fastgw_is_compiled_where_it_is_missing_or_older_than_its_source(project: Path) -> None:
    with pytest.raises(install.Missing, match="make compiled"):
        install.compiled_python()
    install.make_compiled()
    assert install.compiled_python() == str(project / ".venv-compiled" / "bin" / "python")
    install.make_compiled()
    built = (project / "built").read_text().split()
    assert len(built) == 1
    assert os.access(built[0], os.X_OK)
    later = (project / ".venv-compiled" / "installed").stat().st_mtime + 10
    os.utime(project / "source", (later, later))
    install.make_compiled()
    assert len((project / "built").read_text().split()) == 2


def test_an_old_build_is_not_measured_where_no_new_one_can_be_made(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install.make_compiled()
    (project / "Makefile").write_text(MAKEFILE % "{ echo Python.h: no such file; exit 1; }")
    later = (project / ".venv-compiled" / "installed").stat().st_mtime + 10
    os.utime(project / "source", (later, later))
    install.make_compiled()
    said = capsys.readouterr().out
    assert "Python.h: no such file" in said
    assert "docs/compiled.md says what it needs" in said
    with pytest.raises(install.Missing):
        install.compiled_python()
    monkeypatch.setenv("PATH", str(project))
    install.make_compiled()
    assert "No such file or directory: 'make'" in capsys.readouterr().out
