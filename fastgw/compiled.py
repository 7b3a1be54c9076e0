"""Whether the hot modules run as compiled by mypyc, and the marks that this needs in the source.

The modules that setup.py names can be compiled; the source is the same, and runs as it is where it
was not. docs/compiled.md has how and why.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(**_said: bool) -> Callable[[type], type]:
        """What mypyc reads of a class: only the compiler has a use for it."""
        return lambda marked: marked


_Class = TypeVar("_Class", bound=type)

__all__ = ["COMPILED", "interpreted", "mypyc_attr"]


def interpreted(plain: _Class) -> _Class:
    """Mark a class that stays a class of the interpreter within a compiled module, as one whose
    members are computed in its body. Its methods are compiled."""
    return plain


_EXCHANGE = find_spec("fastgw.exchange")

COMPILED = _EXCHANGE is not None and not str(_EXCHANGE.origin).endswith(".py")
"""Whether this process runs compiled modules."""
