"""The mark of a test that puts something of its own between two parts that are compiled together,
or derives from a class that is: there it has no effect, so the test has no say."""

from __future__ import annotations

import pytest

from fastgw.compiled import COMPILED

looks_inside = pytest.mark.skipif(COMPILED, reason="it looks into what is compiled as one")
