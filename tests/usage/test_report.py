from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.usage.api import MAX_COUNT
from fastgw.usage.gemini import GEMINI
from fastgw.usage.openai import OPENAI
from fastgw.usage.report import Report
from fastgw.usage.tgi import TGI_API

GOOD = {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt_tokens": -1, "completion_tokens": 9, "total_tokens": 8},
        {"prompt_tokens": 10, "completion_tokens": "9", "total_tokens": 19},
        {"prompt_tokens": 10, "completion_tokens": 9.5, "total_tokens": 19},
        {"prompt_tokens": 10, "completion_tokens": True, "total_tokens": 19},
        {"prompt_tokens": 10, "completion_tokens": MAX_COUNT + 1, "total_tokens": 19},
        {"completion_tokens": -1},
    ],
)
def test_a_bad_report_erases_no_good_one_and_is_none(bad: dict[str, Any]) -> None:
    report = Report(OPENAI)
    assert report.add(GOOD)
    assert not report.add(bad)
    assert report.said == GOOD
    assert report.add({**GOOD, "completion_tokens": 10})
    assert report.said == {**GOOD, "completion_tokens": 10}
    alone = Report(OPENAI)
    assert not alone.add(bad)
    assert alone.said == bad  # for the access log
    assert alone.add(GOOD)
    assert alone.said == GOOD


@pytest.mark.parametrize(
    "more", [{"cost": 0.5}, {"cached_tokens": 3}, {"total_tokens": None, "cost": 1}]
)
def test_what_has_no_count_is_added_and_is_no_report(more: dict[str, Any]) -> None:
    said = {name: value for name, value in more.items() if value is not None}
    for first, second in ((GOOD, more), (more, GOOD)):
        report = Report(OPENAI)
        assert report.add(first) is (first is GOOD)
        assert report.add(second) is (second is GOOD)
        assert report.said == {**GOOD, **said}


def test_nulls_and_missing_members_erase_nothing() -> None:
    report = Report(OPENAI)
    assert report.add(GOOD)
    assert report.add({"prompt_tokens": None, "completion_tokens": 12})
    assert not report.add({"prompt_tokens": None, "completion_tokens": None})
    assert report.said == {**GOOD, "completion_tokens": 12}
    parts = Report(TGI_API)
    assert not parts.add({"input_length": 5})
    assert parts.add({"generated_tokens": 3})
    assert parts.said == {"input_length": 5, "generated_tokens": 3}


_NAMES = st.sampled_from([*GOOD, "cost", "prompt_tokens_details", "tier"])
_VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, 0, 5, 7, -1, 2.0, 2.5, True, "3", MAX_COUNT + 1, [], {"cached_tokens": 1}]
)


@given(st.lists(st.dictionaries(_NAMES, _VALUES, max_size=5), max_size=6))
def test_a_report_that_is_like_the_last_one_is_judged_alike(usages: list[dict[str, Any]]) -> None:
    for api in (OPENAI, GEMINI):
        report = Report(api)
        sound = False
        for usage in usages:
            found = report.add(usage)
            told = {name: value for name, value in usage.items() if value is not None}
            assert found is (api.normal_form(told) is not None)
            sound = sound or found
            if found:
                assert told.items() <= report.said.items()
            assert None not in report.said.values()
            assert not sound or api.normal_form(report.said) is not None
