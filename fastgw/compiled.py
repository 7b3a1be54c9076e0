"""Whether the hot modules run as compiled by mypyc, and the one mark that this needs in the source.

The modules that setup.py names can be compiled; the source is the same, and runs as it is where it
was not. docs/compiled.md has how and why.
"""

from __future__ import annotations

from typing import TypeVar

_Class = TypeVar("_Class", bound=type)


def interpreted(plain: _Class) -> _Class:
    """Mark a class that stays a class of the interpreter within a compiled module: one that is
    weakly referenced, or whose members are computed in its body. Its methods are compiled."""
    return plain


COMPILED = not hasattr(interpreted, "__code__")
"""Whether this process runs compiled modules."""
