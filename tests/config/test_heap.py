"""Many objects, made and let go."""

from __future__ import annotations

import gc

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
