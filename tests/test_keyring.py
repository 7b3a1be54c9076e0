"""Who a head is taken for: one value, in a configured place, that hashes to a configured key."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.config.tables import Auth, Budget, Key
from fastgw.errors import InvalidKey, MissingKey
from fastgw.http1.request import RequestHead, read_request_head
from fastgw.keyring import Keyring, VirtualKey, key_info
from fastgw.model import Usage
from fastgw.policy.admission import make_rules
from fastgw.policy.ledger import Ledger

NOW = 1_790_000_000.0
EVERYWHERE = ("header:Authorization:Bearer", "header:x-api-key", "query:key", "cookie:session")


def key(secret: str = "sk-alice-1", **more: Any) -> Key:
    return Key(name="alice", digest=hashlib.sha256(secret.encode()).digest(), **more)


def ring(*keys: Key, mode: str = "strict") -> Keyring:
    return Keyring(Auth(mode=mode, locations=EVERYWHERE), keys or (key(),), ())


def head(*fields: bytes, target: bytes = b"/v1") -> RequestHead:
    raw = b"\r\n".join([b"GET " + target + b" HTTP/1.1", b"Host: a", *fields, b"", b""])
    return read_request_head(raw, 100)[0]


def who(ring: Keyring, request: RequestHead, now: float = NOW, address: str = "10.0.0.1") -> str:
    found = ring.authenticate(request, now, address).key
    return found.name if found is not None else ""


@pytest.mark.parametrize(
    "request_",
    [
        head(b"Authorization: Bearer sk-alice-1"),
        head(b"authorization: bearer  sk-alice-1"),  # RFC 9110, 11.1: schemes ignore case
        head(b"X-API-Key: sk-alice-1"),
        head(target=b"/v1?key=sk-alice-1"),
        head(target=b"/v1?%6bey=sk%2Dalice-1"),
        head(b"Cookie: a=b; session=sk-alice-1"),
        head(b"X-Api-Key: sk-alice-1", b"Authorization: Bearer sk-alice-1"),  # the same one twice
    ],
)
def test_a_key_is_found_in_each_configured_place(request_: RequestHead) -> None:
    assert who(ring(), request_) == "alice"


@pytest.mark.parametrize(
    "request_",
    [
        head(),
        head(b"Authorization: Basic sk-alice-1"),
        head(b"Authorization: sk-alice-1"),
        head(b"Authorization: Bearer"),
        head(b"X-Api-Key:"),
        head(target=b"/v1?Key=sk-alice-1"),
        head(target=b"/v1?key="),
        head(b"Cookie: sessions=sk-alice-1"),
        head(b"Session: sk-alice-1"),
    ],
)
def test_other_places_are_not_looked_at(request_: RequestHead) -> None:
    with pytest.raises(MissingKey):
        ring().authenticate(request_, NOW, "10.0.0.1")
    assert who(ring(mode="optional"), request_) == ""


@pytest.mark.parametrize(
    ("locations", "told"),
    [
        (Auth().locations, "'Authorization: Bearer <key>' or 'x-api-key: <key>'"),
        (("header:authorization", "header:x-goog-api-key"),
         "'Authorization: <key>' or 'x-goog-api-key: <key>'"),
        (("query:key", "cookie:session"), "query parameter 'key=<key>' or cookie 'session=<key>'"),
        (("header:x-team:Token",), "'x-team: Token <key>'"),
    ],
)  # fmt: skip
def test_who_shows_no_key_is_told_where_one_may_stand(
    locations: tuple[str, ...], told: str
) -> None:
    with pytest.raises(MissingKey) as caught:
        Keyring(Auth(locations=locations), (key(),), ()).authenticate(head(), NOW, "10.0.0.1")
    assert caught.value.message == f"no API Key found: send it as {told}"
    assert caught.value.headers == (("www-authenticate", "Bearer"),)


def test_where_no_place_is_configured_that_is_said() -> None:
    with pytest.raises(MissingKey, match="no API Key found: no place for one is configured"):
        Keyring(Auth(locations=()), (key(),), ()).authenticate(head(), NOW, "10.0.0.1")


@pytest.mark.parametrize("mode", ["strict", "optional"])
def test_two_different_keys_are_not_chosen_between(mode: str) -> None:
    both = ring(key(), Key(name="bob", digest=hashlib.sha256(b"sk-bob-123").digest()), mode=mode)
    with pytest.raises(InvalidKey):
        who(both, head(b"Authorization: Bearer sk-alice-1", b"x-api-key: sk-bob-123"))
    with pytest.raises(InvalidKey):
        who(both, head(b"Authorization: Bearer sk-alice-1", target=b"/v1?key=sk-bob-123"))
    with pytest.raises(InvalidKey):
        who(both, head(target=b"/v1?key=sk-bob-123&key=sk-alice-1"))


@given(st.text("0123456789abcdefsk-ilcAL", min_size=1).filter(lambda text: text != "sk-alice-1"))
def test_any_secret_that_is_not_configured_is_refused(secret: str) -> None:
    request = head(b"x-api-key: " + secret.encode())
    for mode in ("strict", "optional"):
        with pytest.raises(InvalidKey) as caught:
            ring(mode=mode).authenticate(request, NOW, "10.0.0.1")
        again = InvalidKey("invalid credentials: unknown, expired or disabled key")
        assert caught.value.message == again.message  # the same for all: nothing of it is repeated
    assert who(ring(mode="permissive"), request) == ""


def test_the_digest_itself_is_no_key() -> None:
    digest = key().digest.hex().encode()
    for shown in (digest, b"sha256:" + digest):
        with pytest.raises(InvalidKey):
            who(ring(), head(b"x-api-key: " + shown))


def test_an_absent_previous_key_opens_nothing_and_a_present_one_is_the_same_key() -> None:
    assert ring(key(previous_digest=b"")).find(b"") is None
    old = key(previous_digest=hashlib.sha256(b"sk-older-1").digest())
    assert who(ring(old), head(b"x-api-key: sk-older-1")) == "alice"
    assert who(ring(old), head(b"x-api-key: sk-alice-1")) == "alice"


@pytest.mark.parametrize(
    ("settings", "moment", "valid"),
    [
        ({"disabled": True}, NOW, False),
        ({"expires_at": NOW}, NOW - 0.001, True),
        ({"expires_at": NOW}, NOW, False),  # "not valid from then on"
        ({"not_before": NOW}, NOW - 0.001, False),
        ({"not_before": NOW}, NOW, True),
    ],
)
def test_validity(settings: dict[str, Any], moment: float, valid: bool) -> None:
    request = head(b"x-api-key: sk-alice-1")
    if valid:
        assert who(ring(key(**settings)), request, moment) == "alice"
    else:
        with pytest.raises(InvalidKey):
            who(ring(key(**settings)), request, moment)
        assert who(ring(key(**settings), mode="permissive"), request, moment) == ""
    assert not VirtualKey(key(**settings), ()).timeless


def test_refusals_do_not_tell_why_a_key_is_invalid() -> None:
    messages = set()
    for settings in ({}, {"disabled": True}, {"expires_at": 1.0}, {"allowed_ips": ("192.0.2.1",)}):
        shown = b"sk-alice-1" if settings else b"sk-unknown"
        with pytest.raises(InvalidKey) as caught:
            who(ring(key(**settings)), head(b"x-api-key: " + shown))
        messages.add((caught.value.message, caught.value.headers))
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("address", "covered"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),  # a listener on :: sees IPv4 clients so
        ("11.1.2.3", False),
        ("2001:db8::7", True),
        ("2001:db9::7", False),
        ("fe80::1%eth0", False),
        ("", False),
        ("unix:", False),
    ],
)
def test_a_key_bound_to_networks(address: str, covered: bool) -> None:
    bound = VirtualKey(key(allowed_ips=("10.1.0.0/16", "2001:db8::/32")), ())
    assert bound.covers_address(address) is covered
    assert VirtualKey(key(), ()).covers_address(address)


def test_what_held_the_key_is_named_so_that_it_stays_here() -> None:
    shown = ring().authenticate(head(target=b"/v1?a=1&key=sk-alice-1&b=%20"), NOW, "")
    assert shown.query == b"a=1&b=%20"
    assert {b"authorization", b"x-api-key", b"cookie"} <= shown.fields
    assert ring().authenticate(head(target=b"/v1?key=sk-alice-1"), NOW, "").query is None


@pytest.mark.parametrize("mode", ["optional", "permissive"])
def test_a_wrong_key_in_the_query_never_travels_on(mode: str) -> None:
    """Permissive lets everybody in; what looks like a key of ours is still not the provider's."""
    if mode == "permissive":
        shown = ring(mode=mode).authenticate(head(target=b"/v1?key=sk-other-9&a=1"), NOW, "")
        assert shown.query == b"a=1"
    else:
        with pytest.raises(InvalidKey):
            ring(mode=mode).authenticate(head(target=b"/v1?key=sk-other-9"), NOW, "")


def test_nothing_that_prints_holds_a_secret() -> None:
    held = ring()
    assert "sk-alice" not in repr(held.find(b"sk-alice-1")) + repr(held.__dict__)


def test_a_key_carries_what_its_holder_may_do() -> None:
    rules = make_rules(
        [Budget(name="paid", match={"tier": "paid"}, limit=1), Budget(name="all", limit=1)]
    )
    one = VirtualKey(key(metadata={"tier": "free"}, allowed_models=("gpt-*",)), rules)
    assert (one.metadata, one.allowed_models) == ({"tier": "free"}, ("gpt-*",))
    assert [rule.limit.name for rule in one.rules] == ["all"]
    assert one.timeless


def test_permissive_takes_two_different_keys_for_none() -> None:
    bob = Key(name="bob", digest=hashlib.sha256(b"sk-bob-123").digest())
    two = head(b"Authorization: Bearer sk-alice-1", b"x-api-key: sk-bob-123")
    assert who(ring(key(), bob, mode="permissive"), two) == ""
    assert who(ring(mode="permissive"), head(b"x-api-key: sk-alice-1")) == "alice"


def test_permissive_says_of_a_key_that_it_is_valid_later() -> None:
    keys = ring(key(not_before=NOW), key("sk-old-1", expires_at=NOW), mode="permissive")
    early = keys.authenticate(head(b"X-Api-Key: sk-alice-1"), NOW - 1, "10.0.0.1")
    assert (early.key, early.pending) == (None, True)
    for secret, who_ in ((b"sk-alice-1", "alice"), (b"sk-old-1", ""), (b"sk-wrong-1", "")):
        shown = keys.authenticate(head(b"X-Api-Key: " + secret), NOW, "10.0.0.1")
        assert (shown.key.name if shown.key else "", shown.pending) == (who_, False)


def test_what_a_key_may_know_of_itself() -> None:
    ledger = Ledger("w", math.inf)
    (rule,) = make_rules([Budget(name="daily", per=("user_id",), limit=100)])
    account = ledger.account(rule.limit, ("alice",), NOW)
    ledger.debit((account,), Usage(30, 5), NOW)
    told = orjson.loads(key_info(VirtualKey(key(expires_at=NOW + 60), ()), [(rule, account)], NOW))
    (budget,) = told.pop("budgets")
    assert told == {"key": "alice", "expires_at": "2026-09-21T14:14:20.000Z", "allowed_models": []}
    left = account.end - NOW
    assert left <= budget.pop("reset_seconds") <= left + 1  # who waits so long does not come early
    assert budget == {
        "budget": "daily", "account": ["alice"], "unit": "tokens", "limit": 100, "used": 35,
        "held": 0, "remaining": 65,
    }  # fmt: skip
    assert orjson.loads(key_info(VirtualKey(key(), ()), [], NOW))["expires_at"] is None


def test_what_a_key_is_told_of_a_budget_whose_account_a_request_decides() -> None:
    rules = make_rules(
        [
            Budget(name="model", per=("user_id", "llm.model"), limit=10),
            Budget(name="path", per=("request.path",), limit=2_500_000_000, unit="usd"),
        ]
    )
    shown = key_info(VirtualKey(key(), ()), [(rule, None) for rule in rules], NOW)
    model, path = orjson.loads(shown)["budgets"]
    assert 0 < model.pop("reset_seconds") == path.pop("reset_seconds") <= 86_400
    assert model == {
        "budget": "model", "account": None, "per": ["user_id", "llm.model"], "unit": "tokens",
        "limit": 10, "window": "day",
    }  # fmt: skip
    assert path == {
        "budget": "path", "account": None, "per": ["request.path"], "unit": "usd",
        "limit": 2_500_000_000, "window": "day", "usd": {"limit": "2.5"},
    }  # fmt: skip


def test_what_applies_to_a_key_is_worked_out_once_when_it_is_shown() -> None:
    """So 100,000 keys are one dict at the start, and never more objects than keys."""
    rules = make_rules([Budget(name="all", limit=1)])
    digest = hashlib.sha256(b"sk-old-1").digest()
    keys = [key(), key("sk-bob-1", previous_digest=digest)]
    held = Keyring(Auth(), keys, rules)
    found = held.find(b"sk-bob-1")
    assert found is not None
    assert held.find(b"sk-bob-1") is found
    assert held.find(b"sk-old-1") is found
    assert found.rules == rules
    assert held.find(b"sk-bob-2") is None
