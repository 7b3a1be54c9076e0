"""A hundred thousand objects that are made, or let go, at one time.

Python's collector looks at all that live again and again while many are made, and once more when
they have aged: 50 ms each for 100,000 keys, in which no thread runs. To free them all at once takes
as long. Both are for threads: between two slices the loop has its turn.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY = 20_000
"""Objects from which on they are taken out of the collector's sight."""

SLICE = 1000


LARGEST = 8 * 1024 * 1024
"""Bytes of a block that the allocator takes from its heap, and gives back to it."""


def keep_what_is_freed() -> None:
    """Have glibc keep up to twice LARGEST at the end of its heap for the next blocks.

    It would else give the pages of each large body back to the kernel and have them faulted in
    again for the next one: 70 of 690 us for a body of 1 MB. What it keeps follows the largest
    block that was ever freed, so one is; its pages are never touched. Other allocators, and one
    that the environment has set up (`MALLOC_MMAP_THRESHOLD_`), do not mind.
    """
    block = bytes(LARGEST)
    del block


@contextmanager
def no_collection() -> Iterator[None]:
    """What is made within is let go within, too, and has no circles."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextmanager
def many_made() -> Iterator[None]:
    """What is made within stays: the collector does not look at it, now or later.

    It is freed nevertheless when nobody refers to it; only circles among it would stay.
    """
    with no_collection():
        yield
        if gc.get_count()[0] > MANY:
            gc.freeze()


def let_go(objects: list[Any]) -> None:
    """Empty a list, whose objects may be nobody else's, slice by slice."""
    while objects:
        del objects[-SLICE:]
