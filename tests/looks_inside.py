"""The mark of a test that puts something of its own between two parts that are compiled together,
or derives from a class that is: there it has no effect, so the test has no say. And what an object
has, however its class was made."""

from __future__ import annotations

import pytest

from fastgw.compiled import COMPILED

looks_inside = pytest.mark.skipif(COMPILED, reason="it looks into what is compiled as one")


def members(value: object) -> list[str]:
    """What an object has: its slots, which a compiled class does not name."""
    kind = type(value)
    slots = [name for each in kind.__mro__ for name in getattr(each, "__slots__", ())]
    return slots or [
        name for name in dir(value) if name[0] != "_" and not callable(getattr(kind, name))
    ]
