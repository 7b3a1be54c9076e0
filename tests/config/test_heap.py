"""Many objects, made and let go."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys

import pytest

from fastgw.config.heap import MANY, let_go, many_made


def test_many_objects_are_out_of_the_collectors_sight() -> None:
    gc.collect()
    before = gc.get_freeze_count()
    try:
        with many_made():
            assert not gc.isenabled()
            made = [[each] for each in range(2 * MANY)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(made)
    finally:
        gc.unfreeze()


def test_few_objects_stay_as_they_are() -> None:
    gc.collect()
    before = gc.get_freeze_count()
    with many_made():
        made = [[each] for each in range(10)]
    assert gc.get_freeze_count() == before
    assert made


def test_the_collector_stays_off_where_it_was() -> None:
    gc.disable()
    try:
        with many_made():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_list_is_emptied() -> None:
    objects = [object() for _ in range(2500)]
    let_go(objects)
    assert objects == []


FAULTS = """
import resource, sys
from fastgw.config.heap import keep_what_is_freed

def bodies():
    made = [bytearray(b"x") * 1_000_000 for _ in range(4)]
    del made

if sys.argv[1] == "kept":
    keep_what_is_freed()
bodies()
bodies()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bodies()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_the_pages_of_a_body_are_there_for_the_next() -> None:
    environment = {name: text for name, text in os.environ.items() if "MALLOC" not in name}
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, way],
                env=environment,
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for way in ("kept", "given back")
    ]
    assert faults[0] < 1000 < 10_000 < faults[1]
