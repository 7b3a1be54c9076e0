"""The command that measures stalls runs; its figures are for those who ask."""

from pathlib import Path

from tests.adversity import stalls


def test_everybody_is_answered_while_hostile_answers_pass(tmp_path: Path) -> None:
    rows = stalls.run(tmp_path, seconds=0.05, size=400_000, step=6)
    assert len(rows) == 1 + len(stalls.answers(400_000)[::6]) > 4
    assert all(row.waits for row in rows)
    assert all(row.passed for row in rows[1:])
