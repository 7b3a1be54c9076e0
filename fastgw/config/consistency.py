"""What must hold between settings, entries and files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastgw.config.expression import parse_expression
from fastgw.config.formats import same_port
from fastgw.config.problems import Place, meant, quoted
from fastgw.config.tables import Key
from fastgw.config.values import BAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fastgw.config.problems import Problems
    from fastgw.config.tables import Listed


_CREDENTIALS: dict[str, tuple[str, ...]] = {
    "anthropic": ("x-api-key",),
    "azure": ("api-key",),
    "gemini": ("x-goog-api-key",),
}
"""Headers, beside Authorization, in which a dialect sends `api_key`."""


@dataclass(slots=True)
class Entry:
    """One table as read: `values` by field, BAD where wrong, and where each setting stands."""

    values: dict[str, Any]
    places: dict[str, Place]
    place: Place
    written: dict[str, Any] = field(default_factory=dict, repr=False)
    """Values as they stand in the file, by setting."""

    def shown(self, name: str, index: int | None = None) -> str:
        """How a message may show a text: as it stands in the file, variables not put in."""
        raw = self.written.get(name)
        if index is not None and isinstance(raw, list):
            raw = raw[index]
        return quoted(str(raw))

    def at(self, name: str, *below: str | int) -> Place:
        """Where a setting stands; the table where it is not given."""
        found = self.places.get(name)
        if found is None:
            return self.place.at(name)
        return found.at(*found.setting, *below) if below else found

    def good(self, name: str) -> Any:
        """The value of a field, None if it is missing or wrong."""
        value = self.values.get(name, BAD)
        return None if value is BAD else value


@dataclass(slots=True)
class Draft:
    """All tables as read, before they are known to fit together."""

    single: dict[str, Entry]
    listed: dict[str, list[Entry]]
    """All but [[keys]]."""
    keys: list[Key | Entry]
    """Those that are plain, read; those that are not, as entries."""
    entry_of: Callable[[int], Entry]
    """The entry of a key, by its place in `keys`."""
    complete: bool = True
    """Whether every file could be read: only then can one know what is missing."""
    catalog: list[Listed] = field(default_factory=list)
    """What the files of `[pricing] catalogs` hold."""


def check(draft: Draft, problems: Problems) -> None:
    """Report everything in `draft` that does not fit together."""
    alike = [draft.entry_of(number) for number in _alike(draft.keys)]
    for entries in (alike, draft.listed["budgets"], draft.listed["upstreams"]):
        _once(entries, problems, lambda entry: entry.good("name"), "name")
    _once(draft.listed["routes"], problems, _route_target, "path_prefix")
    _secrets(alike, problems)
    for key in draft.keys:
        if isinstance(key, Entry):
            _validity(key, problems)
    for entry in draft.listed["budgets"]:
        _cutoff(entry, problems)
    _routed(draft, problems)
    _tls(draft.single["server"], problems)
    _ports(draft, problems)
    _store(draft, problems)
    if draft.complete:
        _upstreams(draft, problems)
        _metadata(draft, problems)
        _anything_to_serve(draft, problems)


def _once(
    entries: Iterable[Entry],
    problems: Problems,
    identity: Callable[[Entry], Any],
    setting: str,
) -> None:
    first: dict[Any, Entry] = {}
    for entry in entries:
        key = identity(entry)
        if key is None:
            continue
        earlier = first.setdefault(key, entry)
        if earlier is not entry:
            problems.add(
                entry.at(setting),
                f"{entry.shown(setting)} is already used at {earlier.at(setting)}; "
                "give each its own",
            )


def _route_target(entry: Entry) -> Any:
    host, prefix = entry.good("host"), entry.good("path_prefix")
    return None if host is None or prefix is None else (host, prefix)


def _alike(keys: Sequence[Key | Entry]) -> list[int]:
    """The places of keys that share a name or a secret with another."""
    plain = [key for key in keys if isinstance(key, Key)]
    if len(plain) == len(keys):
        digests = [key.digest for key in plain]
        digests += [key.previous_digest for key in plain if key.previous_digest]
        if len({key.name for key in plain}) == len(plain) and len(set(digests)) == len(digests):
            return []  # a third of the time of what follows
    first: dict[object, int] = {}
    found: set[int] = set()
    for number, key in enumerate(keys):
        facts: tuple[Any, ...]
        if isinstance(key, Key):
            facts = (key.name, key.digest, key.previous_digest)
        else:
            facts = (key.good("name"), key.good("digest"), key.good("previous_digest"))
        for fact in facts:
            if fact and first.setdefault(fact, number) != number:
                found |= {first[fact], number}
    return sorted(found)


def _secrets(keys: Iterable[Entry], problems: Problems) -> None:
    owners: dict[bytes, Entry] = {}
    for entry in keys:
        for name in ("digest", "previous_digest"):
            digest = entry.good(name)
            owner = owners.setdefault(digest, entry) if digest else entry
            if owner is not entry:
                problems.add(
                    entry.at(name),
                    f"the same secret as that of key {owner.shown('name')} at "
                    f"{owner.at('digest')}; give each key its own",
                )


def _validity(entry: Entry, problems: Problems) -> None:
    start, end = entry.good("not_before"), entry.good("expires_at")
    if start and end and end <= start:
        problems.add(
            entry.at("expires_at"),
            f"not after not_before ({entry.at('not_before')}): the key would never be valid; "
            "swap or correct them",
        )


def _cutoff(budget: Entry, problems: Problems) -> None:
    unit = budget.good("unit")
    if budget.good("cutoff") == "mid_stream" and unit in ("input_tokens", "requests", "parallel"):
        problems.add(
            budget.at("cutoff"),
            f'no stream grows in {unit}; leave it out, or count "tokens", "output_tokens" or "usd"',
        )


def _tls(server: Entry, problems: Problems) -> None:
    for given, missing in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if server.good(given) and server.good(missing) == "":
            problems.add(server.at(given), f"TLS needs both; give {missing} too")
    if server.good("tls_cert") and server.good("tls_key"):
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(server.good("tls_cert"), server.good("tls_key"), _no_password)
        except ssl.SSLError as error:
            if error.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):  # of its kind
                what = "tls_key is another certificate's; give the key that it was made with"
            else:
                what = "no certificate and key to be read; look whether the two files are whole"
            problems.add(server.at("tls_cert"), what)
        except (OSError, ValueError) as error:
            problems.add(server.at("tls_key"), str(error))


def _no_password() -> str:
    """Asked for where the key is encrypted; without it OpenSSL would ask the terminal."""
    raise ValueError("the key is encrypted; store it without a passphrase")


def _ports(draft: Draft, problems: Problems) -> None:
    server, admin = draft.single["server"], draft.single["admin"]
    addresses = [each for each in server.good("listen") or () if each is not BAD]
    if server.good("listen") == ():
        problems.add(server.at("listen"), 'an empty list; write "127.0.0.1:8080"')
    for index, address in enumerate(addresses):
        if any(same_port(address, other) for other in addresses[:index]):
            problems.add(server.at("listen"), "two addresses share one port; leave out one of them")
    own = admin.good("listen")
    if own and any(same_port(own, address) for address in addresses):
        entry = admin if "listen" in admin.places else server
        problems.add(
            entry.at("listen"),
            "the admin port must not be the data port; give [admin] listen a port of its own, "
            'as "127.0.0.1:9090"',
        )


def _store(draft: Draft, problems: Problems) -> None:
    server, store = draft.single["server"], draft.single["store"]
    if server.good("workers") not in (None, 1) and store.good("url") == "memory:":
        problems.add(
            server.at("workers"),
            "each worker would count for itself in memory:; write workers = 1, or give [store] "
            'url = "sqlite:fastgw.db"',
        )


def _upstreams(draft: Draft, problems: Problems) -> None:
    entries = draft.listed["upstreams"]
    if any(entry.good("name") is None for entry in entries):
        return
    names = [entry.good("name") for entry in entries]
    for entry in entries:
        headers = entry.good("headers")
        if entry.good("api_key") and isinstance(headers, dict):
            places = (*_CREDENTIALS.get(entry.good("dialect"), ()), "authorization")
            for name in headers:
                if name.lower() in places:
                    problems.add(
                        entry.at("headers", name),
                        "api_key is what such a header is sent for; leave one of the two out",
                    )
    for entry in (*draft.listed["routes"], *draft.listed["prices"]):
        upstream = entry.good("upstream")
        if upstream and upstream not in names:
            hint = meant(upstream, names) if names else "add [[upstreams]] with that name"
            problems.add(
                entry.at("upstream"), f"no upstream is named {entry.shown('upstream')}; {hint}"
            )


def _metadata(draft: Draft, problems: Problems) -> None:
    tables = [key.metadata if isinstance(key, Key) else key.good("metadata") for key in draft.keys]
    if not tables or None in tables:
        return
    fields = sorted({name for table in tables for name in table})

    def known(name: str, shown: str, place: Place) -> None:
        if name not in fields:
            problems.add(place, f"no key has the metadata field {shown}; {meant(name, fields)}")

    def refers(text: Any, shown: str, place: Place) -> None:
        if text is BAD:
            return
        expression = parse_expression(text)
        # A default says that the field may be missing, so it may be missing everywhere.
        if expression.kind == "key" and expression.default is None:
            known(
                expression.name, quoted(expression.name) if shown == quoted(text) else shown, place
            )

    for budget in draft.listed["budgets"]:
        for name in budget.good("match") or ():
            known(name, quoted(name), budget.at("match", name))
        for index, text in enumerate(budget.good("per") or ()):
            refers(text, budget.shown("per", index), budget.at("per", index))
    metrics = draft.single["metrics"]
    for name, text in (metrics.good("labels") or {}).items():
        refers(text, quoted(str(metrics.written["labels"][name])), metrics.at("labels", name))


def _routed(draft: Draft, problems: Problems) -> None:
    for route in draft.listed["routes"]:
        if route.good("upstream") == "":
            problems.add(route.at("upstream"), "names no upstream; write the name of one")


def _anything_to_serve(draft: Draft, problems: Problems) -> None:
    for table, example in (
        ("upstreams", 'name = "openai", base_url = "https://api.openai.com/v1"'),
        ("routes", 'path_prefix = "/openai", upstream = "openai"'),
    ):
        if not draft.listed[table]:
            problems.add(
                Place(draft.single["server"].place.source, (table, 0)),
                f"nothing to serve: there are no [[{table}]]; add one with {example}",
            )
