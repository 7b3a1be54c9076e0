"""The virtual keys: from what a client shows to who it is.

Secrets are not kept: the ring maps the SHA-256 of a secret to its key, so a look-up is one hash and
one dict access, equally long for every wrong key. A client shows exactly one value in one of the
configured places; two different values are refused, never guessed between.
"""

from __future__ import annotations

import hashlib
import ipaddress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

import orjson

from fastgw import clock
from fastgw.errors import InvalidKey, MissingKey
from fastgw.money import in_dollars
from fastgw.policy.window import reset_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fastgw.config.tables import Auth, Key
    from fastgw.http1.request import RequestHead
    from fastgw.policy.account import Account
    from fastgw.policy.admission import Rule

_CHALLENGE = (("www-authenticate", "Bearer"),)
_NO_KEY = "no API Key found: "


class VirtualKey:
    """Who an application is: name, metadata and what it may do. Never its secret.

    `rules` are the budgets that apply to it. `accounts`, `labels` and `pairs` are places for what
    was worked out for it, where that is the same for all its requests: what they draw on, the
    values of the operator's metric labels, and the same as `name=value`.
    """

    __slots__ = (
        "accounts",
        "allowed_models",
        "disabled",
        "expires_at",
        "labels",
        "metadata",
        "name",
        "networks",
        "not_before",
        "pairs",
        "rules",
        "timeless",
    )

    def __init__(self, key: Key, rules: Sequence[Rule]) -> None:
        self.name = key.name
        self.metadata = key.metadata or {}
        self.allowed_models = key.allowed_models
        self.networks = tuple(ipaddress.ip_network(text, strict=False) for text in key.allowed_ips)
        self.not_before = key.not_before
        self.expires_at = key.expires_at
        self.disabled = key.disabled
        self.timeless = not (key.not_before or key.expires_at or key.disabled)
        self.rules = tuple([rule for rule in rules if rule.applies_to(self.metadata)])
        self.accounts: tuple[Account, ...] | None = None
        self.labels: tuple[str, ...] | None = None
        self.pairs: tuple[str, ...] | None = None

    def valid_at(self, now: float) -> bool:
        """Whether the key may be used at `now` (epoch seconds)."""
        return (
            not self.disabled
            and now >= self.not_before
            and (not self.expires_at or now < self.expires_at)
        )

    def covers_address(self, address: str) -> bool:
        """Whether a client at this address may use the key."""
        if not self.networks:
            return True
        try:
            ip = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self.networks)

    def __repr__(self) -> str:
        return f"<VirtualKey {self.name}>"


def key_info(key: VirtualKey, standing: Iterable[tuple[Rule, Account | None]], now: float) -> bytes:
    """What a key may know of itself, as JSON: `key`, `expires_at` (RFC 3339 or null),
    `allowed_models` (empty: all) and `budgets`, a list of `budget`, `account` (values of its
    `per`), `unit`, `limit`, `used`, `held`, `remaining` (in the unit, usd in nano-USD and beside
    that in `usd`) and `reset_seconds`. Where the account depends on the request, `account` is null,
    and `per` and `window` stand in the place of `used`, `held` and `remaining`."""
    return orjson.dumps(
        {
            "key": key.name,
            "expires_at": clock.timestamp(key.expires_at) if key.expires_at else None,
            "allowed_models": list(key.allowed_models),
            "budgets": [
                _account(account, now) if account is not None else _rule(rule, now)
                for rule, account in standing
            ],
        }
    )


def _account(account: Account, now: float) -> dict[str, Any]:
    return in_dollars(
        {
            "budget": account.limit.name,
            "account": list(account.values),
            "unit": account.limit.unit,
            "limit": account.limit.amount,
            "used": account.count.spent,
            "held": account.held,
            "remaining": account.remaining,
            "reset_seconds": reset_seconds(account.end, now),
        }
    )


def _rule(rule: Rule, now: float) -> dict[str, Any]:
    limit = rule.limit
    return in_dollars(
        {
            "budget": limit.name,
            "account": None,
            "per": [expression.source for expression in rule.per],
            "unit": limit.unit,
            "limit": limit.amount,
            "window": limit.window.name,
            "reset_seconds": reset_seconds(limit.window.bounds(now)[1], now),
        }
    )


class Location(NamedTuple):
    """Where clients may show a key."""

    place: str  # header, query or cookie
    name: bytes
    scheme: bytes


class Shown(NamedTuple):
    """What a head shows of credentials: the key (None where none is shown and that is allowed),
    and the parts of the head that held it, which must not go to the provider. `pending`: one is
    shown that is valid later."""

    key: VirtualKey | None
    fields: frozenset[bytes]
    query: bytes | None
    pending: bool = False


class Keyring:
    """All keys, by the hash of their secret.

    A key that nobody has shown yet stands there as it is configured: what applies to it is worked
    out when it is shown first, so 100,000 keys are one dict at the start.
    """

    def __init__(self, auth: Auth, keys: Sequence[Key], rules: Sequence[Rule]) -> None:
        self._mode = auth.mode
        self._locations = [_location(text) for text in auth.locations]
        self._no_key = _NO_KEY + _how_to_send(auth.locations)
        self._rules = rules
        self._by_digest: dict[bytes, Key | VirtualKey] = {key.digest: key for key in keys}
        for key in keys:
            if key.previous_digest:
                self._by_digest[key.previous_digest] = key
        self._header_names = frozenset(
            place.name for place in self._locations if place.place == "header"
        )

    def find(self, secret: bytes) -> VirtualKey | None:
        """The key with this secret, or None."""
        digest = hashlib.sha256(secret).digest()
        found = self._by_digest.get(digest)
        if found is None or isinstance(found, VirtualKey):
            return found
        key = VirtualKey(found, self._rules)
        for each in (found.digest, found.previous_digest):
            if each:
                self._by_digest[each] = key
        return key

    def let_go(self) -> list[Key | VirtualKey]:
        """All keys that it has; it has none then. Whoever gets them chooses when they are freed."""
        found = list(self._by_digest.values())
        self._by_digest.clear()
        return found

    def only_place(self, request: RequestHead, field: bytes) -> Location | None:
        """The place where heads like `request` show their key if all that varies in them is the
        value of `field`, which is empty here: None if another place has one, too, or if this is
        none or several. `field` is a lower-case name."""
        here = [each for each in self._locations if (each.place, each.name) == ("header", field)]
        if len(here) != 1 or self._secrets(request)[0]:
            return None
        return here[0]

    def shown(self, place: Location, value: bytes, now: float, address: str) -> VirtualKey | None:
        """The key that `value` shows there, if it may be used at `now` from this address."""
        secret = _from_header(value, place.scheme)
        key = self.find(secret) if secret else None
        if key is None or not key.valid_at(now) or not key.covers_address(address):
            return None
        return key

    def authenticate(self, request: RequestHead, now: float, address: str) -> Shown:
        """Who sent this head. Raises MissingKey or InvalidKey as the mode demands.

        The answer holds for every request with the same head until the key's validity changes;
        `valid_at` is to be asked again each time, and all of it where a key is `pending`.
        """
        secrets, shown, query = self._secrets(request)
        if self._mode == "permissive" and len(secrets) != 1:
            return Shown(None, shown, query)
        if len(secrets) > 1:
            raise InvalidKey(
                "invalid credentials: different API keys in one request; send one", _CHALLENGE
            )
        if not secrets:
            if self._mode == "strict":
                raise MissingKey(self._no_key, _CHALLENGE)
            return Shown(None, shown, query)
        key = self.find(secrets.pop())
        if key is None or not key.valid_at(now) or not key.covers_address(address):
            if self._mode == "permissive":
                return Shown(None, shown, query, key is not None and now < key.not_before)
            raise InvalidKey("invalid credentials: unknown, expired or disabled key", _CHALLENGE)
        return Shown(key, shown, query)

    def _secrets(self, request: RequestHead) -> tuple[set[bytes], frozenset[bytes], bytes | None]:
        """The secrets in a head, the fields that may have held one, the query without one."""
        secrets: set[bytes] = set()
        carriers: set[bytes] = set(self._header_names)
        query = request.query
        for place in self._locations:
            if place.place == "header":
                for lower, _, value in request.fields:
                    if lower == place.name:
                        secret = _from_header(value, place.scheme)
                        if secret:
                            secrets.add(secret)
            elif place.place == "query":
                found, query = _from_query(query, place.name)
                secrets.update(found)
            else:
                carriers.add(b"cookie")
                secrets.update(_from_cookies(request, place.name))
        return secrets, frozenset(carriers), query


def _how_to_send(locations: Iterable[str]) -> str:
    """What a client is told that shows no key: where one may stand, in the operator's order."""
    ways = []
    for text in locations:
        place, _, rest = text.partition(":")
        name, _, scheme = rest.partition(":")
        if place == "header":
            shown = name.capitalize() if name.lower() == "authorization" else name
            ways.append(f"'{shown}: {scheme + ' ' if scheme else ''}<key>'")
        else:
            ways.append(f"{'query parameter' if place == 'query' else 'cookie'} '{name}=<key>'")
    return f"send it as {' or '.join(ways)}" if ways else "no place for one is configured"


def _location(text: str) -> Location:
    place, _, rest = text.partition(":")
    name, _, scheme = rest.partition(":")
    if place == "header":
        name = name.lower()
    return Location(place, name.encode(), scheme.lower().encode())


def _from_header(value: bytes, scheme: bytes) -> bytes:
    """The credential of a header value, b"" if it has none (RFC 9110, 11.4)."""
    if not scheme:
        return value
    word, _, rest = value.partition(b" ")
    return rest.strip() if word.lower() == scheme else b""


def _from_query(query: bytes | None, name: bytes) -> tuple[set[bytes], bytes | None]:
    """The credentials in a query, and the query without them."""
    if query is None:
        return set(), None
    found: set[bytes] = set()
    kept = []
    for pair in query.split(b"&"):
        key, _, value = pair.partition(b"=")
        if unquote(key.decode("ascii")) == name.decode():
            found.add(unquote(value.decode("ascii")).encode())
        else:
            kept.append(pair)
    found.discard(b"")
    return found, (b"&".join(kept) if kept else None) if found else query


def _from_cookies(request: RequestHead, name: bytes) -> set[bytes]:
    found = set()
    for lower, _, value in request.fields:
        if lower == b"cookie":
            for pair in value.split(b";"):
                key, _, secret = pair.strip().partition(b"=")
                if key == name and secret:
                    found.add(secret)
    return found
