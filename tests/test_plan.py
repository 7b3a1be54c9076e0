"""What of a client's head reaches a provider, and what a plan says of the body to come."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest

from fastgw.config.tables import Auth, Budget, Config, Key, Route, Upstream
from fastgw.errors import (
    InvalidKey,
    MetadataMissing,
    MissingKey,
    RouteNotFound,
    UnsupportedEncoding,
)
from fastgw.flow_control import Sweeper
from fastgw.http1.request import read_request_head
from fastgw.plan import Plan, Planner
from fastgw.policy.ledger import Ledger
from fastgw.upstream.pool import Pool

NOW = 1_790_000_000.0
OURS = "sk-provider-secret"


def planner(budgets: tuple[Budget, ...] = (), **key: Any) -> Planner:
    upstream = Upstream(
        name="up", base_url="http://provider:9/v1", api_key=OURS, headers={"X-Org": "ours"}
    )
    alice = Key(name="alice", digest=hashlib.sha256(b"sk-alice-1").digest(), **key)
    config = Config(
        auth=Auth(),
        keys=(alice,),
        upstreams=(upstream,),
        routes=(
            Route(path_prefix="/openai", upstream="up"),
            Route(path_prefix="/free", upstream="up", budgets=False),
        ),
        budgets=budgets,
    )
    pools = {"up": Pool(upstream, Sweeper(), 65536)}
    return Planner(config, Ledger("w", math.inf), pools, 1)


def plan(
    *fields: bytes,
    line: bytes = b"POST /openai/v1/chat/completions",
    by: Planner | None = None,
    key: bytes = b"Authorization: Bearer sk-alice-1",
) -> Plan:
    raw = b"\r\n".join(
        [line + b" HTTP/1.1", b"Host: gw", *([key] if key else []), *fields, b"", b""]
    )
    return (by or planner()).plan(read_request_head(raw, 100)[0], NOW, "10.0.0.1")


def test_the_provider_sees_our_credential_and_never_the_clients() -> None:
    head = plan(b"X-Api-Key: sk-alice-1", b"Cookie: a=b", b"X-Org: theirs", b"X-Mine: 1").head
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\nhost: provider:9\r\n")
    assert head.count(b"authorization: Bearer " + OURS.encode()) == 1
    assert b"alice" not in head
    assert b"theirs" not in head
    assert head.lower().count(b"x-org: ours") == 1
    assert b"X-Mine: 1\r\n" in head


@pytest.mark.parametrize(
    "name",
    [b"Proxy-Authorization", b"X-Forwarded-For", b"Forwarded", b"TE", b"Upgrade", b"Keep-Alive",
     b"Via", b"X_Org", b"X-Request-Id", b"X-Real-IP"],
)  # fmt: skip
def test_fields_that_are_not_sent_on(name: bytes) -> None:
    assert b"leaked" not in plan(name + b": leaked").head


def test_what_connection_names_is_not_sent_on() -> None:
    """RFC 9110, 7.6.1."""
    head = plan(b"Connection: close, X-Hop", b"X-Hop: leaked", b"X-End: 1").head
    assert b"leaked" not in head
    assert b"X-End: 1" in head


@pytest.mark.parametrize(
    ("accept", "sent"),
    [(b"gzip", b"identity"), (b"gzip, identity;q=0", b"gzip"), (b"br, identity;q=0", b"identity")],
)
def test_an_answer_that_we_read_is_asked_for_uncompressed(accept: bytes, sent: bytes) -> None:
    head = plan(b"Accept-Encoding: " + accept).head
    assert b"accept-encoding: " + sent + b"\r\n" in head
    free = plan(b"Accept-Encoding: br", line=b"POST /free/v1/chat/completions").head
    assert b"accept-encoding: br\r\n" in free


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"POST /openai/v1/chat/completions", ("chat", True, True, True)),
        (b"POST /openai/v1/responses", ("responses", True, True, False)),
        (b"POST /openai/v1/embeddings", ("embeddings", True, True, False)),
        (b"POST /openai/v1/files", ("", True, False, False)),
        (b"GET /openai/v1/chat/completions", ("", False, False, False)),
        (b"POST /free/v1/chat/completions", ("chat", False, False, False)),
    ],
)
def test_what_is_read_and_asked_for(line: bytes, expected: tuple[str, bool, bool, bool]) -> None:
    made = plan(line=line)
    assert (made.operation, made.metered, made.buffered, made.asks_usage) == expected


def test_a_key_limited_to_models_has_every_body_read() -> None:
    limited = planner(allowed_models=("gpt-4o", "o1*"))
    made = plan(line=b"POST /free/v1/files", by=limited)
    assert made.strict
    assert made.buffered
    assert [made.allows_model(name) for name in ("gpt-4o", "o1-mini", "gpt-4o-mini", "")] == [
        True, True, False, False,
    ]  # fmt: skip
    with pytest.raises(UnsupportedEncoding):
        plan(b"Content-Encoding: gzip", by=limited)


def test_who_and_where_are_asked_in_that_order() -> None:
    with pytest.raises(MissingKey):
        plan(line=b"GET /nowhere", key=b"")
    with pytest.raises(InvalidKey):
        plan(line=b"GET /nowhere", key=b"x-api-key: wrong")
    with pytest.raises(RouteNotFound):
        plan(line=b"GET /nowhere")
    assert plan(line=b"GET /key/info").informs


def test_accounts_and_missing_metadata() -> None:
    per = Budget(name="per-user", per=("user_id", "llm.model"), limit=5)
    team = Budget(name="team", per=("team",), limit=5, on_missing="skip")
    by = planner((per, team), metadata={"user_id": "alice"})
    made = plan(by=by)
    (account,) = by.accounts(made, "gpt-4o", NOW)  # a budget that skips is none
    assert account.values == ("alice", "gpt-4o")
    assert by.accounts(plan(by=by), "gpt-4o", NOW)[0] is account
    with pytest.raises(MetadataMissing) as caught:
        by.accounts(made, "", NOW)
    assert "llm.model" in caught.value.message
    assert "user_id" not in caught.value.message.replace("per-user", "")


def test_a_request_id_is_taken_over_only_if_it_is_a_plain_word() -> None:
    assert plan(b"X-Request-Id: abc-1").request_id == b"abc-1"
    assert plan(b'X-Request-Id: a b"c').request_id == b""
