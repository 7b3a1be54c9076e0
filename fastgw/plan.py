"""What a request head comes to: who sent it, where it goes, what may be kept of it.

A plan is worked out once for a head and kept with it; the next request with the same head (same
connection, same client) uses it as it is, until the configuration changes. So everything that does
not depend on the body is here: the key, the route, the upstream head up to Content-Length, and for
each model the accounts, the metric handles and what the access log says of them.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from fastgw.config.expression import parse_expression
from fastgw.config.tables import Key
from fastgw.errors import (
    MetadataMissing,
    MissingKey,
    NotImplementedHere,
    Refusal,
    RouteNotFound,
    UnpricedModel,
    UnsupportedEncoding,
)
from fastgw.http1.forward import client_fields, may_name_model, signature
from fastgw.http1.request import SAFE
from fastgw.http1.serialize import field
from fastgw.keyring import Keyring, VirtualKey
from fastgw.policy.admission import Facts, any_matches, evaluate, make_rules
from fastgw.policy.routing import Router, normalise
from fastgw.relay import only_models
from fastgw.usage.dialects import DIALECTS
from fastgw.usage.gemini import GEMINI
from fastgw.usage.pricing import PriceBook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from fastgw.config.tables import Config, Route, Upstream
    from fastgw.http1.request import HeadShape, RequestHead
    from fastgw.keyring import Location
    from fastgw.model import Usage
    from fastgw.policy.account import Account
    from fastgw.policy.admission import Rule
    from fastgw.policy.ledger import Ledger
    from fastgw.recorder import Record
    from fastgw.upstream.pool import Pool
    from fastgw.usage.api import Api
    from fastgw.usage.pricing import Price

_KEY = re.compile(rb"(?<=[?&])(?:k|%6[bB])(?:e|%65)(?:y|%79)=[^&]*&?")
"""Gemini's place for a credential in the query: what a client puts there is never sent on."""

_MODELS_OF_A_PLAN = 64
_KINDS_OF_A_COURSE = 64
_ASKINGS = 256

LABEL = 256
"""Characters of a metric label."""

FREE = frozenset({"count_tokens"})
"""Operations that cost nothing."""

KEY_INFO = b"/key/info"
"""The one path of the data port that is not a route's: what a key may know of itself."""


Alike = tuple[str, str, int, str, str, bool]
"""What exchanges have in common that end alike: the model asked for, the one that answered, status,
reason, who said what they cost, whether they stream."""


class Plan:
    """See the module. `head` is the upstream head without x-request-id, framing and last CRLF.

    `operation` is "" for paths whose bodies we do not know, `api` the format of its answers,
    `named` the model that its path names, `streams` whether path or format ask for a stream (None:
    where the body does). `metered` says that budgets apply,
    `reads` that the answer is looked at for usage, `counts` that it is counted where it tells none,
    `buffered` that the body is read before it is sent on, `strict` that the model decides, `exact`
    that the body is sent as we read it. `informs`: no route, the key asks about itself.
    """

    __slots__ = (
        "accounts",
        "api",
        "asks_usage",
        "buffered",
        "clamps",
        "counts",
        "cuts",
        "echoes",
        "edit",
        "exact",
        "facts",
        "generation",
        "head",
        "in_usd",
        "informs",
        "key",
        "lines",
        "metered",
        "named",
        "operation",
        "path",
        "plain",
        "pool",
        "prices",
        "reads",
        "records",
        "request_id",
        "reserves",
        "route",
        "streams",
        "strict",
    )

    api: Api
    key: VirtualKey
    route: Route
    pool: Pool
    prices: PriceBook

    def __init__(self, like: Plan | None = None, key: VirtualKey | None = None) -> None:
        """`like`: the plan of another key under the same rules, for the same shape of heads."""
        self.accounts: dict[str, tuple[Account, ...]] = {}
        self.records: dict[Alike, Record] = {}
        if like is not None and key is not None:
            self._be(like, key)
            return
        self.generation = 0
        self.head = b""
        self.path = ""
        self.operation = ""
        self.named = ""
        self.streams: bool | None = None
        self.metered = False
        self.informs = False
        self.reads = False
        self.exact = False
        self.reserves = False  # a budget has a hard cap
        self.clamps = False  # and may limit the answer
        self.cuts = False  # a budget ends streams that cross its limit
        self.in_usd = False  # a budget counts dollars
        self.buffered = False
        self.strict = False
        self.plain = False  # of the body only the model is wanted, unless it is a stream
        self.counts = False  # an answer without usage is counted
        self.echoes = False  # the answer repeats JSON of the client's
        self.edit: Callable[[bytes], bytes | None] | None = None  # what becomes of an answer's body
        self.asks_usage: Asking | None = None  # streams are asked for their usage
        self.request_id = b""
        self.facts: Facts = Facts({}, _no_header, "", "")
        self.lines: dict[Alike, tuple[bytes, bytes]] = {}
        """Parts of the log line, before and after the key."""

    def _be(self, like: Plan, key: VirtualKey) -> None:
        self.generation = like.generation
        self.key = key
        self.route = like.route
        self.pool = like.pool
        self.prices = like.prices
        self.api = like.api
        self.head = like.head
        self.path = like.path
        self.operation = like.operation
        self.named = like.named
        self.streams = like.streams
        self.metered = like.metered
        self.reads = like.reads
        self.exact = like.exact
        self.reserves = like.reserves
        self.clamps = like.clamps
        self.cuts = like.cuts
        self.in_usd = like.in_usd
        self.buffered = like.buffered
        self.strict = like.strict
        self.plain = like.plain
        self.counts = like.counts
        self.echoes = like.echoes
        self.asks_usage = like.asks_usage
        self.lines = like.lines
        self.informs = False
        self.edit = None
        self.request_id = like.request_id
        _, header, path, model = like.facts
        self.facts = Facts(key.metadata, header, path, model)

    def allows_model(self, model: str) -> bool:
        """Whether key and route cover this model; "" is a request that names none."""
        patterns = self.key.allowed_models
        if patterns and not (model and any_matches(patterns, model)):
            return False
        patterns = self.route.models
        return not patterns or bool(model and any_matches(patterns, model))


class Course:
    """What heads of one shape come to: where their credential is, None where it alone does not say
    who sent them, and a plan for each kind of key: its rules, and whether it names models."""

    __slots__ = ("generation", "place", "plans")

    def __init__(self, generation: int, place: Location | None) -> None:
        self.generation = generation
        self.place = place
        self.plans: dict[tuple[tuple[Rule, ...], bool], Plan] = {}


class Asking:
    """Whether streams of one path and query of an upstream are asked for their usage: all but those
    of models (as clients call them) for which it said that it does not know the option. Another
    model or API version may know it, and no client decides for those who use that."""

    __slots__ = ("on", "without")

    def __init__(self, on: bool) -> None:
        self.on = on
        self.without: set[str] = set()

    def rejected(self, model: str) -> None:
        """The option is not known there."""
        if len(self.without) >= _MODELS_OF_A_PLAN:
            self.without.clear()
        if len(model) <= LABEL:
            self.without.add(model)


def _no_header(name: str) -> str | None:
    return None


class Planner:
    """Makes plans for one configuration."""

    def __init__(
        self, config: Config, ledger: Ledger, pools: Mapping[str, Pool], generation: int
    ) -> None:
        self.generation = generation
        self.rules = make_rules(config.budgets)
        self.keyring = Keyring(config.auth, config.keys, self.rules)
        self._router = Router(config.routes, config.upstreams)
        self._pools = pools
        self._ledger = ledger
        self._upstreams = {upstream.name: upstream for upstream in config.upstreams}
        self._prefixes: dict[tuple[str, str], bytes] = {}
        self._asking: dict[tuple[str, bytes, bytes | None], Asking] = {}
        self._labels = tuple(
            parse_expression(text) for text in (config.metrics.labels or {}).values()
        )
        # whether the key alone decides which accounts a request draws on, and what its labels say
        self._by_key = all(each.kind == "key" for rule in self.rules for each in rule.per)
        self._labels_by_key = all(each.kind == "key" for each in self._labels)
        self._named_headers = {
            each.name
            for each in (*self._labels, *(each for rule in self.rules for each in rule.per))
            if each.kind == "header"
        }
        self.anonymous = VirtualKey(Key(name=""), self.rules)
        self.prices = PriceBook(config)
        self._on_unpriced = config.pricing.on_unpriced

    def plan(self, request: RequestHead, now: float, address: str) -> Plan:
        """Authenticate and route a head. Raises a Refusal.

        Of a head whose shape is known its key is looked up, and all else is as for another key
        under the same budgets.
        """
        shape = request.shape
        if shape is None:
            return self._plan(request, now, address)
        course: Course | None = shape.course
        if course is None or course.generation != self.generation:
            course = shape.course = self._course(shape)
        if course.place is None:
            return self._plan(request, now, address)
        key = self.keyring.shown(course.place, shape.credential(request), now, address)
        if key is None:  # to be told why
            return self._plan(request, now, address)
        kind = (key.rules, bool(key.allowed_models))
        known = course.plans.get(kind)
        if known is not None:
            return Plan(known, key)
        plan = self._plan(request, now, address)
        # An edit knows the key; and who asks about itself is seldom.
        if plan.edit is None and not plan.informs:
            if len(course.plans) >= _KINDS_OF_A_COURSE:
                course.plans.clear()
            course.plans[kind] = Plan(plan, self.anonymous)
        return plan

    def _course(self, shape: HeadShape) -> Course:
        """What heads of this shape come to, as far as it is their credential that says who sent
        them, and says nothing else."""
        place = None
        if shape.name and shape.name.decode() not in self._named_headers:
            place = self.keyring.only_place(shape.head(b""), shape.name)
        return Course(self.generation, place)

    def _plan(self, request: RequestHead, now: float, address: str) -> Plan:
        plan = Plan()
        plan.generation = self.generation
        plan.prices = self.prices  # an exchange ends by those under which it began
        plan.request_id = request.request_id
        if request.path == b"*":
            raise NotImplementedHere("OPTIONS * is not served here")
        path = normalise(request.path)
        shown = self.keyring.authenticate(request, now, address)
        plan.key = shown.key or self.anonymous
        if shown.pending:
            plan.generation = 0  # who sent the next one is asked again
        target = self._router.find(request.host, path, request.method)
        if target is None and path == KEY_INFO and request.method in (b"GET", b"HEAD"):
            if shown.key is None:
                raise MissingKey(
                    "no API Key found: send the key that you ask about",
                    (("www-authenticate", "Bearer"),),
                )
            plan.informs = True
            plan.path = path.decode("ascii")
            plan.facts = Facts(plan.key.metadata, self._headers(request), plan.path, "")
            return plan
        if target is None:
            raise RouteNotFound("no route covers this path; check the base URL")
        route = plan.route = target.route
        upstream = self._upstreams[route.upstream]
        plan.pool = self._pools[upstream.name]
        plan.path = path.decode("ascii")
        writes = request.method not in SAFE or request.has_body
        dialect = DIALECTS[upstream.dialect]
        below = target.below.replace("%3A", ":")  # which a provider may read as the same
        plan.api, operation = dialect.find(below)
        if request.method == b"POST":
            plan.operation = operation
        api = plan.api
        plan.named = unquote(api.path_model(below))
        plan.streams = api.path_streams(below)
        if plan.streams is None and operation in api.STREAMS:
            plan.streams = True
        plan.metered = writes and route.budgets and operation not in FREE
        limited = bool(plan.key.allowed_models or route.models)
        plan.strict = writes and limited
        plan.exact = plan.strict or any(
            expression.kind == "model" for rule in plan.key.rules for expression in rule.per
        )
        if plan.metered:
            limits = [rule.limit for rule in plan.key.rules]
            plan.reserves = any(limit.reserves for limit in limits)
            plan.clamps = any(limit.clamps and limit.reserves for limit in limits)
            plan.in_usd = any(limit.unit == "usd" for limit in limits)
            # What is promised, and priced, is what is sent.
            plan.exact = plan.exact or plan.reserves or plan.in_usd
        replaces = writes and not plan.named and bool(upstream.model or upstream.model_aliases)
        plan.buffered = (
            plan.strict
            or (plan.operation != "" and (plan.metered or replaces))
            or ((plan.in_usd or replaces) and may_name_model(request, target.below))
        )
        plan.counts = plan.operation != ""
        plan.reads = plan.metered and (
            plan.counts or not target.below.lower().startswith(api.SHOWS_OLD_USAGE)
        )
        plan.cuts = plan.counts and plan.metered and any(rule.limit.cuts for rule in plan.key.rules)
        plan.echoes = plan.operation in api.ECHOES
        plan.plain = (
            plan.operation not in ("", "batch", "responses")
            and plan.streams is None
            and not (plan.exact or plan.reserves or plan.cuts or plan.named)
            and not (upstream.model or upstream.model_aliases)
        )
        if (
            limited
            and request.method == b"GET"
            and target.below.lower().endswith(tuple(api.MODELS))
        ):
            plan.edit = partial(only_models, plan.allows_model)
        if plan.metered and plan.operation in api.TAKES_STREAM_OPTIONS:
            asks = upstream.include_usage and dialect.asks
            plan.asks_usage = self._asking_at(upstream.name, target.path, shown.query, asks)
        if plan.buffered and request.get(b"content-encoding") not in (None, b"identity"):
            raise UnsupportedEncoding("send the body without Content-Encoding: it must be read")
        plan.facts = Facts(plan.key.metadata, self._headers(request), plan.path, "")
        query = b"" if shown.query is None else b"?" + shown.query
        if query and (api is GEMINI or upstream.dialect == "gemini"):
            query = _KEY.sub(b"", query).rstrip(b"?&")
        path = target.path
        if plan.named:
            sent = upstream.model or (upstream.model_aliases or {}).get(plan.named, "")
            if sent:
                head = path.rstrip(b"/")[: -len(target.below)]
                path = head + api.with_model(below, quote(sent, safe="")).encode()
        plan.head = b"%b %b%b HTTP/1.1\r\n%b%b%b" % (
            request.method,
            path,
            query,
            self._prefix(upstream, dialect.credential or api.credential),
            client_fields(
                request, shown.fields, upstream.headers or (), plan.metered, plan.edit is not None
            ),
            signature(request) if upstream.dialect == "bedrock" and not upstream.api_key else b"",
        )
        return plan

    def _asking_at(self, upstream: str, path: bytes, query: bytes | None, asks: bool) -> Asking:
        found = self._asking.get((upstream, path, query))
        if found is None:
            if len(self._asking) >= _ASKINGS:
                self._asking.clear()  # what is forgotten is asked again, and rejected again
            found = self._asking[upstream, path, query] = Asking(asks)
        return found

    def _headers(self, request: RequestHead) -> Callable[[str], str | None]:
        """The headers that budgets and labels refer to. The head has the plan, so the plan must not
        have the head: what is in a circle is freed late, and by the collector."""
        if not self._named_headers:
            return _no_header
        found = {}
        for name in self._named_headers:
            value = request.get(name.encode())
            if value is not None:
                found[name] = value.decode("latin-1")
        return found.get

    def accounts(self, plan: Plan, model: str, now: float) -> tuple[Account, ...]:
        """The accounts that a request of this plan for `model` draws on. Raises MetadataMissing."""
        # of an older plan the rules are older, too, whatever they counted by
        by_key = self._by_key and plan.generation == self.generation
        accounts = plan.key.accounts if by_key else None
        if accounts is None:
            accounts = self._find_accounts(plan, model, now)
            if by_key:
                plan.key.accounts = accounts
        if plan.in_usd:
            self._refuse_unpriced(plan, model, accounts)
        if len(plan.accounts) >= _MODELS_OF_A_PLAN:
            plan.accounts.clear()
        if len(model) <= LABEL:  # a longer one is not kept: its length is the client's choice
            plan.accounts[model] = accounts
        return accounts

    def _find_accounts(self, plan: Plan, model: str, now: float) -> tuple[Account, ...]:
        found: list[Account] = []
        facts = plan.facts.of(model)
        for rule in plan.key.rules:
            values = rule.values(facts)
            if values is not None:
                found.append(self._ledger.account(rule.limit, values, now))
            elif rule.denies_missing:
                missing = ", ".join(
                    expression.source
                    for expression in rule.per
                    if evaluate(expression, facts) is None
                )
                raise MetadataMissing(
                    f"budget '{rule.limit.name}' counts by {missing}, which this request has not; "
                    'add it to the key, or set on_missing = "skip"'
                )
        return tuple(found)

    def price(self, plan: Plan, model: str, answered: str = "") -> Price | None:
        """The price of the model that answered, else of the one that was sent, else of the one
        that the client asked for; None if none of them has one."""
        upstream = plan.pool.settings
        sent = upstream.model or (upstream.model_aliases or {}).get(model, "")
        for name in (answered, sent, model or plan.named):
            if name and (price := plan.prices.find(upstream.name, name)) is not None:
                return price
        return None

    def priced(self, plan: Plan | None, model: str, usage: Usage, answered: str = "") -> Usage:
        """`usage` with its cost, where a budget counts dollars."""
        if plan is None or not plan.in_usd or usage.source == "none":
            return usage
        price = self.price(plan, model, answered)
        return usage if price is None else usage._replace(cost=price.cost(usage))

    def _refuse_unpriced(self, plan: Plan, model: str, accounts: Iterable[Account]) -> None:
        """Raise UnpricedModel if the configuration says so. A path that we do not know and whose
        body names no model may be free: what its answer reports is priced then."""
        budgets = [
            each.limit for each in accounts if each.limit.unit == "usd" and not each.limit.shadow
        ]
        if not budgets or self._on_unpriced != "deny" or self.price(plan, model) is not None:
            return
        name = model or plan.named
        if plan.operation or name or any(limit.reserves for limit in budgets):
            what = f"model '{name[:100]}' has no price" if name else "no model is named"
            raise UnpricedModel(
                f"{what}, and budget '{budgets[0].name}' counts dollars; use another model, or "
                "have the operator add it to [[prices]]"
            )

    def standing(self, plan: Plan, now: float) -> list[tuple[Rule, Account | None]]:
        """The budgets of a key that asks about itself, each with the account that its requests draw
        on; None where that depends on what they ask for: a model, a path, a field that this head
        lacks. One that counts by a field of keys which this key lacks never has an account."""
        found: list[tuple[Rule, Account | None]] = []
        facts = plan.facts
        for rule in plan.key.rules:
            if any(each.kind == "key" and evaluate(each, facts) is None for each in rule.per):
                continue
            asks = any(each.kind in ("path", "model") for each in rule.per)
            values = None if asks else rule.values(facts)
            account = None if values is None else self._ledger.account(rule.limit, values, now)
            found.append((rule, account))
        return found

    def shape(self, request: RequestHead | None) -> str:
        """The dialect in which the sender of a head reads an error."""
        try:
            if request is not None:
                path = normalise(request.path)
                target = self._router.find(request.host, path, request.method)
                if target is not None:
                    dialect = DIALECTS[self._upstreams[target.route.upstream].dialect]
                    return dialect.find(target.below.replace("%3A", ":"))[0].shape
        except Refusal:
            pass
        return "openai"

    def _prefix(self, upstream: Upstream, credential: str) -> bytes:
        """The part of the upstream head that is the same for all requests: Host, our credential in
        the header that the format wants, extras."""
        found = self._prefixes.get((upstream.name, credential))
        if found is None:
            authority = upstream.base_url.split("//", 1)[1].split("/", 1)[0]
            lines = [field("host", authority)]
            if upstream.api_key:
                name, _, scheme = credential.partition(": ")
                lines.append(field(name, scheme + upstream.api_key))
            lines += [
                field(name.lower(), value) for name, value in (upstream.headers or {}).items()
            ]
            found = self._prefixes[upstream.name, credential] = b"".join(lines)
        return found

    def labels(self, plan: Plan | None, model: str) -> tuple[str, ...]:
        """The values of the operator's metric labels, "" where one has no value."""
        if plan is None:
            return ("",) * len(self._labels)
        key = plan.key
        if self._labels_by_key and key.labels is not None:
            return key.labels
        facts = plan.facts.of(model)
        values = tuple([(evaluate(expression, facts) or "")[:LABEL] for expression in self._labels])
        if self._labels_by_key:
            key.labels = values
        return values
