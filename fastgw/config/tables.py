"""One frozen dataclass for each table of config.toml; a setting is declared here and nowhere else.

Each field carries its documentation and its kind; the reader, `fastgw check` and docs/settings.md
follow from them. Values are held in base units: bytes, seconds, tokens. No field holds a virtual
key's secret: the reader hashes it before it builds a `Key`.
"""

# ruff: noqa: RUF009 - `setting` returns a dataclass field, not a value shared by instances

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, NamedTuple

KiB = 1024
MiB = 1024 * KiB

Kind = Literal[
    "text", "secret", "number", "size", "duration", "flag", "list", "table", "address", "choice",
    "window", "time", "url", "path", "workers", "usd", "tiers",
]  # fmt: skip
"""How a TOML value is read. `size` takes 1024 or "1KiB"; `duration` takes 1.5 or "1500ms", "10s",
"5m", "2h"; `workers` a number or "auto"; `list` takes a list of strings or one string; `table` a
table of strings; `time` a TOML date-time or an RFC 3339 string; `choice` one of the words in the
field's `choices`; `usd` dollars, 12.5 or "12.50", held in nano-USD; `tiers` a list of tables with
prices of their own."""

REQUIRED: Any = object()

AUTO = 0
"""`workers = "auto"`: one for each CPU that the process may use."""


def setting(
    default: Any,
    doc: str,
    kind: Kind = "text",
    choices: tuple[str, ...] = (),
    later: tuple[str, ...] = (),
    *,
    least: float | None = None,
    most: float | None = None,
    spelled: dict[str, str] | None = None,
    private: bool = False,
) -> Any:
    """Declare a field: its default (or REQUIRED), a line of documentation, its kind.

    `later` lists choices that the contract names but this version does not serve: the reader
    refuses them with a message that says so, instead of accepting them in silence.
    `least` and `most` bound a number, inclusive, and `least` a duration. Without `least` a number
    or size is at least 1 and a duration is above 0.
    `spelled` names the settings, with their documentation, that a user writes to fill this field,
    where that is not the field's own name.
    `private` keeps a value that may hold a credential out of `repr` and of problem lines; a field
    of kind `secret` is always private.
    """
    private = private or kind == "secret"
    metadata = {
        "doc": doc,
        "kind": kind,
        "choices": choices,
        "later": later,
        "least": least,
        "most": most,
        "spelled": spelled or {},
        "private": private,
    }
    if default is REQUIRED:
        return field(metadata=metadata | {"required": True}, repr=not private)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata, repr=not private)
    return field(default=default, metadata=metadata, repr=not private)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The data port: where applications send their requests."""

    listen: tuple[str, ...] = setting(
        ("127.0.0.1:8080",), "host:port, [::]:port or unix:/path; a list for several", "address"
    )
    workers: int = setting(
        1, 'processes that serve the port; "auto": one for each usable CPU', "workers", most=1024
    )
    max_connections: int = setting(10_000, "client connections of a worker", "number")
    max_request_line: int = setting(16 * KiB, "request line; past it 414", "size")
    max_head: int = setting(64 * KiB, "request line and headers together; past it 431", "size")
    max_header_fields: int = setting(100, "header fields; past it 431", "number")
    max_request_body: int = setting(32 * MiB, "request body; past it 413", "size")
    buffer_size: int = setting(
        256 * KiB, "bytes held for a slow reader, each way, before the sender is paused", "size"
    )
    header_timeout: float = setting(10.0, "time for a whole request head; then 408", "duration")
    max_body_memory: int = setting(
        512 * MiB,
        "request bodies held by a worker, all together; past it 503. An eighth of it "
        "may keep prompts above 16 KiB until their answers are over, in case nobody reports usage",
        "size",
    )
    body_timeout: float = setting(
        30.0, "time in which 4 KiB of a request body, or its rest, must come; then 408", "duration"
    )
    idle_timeout: float = setting(75.0, "silence between requests of a connection", "duration")
    send_timeout: float = setting(
        60.0, "a client that takes no byte of its answer for so long is cut off", "duration"
    )
    drain_timeout: float = setting(
        30.0, "on SIGTERM: time for running exchanges to finish", "duration", least=0
    )
    cors_origins: tuple[str, ...] = setting(
        (), 'origins whose pages may call from a browser, as "https://app.example.org"; "*" = all',
        "list",
    )  # fmt: skip
    tls_cert: str = setting("", "PEM certificate chain; with tls_key the data port is TLS", "path")
    tls_key: str = setting("", "PEM private key", "path")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admin:
    """The port of the operator: metrics, health, budgets. Never the data port."""

    listen: str = setting("127.0.0.1:9090", 'host:port or unix:/path; "" turns it off', "address")
    token: str = setting(
        "",
        "what the rest of the port asks for",
        "secret",
        spelled={
            "token": "needed for all but /metrics and /healthz; empty turns the rest off",
            "token_file": "instead of `token`: a file that holds it and nothing else",
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where budgets are kept."""

    url: str = setting(
        "sqlite:fastgw.db",
        "sqlite:PATH, memory:, redis://host:port/db, redis+sentinel://host,host/service, "
        "redis+cluster://host,host; rediss for TLS",
        "url",
        private=True,
    )
    on_failure: str = setting(
        "local",
        "store away: local = go on with what is known, closed = 503, open = admit all",
        "choice",
        ("local", "closed", "open"),
    )
    prefix: str = setting("fastgw", "first part of every key in Redis")
    journal: str = setting(
        "auto",
        "folder where debits survive a crash until the store has them; auto = beside the SQLite "
        'file, else $STATE_DIRECTORY or the working directory; "" = none',
    )
    timeout: float = setting(
        0.5, "hard deadline of one call to the store; SQLite: 5 s at least", "duration"
    )
    max_staleness: float = setting(
        0.1, "an account known for longer than this is asked for again", "duration", least=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """How an application says which virtual key it has."""

    mode: str = setting(
        "strict",
        "strict = a valid key or 401, optional = none passes and a wrong one is 401, "
        "permissive = all pass",
        "choice",
        ("strict", "optional", "permissive"),
    )
    locations: tuple[str, ...] = setting(
        ("header:authorization:Bearer", "header:x-api-key"),
        "tried in order: header:NAME, header:NAME:SCHEME, query:NAME, cookie:NAME",
        "list",
    )
    key_files: tuple[str, ...] = setting(
        (), "more [[keys]]: file patterns, relative to this file", "list"
    )


@dataclass(slots=True, kw_only=True)  # frozen takes three times as long to make, of 100,000
class Key:
    """A virtual key. `digest` is the SHA-256 of its secret (32 bytes); the secret is not kept.

    Nobody changes one."""

    name: str = setting(REQUIRED, "unique name, shown in logs and reports")
    digest: bytes = setting(
        b"",
        "from `key`, `key_hash` or `key_file`",
        "secret",
        spelled={
            "key": "the secret that clients send, 8 characters or more; better ${VAR} than itself",
            "key_hash": "instead of `key`: sha256: and the 64 hex digits of the secret's SHA-256",
            "key_file": "instead of `key`: a file that holds the secret and nothing else",
        },
    )
    previous_digest: bytes = setting(
        b"",
        "from `previous_key_hash`",
        "secret",
        spelled={
            "previous_key_hash": "sha256:…, also valid while a rotation is under way",
        },
    )
    metadata: dict[str, str] = setting({}, "facts that budgets and metric labels refer to", "table")
    allowed_models: tuple[str, ...] = setting(
        (), "exact names, or with one leading or trailing *; empty allows all", "list"
    )
    allowed_ips: tuple[str, ...] = setting((), "addresses or networks; empty allows all", "list")
    not_before: float = setting(0.0, "not valid earlier", "time")
    expires_at: float = setting(0.0, "not valid from then on; unset: never", "time")
    disabled: bool = setting(False, "refused as if it did not exist", "flag")


@dataclass(frozen=True, slots=True)
class CalendarWindow:
    """A window that follows the calendar of a time zone: `{ calendar = "month", timezone = … }`."""

    calendar: str
    timezone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A rule that counts. One account is kept for each distinct value of `per`."""

    name: str = setting(REQUIRED, "unique name, shown in refusals and metrics")
    match: dict[str, str] = setting(
        {}, "applies to keys with this metadata; exact, or one leading or trailing *", "table"
    )
    per: tuple[str, ...] = setting(
        (),
        'metadata field, apiKey.FIELD, request.headers["NAME"], request.path or llm.model; '
        'each may have a default: default(EXPR, "VALUE"). Empty: one account for all',
        "list",
    )
    unit: str = setting(
        "tokens",
        'what is counted; usd: dollars, the limit as 12.5 or "12.50"; parallel: requests that run '
        "at one time, without a window",
        "choice",
        ("tokens", "input_tokens", "output_tokens", "requests", "usd", "parallel"),
    )
    limit: int = setting(
        REQUIRED, "amount of the unit in a window; 0 refuses all", "number", least=0
    )
    window: str | CalendarWindow = setting(
        "day",
        "second minute hour day week month year (aligned to the epoch), or "
        '{ calendar = "day|week|month|year", timezone = "Europe/Berlin" }',
        "window",
    )
    admission: str = setting(
        "post",
        "post = the request that crosses the limit completes, the next is refused; "
        "reserve = hard cap: what a request may cost is held before it runs",
        "choice",
        ("post", "reserve"),
    )
    wait: float = setting(
        1.0,
        "reserve and parallel: what is left is held by running requests; wait so long for it, "
        "then 429",
        "duration",
        least=0,
    )
    clamp_max_tokens: bool = setting(
        False, "reserve: limit the answer to what is left rather than wait or refuse", "flag"
    )
    cutoff: str = setting(
        "none",
        "mid_stream = a stream ends at the event that crosses the limit; of units tokens, "
        "output_tokens and usd",
        "choice",
        ("none", "mid_stream"),
    )
    shadow: bool = setting(False, "count and report, never refuse", "flag")
    on_missing: str = setting(
        "deny", "key lacks a field of `per`: deny = 403, skip = not counted", "choice",
        ("deny", "skip"),
    )  # fmt: skip
    warn_at: float = setting(
        0.0, "log a line when this share (0 to 1) is used", "number", least=0, most=1
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A provider."""

    name: str = setting(REQUIRED, "unique name")
    base_url: str = setting(REQUIRED, "https://host/path: what the route's prefix becomes", "url")
    api_key: str = setting(
        "",
        "our credential towards the provider",
        "secret",
        spelled={
            "api_key": "our credential towards the provider; better ${VAR} than itself",
            "api_key_file": "instead of `api_key`: a file that holds it and nothing else",
        },
    )
    dialect: str = setting(
        "openai",
        "how requests and usage are read and how the credential is sent; auto = by the path",
        "choice",
        (
            "openai",
            "azure",
            "anthropic",
            "gemini",
            "bedrock",
            "cohere",
            "ollama",
            "tgi",
            "watsonx",
            "mistral",
            "groq",
            "deepseek",
            "xai",
            "openrouter",
            "vllm",
            "sglang",
            "llamacpp",
            "auto",
        ),
    )
    model: str = setting("", "sent in place of the model that the client asked for, on every path")
    model_aliases: dict[str, str] = setting(
        {}, "model the client asks for = model that is sent", "table"
    )
    include_usage: bool = setting(
        True, "ask for the usage of streams; false for a provider that rejects the option", "flag"
    )
    default_max_tokens: int = setting(
        4096,
        "output tokens that reserve expects of a request that names no max_tokens",
        "number",
    )
    forward_ratelimit_headers: bool = setting(
        False, "let the provider's x-ratelimit-* through to clients", "flag"
    )
    headers: dict[str, str] = setting({}, "added to every request", "table", private=True)
    ca_file: str = setting("", "PEM of the authorities to trust instead of the system's", "path")
    connect_timeout: float = setting(10.0, "TCP and TLS handshake; then 504", "duration")
    first_byte_timeout: float = setting(600.0, "until the answer begins; then 504", "duration")
    idle_timeout: float = setting(120.0, "silence within an answer; then it is cut", "duration")
    total_timeout: float = setting(3600.0, "a whole exchange", "duration")
    keepalive_timeout: float = setting(15.0, "an idle connection is kept for so long", "duration")
    max_connections: int = setting(4096, "connections of a worker, busy and idle", "number")
    on_disconnect: str = setting(
        "stop",
        "the client leaves in mid-answer: stop the provider and charge what was sent, or drain = "
        "read on to the usage that it reports",
        "choice",
        ("stop", "drain"),
    )
    drain_timeout: float = setting(30.0, "drain: time for one, then it is stopped", "duration")
    max_drain_bytes: int = setting(4 * MiB, "drain: bytes of one, then it is stopped", "size")
    max_drains: int = setting(64, "drain: at one time in a worker; 0: none", "number", least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Which requests go to which upstream."""

    path_prefix: str = setting(REQUIRED, "/openai covers /openai and /openai/…, not /openaix")
    upstream: str = setting(REQUIRED, "name of an upstream")
    host: str = setting("", "only requests for this host name")
    models: tuple[str, ...] = setting((), "only these models; one leading or trailing *", "list")
    budgets: bool = setting(True, "false: neither metered nor limited", "flag")


class Rates(NamedTuple):
    """Prices in nano-USD for a million tokens; None: as `input`, of reasoning as `output`.

    `above`: they hold for requests with more input tokens than that. `request`: nano-USD for each
    request, beside its tokens; None: nothing.
    """

    above: int
    input: int | None
    output: int | None
    cache_read: int | None = None
    cache_write: int | None = None
    reasoning: int | None = None
    request: int | None = None


class Listed(NamedTuple):
    """A model of a catalog. `provider` by our name for it; `rates` by rising `above`, from 0."""

    provider: str
    model: str
    rates: tuple[Rates, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """Where the prices of models come from."""

    builtin: bool = setting(True, "use the table that comes with fastgw", "flag")
    catalogs: tuple[str, ...] = setting(
        (),
        "files of prices, as LiteLLM's model_prices JSON or agentgateway's catalog; a later one "
        "wins, and [[prices]] over all",
        "list",
    )
    on_unpriced: str = setting(
        "deny",
        "under a budget in usd, a model without price: deny = 403, warn = charged nothing, logged "
        "and counted",
        "choice",
        ("deny", "warn"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """Who used what: sums by day, key, model and metric label, kept in the store."""

    enabled: bool = setting(True, "keep them", "flag")
    retention: float = setting(
        30 * 86_400.0, "how long a day is kept, a day at least", "duration", least=86_400
    )
    max_series: int = setting(
        1000,
        "keys x models x labels of a worker and day; past it models count under `other`, past "
        "twice as many keys, too",
        "number",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model costs, in dollars for a million tokens. The last entry that fits wins."""

    model: str = setting(REQUIRED, "exact, or with one leading or trailing *")
    upstream: str = setting("", "only at this upstream; such an entry wins over one for all")
    input: int = setting(REQUIRED, 'as "2.50"', "usd", least=0)
    output: int = setting(REQUIRED, "reasoning included", "usd", least=0)
    cache_read: int | None = setting(None, "of input tokens read from a cache; as input", "usd")
    cache_write: int | None = setting(None, "of input tokens put into a cache; as input", "usd")
    reasoning: int | None = setting(None, "where reasoning is priced apart; as output", "usd")
    request: int | None = setting(None, "dollars for each request, beside its tokens", "usd")
    tiers: tuple[Rates, ...] = setting(
        (),
        "other prices for long prompts: [{ above = 200_000, input = 5, output = 22.5 }], with any "
        "of these prices",
        "tiers",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What Prometheus sees."""

    namespace: str = setting("fastgw", '"agentgateway" keeps its dashboards working')
    labels: dict[str, str] = setting(
        {}, "label = expression, as in a budget's `per`; `unknown` where it has no value", "table"
    )
    max_series: int = setting(
        10_000, "label combinations; past it new ones count under `other`", "number"
    )
    label_buckets: bool = setting(
        False, "full histogram buckets for the series with labels of your own", "flag"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLog:
    """One JSON line for each request."""

    path: str = setting("-", '"-" is standard output, "" turns it off', "path")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration, valid as a whole.

    Files that fastgw reads (`tls_cert`, `tls_key`, `ca_file`) are relative to the file that names
    them and stand here resolved; files that it writes (`sqlite:PATH`, `[access_log] path`) are
    relative to the working directory.
    """

    server: Server = field(default_factory=Server)
    admin: Admin = field(default_factory=Admin)
    store: Store = field(default_factory=Store)
    auth: Auth = field(default_factory=Auth)
    keys: tuple[Key, ...] = ()
    budgets: tuple[Budget, ...] = ()
    upstreams: tuple[Upstream, ...] = ()
    routes: tuple[Route, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)
    access_log: AccessLog = field(default_factory=AccessLog)
    pricing: Pricing = field(default_factory=Pricing)
    usage: UsageReport = field(default_factory=UsageReport)
    prices: tuple[Price, ...] = ()
    catalog: tuple[Listed, ...] = field(default=(), repr=False)
    """What the files of `[pricing] catalogs` hold, in their order."""
    digest: str = ""
    """SHA-256 of the text of all files, hex: which configuration a process runs."""


SINGLE_TABLES: dict[str, type[Any]] = {
    "server": Server,
    "admin": Admin,
    "store": Store,
    "auth": Auth,
    "metrics": Metrics,
    "access_log": AccessLog,
    "pricing": Pricing,
    "usage": UsageReport,
}
"""Tables that stand once, as `[server]`."""

LISTED_TABLES: dict[str, type[Any]] = {
    "keys": Key,
    "budgets": Budget,
    "upstreams": Upstream,
    "routes": Route,
    "prices": Price,
}
"""Tables that may stand many times, as `[[keys]]`."""

LATER_SETTINGS: dict[str, str] = {}
"""Settings that the contract names but this version does not serve, with what to do instead."""


class Setting(NamedTuple):
    """One field as the reader and the documentation see it."""

    name: str
    kind: Kind
    doc: str
    default: Any
    """REQUIRED where there is none."""
    many: bool
    """Whether the field holds a tuple of texts."""
    whole: bool
    """For numbers: whether it must be a whole one."""
    choices: tuple[str, ...]
    later: tuple[str, ...]
    least: float | None
    most: float | None
    spelled: dict[str, str]
    private: bool


def settings_of(table: type[Any]) -> dict[str, Setting]:
    """The settings of a table's dataclass by field name, in the order of declaration."""
    found: dict[str, Setting] = {}
    for each in fields(table):
        facts = each.metadata
        default: Any = each.default
        if facts.get("required"):
            default = REQUIRED
        elif each.default_factory is not MISSING:
            default = each.default_factory()
        found[each.name] = Setting(
            name=each.name,
            kind=facts["kind"],
            doc=facts["doc"],
            default=default,
            many=str(each.type).startswith("tuple"),
            whole=str(each.type) == "int",
            choices=facts["choices"],
            later=facts["later"],
            least=facts["least"],
            most=facts["most"],
            spelled=facts["spelled"],
            private=facts["private"],
        )
    return found


def spellings(table: type[Any]) -> dict[str, str]:
    """What a user may write in a table: setting = its documentation."""
    written: dict[str, str] = {}
    for each in settings_of(table).values():
        written.update(each.spelled or {each.name: each.doc})
    return written
