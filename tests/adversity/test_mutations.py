"""Each mutant stands for a check that is in the source. Whether tests notice that it is gone takes
a minute and is run by command: `python -m tests.adversity.mutations`."""

from __future__ import annotations

import pytest

from tests.adversity.mutations import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.check)
def test_what_a_mutant_removes_is_there_once(mutant: Mutant) -> None:
    text = (ROOT / "fastgw" / mutant.file).read_text()
    assert text.count(mutant.old) == 1, "stale: the check is written otherwise now"
    assert mutant.new != mutant.old
