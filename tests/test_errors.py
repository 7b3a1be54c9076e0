"""Refusals as SDKs read them."""

from __future__ import annotations

from http import HTTPStatus

import orjson
import pytest

from fastgw import errors
from fastgw.errors import Refusal, render, upstream_failure

REFUSALS = sorted(Refusal.__subclasses__(), key=lambda kind: kind.code)


def test_codes_are_stable_names_of_one_refusal_each() -> None:
    assert len({kind.code for kind in REFUSALS}) == len(REFUSALS)
    assert all(kind.code.replace("_", "").isalpha() and kind.code.islower() for kind in REFUSALS)


@pytest.mark.parametrize("kind", REFUSALS, ids=lambda kind: str(kind.code))
def test_both_dialects(kind: type[Refusal]) -> None:
    refusal = kind('a "reason"')
    assert HTTPStatus(kind.status) >= 400
    assert orjson.loads(render(refusal)) == {
        "error": {
            "message": 'a "reason"', "type": kind.kind, "param": None, "code": kind.code,
        }
    }  # fmt: skip
    other = orjson.loads(render(refusal, "anthropic", "r1"))
    assert (other["type"], other["request_id"]) == ("error", "r1")
    assert other["error"]["message"] == 'a "reason"'
    assert other["error"]["type"].endswith(("_error", "_too_large"))


@pytest.mark.parametrize("kind", REFUSALS, ids=lambda kind: str(kind.code))
def test_other_dialects(kind: type[Refusal]) -> None:
    refusal = kind("why")
    gemini = orjson.loads(render(refusal, "gemini"))["error"]
    assert (gemini["code"], gemini["message"]) == (kind.status, "why")
    assert gemini["status"].isupper()
    bedrock = orjson.loads(render(refusal, "bedrock"))
    assert bedrock["message"] == "why"
    assert bedrock["__type"].endswith("Exception")
    assert orjson.loads(render(refusal, "cohere")) == {"message": "why"}
    assert orjson.loads(render(refusal, "ollama")) == {"error": "why"}


def test_a_request_whose_end_is_in_doubt_closes_and_others_do_not() -> None:
    """RFC 9112, 9.3: what follows on the connection could be taken for a request."""
    assert errors.BadRequest.closes
    assert errors.BodyTooLarge.closes
    assert errors.HeadTooLarge.closes
    assert errors.RequestTimeout.closes
    assert not errors.BudgetExceeded.closes
    assert not errors.InvalidKey.closes
    assert not errors.UpstreamUnavailable.closes


@pytest.mark.parametrize(
    ("reason", "status"),
    [("refused", 502), ("reset", 502), ("broken", 502), ("malformed", 502), ("timeout", 504),
     ("stalled", 504), ("full", 503), ("unreadable", 502)],
)  # fmt: skip
def test_every_reason_of_the_upstream_rooms_has_a_refusal(reason: str, status: int) -> None:
    assert upstream_failure(reason).status == status
