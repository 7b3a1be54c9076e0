"""What a line of the access log takes from a provider."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from fastgw.recorder import MAX_USAGE, _verbatim


@pytest.mark.parametrize(
    "usage",
    [{"prompt_tokens": 1}, {"a": {"b": [1, None, 0.5]}, "text": 'a "quote"\n'}],
)
def test_a_usage_is_kept_as_it_was_reported(usage: dict[str, Any]) -> None:
    assert orjson.loads(b'{"x":1%b}' % _verbatim(usage)) == {"x": 1, "usage": usage}


@pytest.mark.parametrize(
    "usage", [{"a": "x" * MAX_USAGE}, {"a": 2**80}, {"a": "\ud83d"}], ids=["long", "huge", "broken"]
)
def test_a_usage_that_no_line_can_carry_is_left_out(usage: dict[str, Any]) -> None:
    assert _verbatim(usage) == b""
