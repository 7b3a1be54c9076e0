"""What the text of a setting must look like, beyond its kind.

A format takes the text and how it may be shown in a message, and returns the text to keep; it
raises ValueError with what is wrong and what to write. `TEXTS` and `PAIRS` say which setting has
which. A message holds `shown`, never the text: that may come from the environment.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from fastgw.config.expression import parse_expression
from fastgw.config.problems import meant, nearest, quoted
from fastgw.config.redis_url import SCHEMES as REDIS_SCHEMES
from fastgw.config.redis_url import parse_redis_url

if TYPE_CHECKING:
    from collections.abc import Callable

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)+|/")
_UNIX_PATH_MAX = 107  # sun_path of Linux, less its final NUL

STORE_SCHEMES = ("sqlite", "memory", *REDIS_SCHEMES)


def address(text: str, shown: str) -> str:
    """host:port, [v6]:port or unix:/path. Port 0 lets the system choose."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path or len(path.encode()) > _UNIX_PATH_MAX:
            raise ValueError(
                f"a unix address is unix: and a path of 1 to {_UNIX_PATH_MAX} bytes; "
                'write "unix:/run/fastgw/fastgw.sock"'
            )
        return text
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f'{shown} is not an address; write host:port, as "127.0.0.1:8080"')
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError(f"{shown}: the port must be 0 to 65535, after the last colon")
    if not host or host == "*":
        every = quoted(f"0.0.0.0:{port}") if shown == quoted(text) else '"0.0.0.0:PORT"'
        raise ValueError(f"{shown} has no host; for all addresses write {every}")
    if host.startswith("[") and host.endswith("]"):
        if _ip_version(host[1:-1]) != 6:
            raise ValueError(f'{shown}: brackets hold an IPv6 address, as "[::1]:8080"')
    elif ":" in host:
        raise ValueError(f'{shown}: an IPv6 address stands in brackets, as "[::1]:8080"')
    elif not _HOST.fullmatch(host) or (host.replace(".", "").isdigit() and _ip_version(host) != 4):
        raise ValueError(f'{shown}: the host is not valid; write "127.0.0.1:PORT"')
    return text


def _ip_version(text: str) -> int:
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return 0


def same_port(one: str, other: str) -> bool:
    """Whether two listen addresses cannot both be had."""
    if one.startswith("unix:") or other.startswith("unix:"):
        return one == other
    (host, _, port), (host2, _, port2) = one.rpartition(":"), other.rpartition(":")
    if int(port) != int(port2) or int(port) == 0:
        return False
    hosts = (host.lower(), host2.lower())
    if hosts[0] == hosts[1] or "[::]" in hosts:  # which takes IPv4 as well
        return True
    return "0.0.0.0" in hosts and not any(each.startswith("[") for each in hosts)


def store_url(text: str, shown: str) -> str:
    """sqlite:PATH, memory:, or what `parse_redis_url` takes."""
    scheme, colon, rest = text.partition(":")
    if not colon or scheme not in STORE_SCHEMES:
        near = nearest(scheme, STORE_SCHEMES)
        hint = f"did you mean {near}:?" if near else ""
        raise ValueError(
            f"unknown kind of store; {hint or 'write sqlite:PATH, memory: or redis://host:port/db'}"
        )
    if scheme == "memory" and rest:
        raise ValueError('memory: takes nothing after the colon; write "memory:"')
    if scheme == "sqlite" and not rest:
        raise ValueError('sqlite: needs the path of a file; write "sqlite:fastgw.db"')
    if scheme in REDIS_SCHEMES:
        parse_redis_url(text)
    return text


def base_url(text: str, shown: str) -> str:
    """http or https, a host, perhaps a port and a path; without a final slash."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(
            'the host or the port is not valid; write "https://host:port/path"'
        ) from None
    if parts.scheme not in ("http", "https"):
        raise ValueError('must begin with https:// or http://; write "https://host/path"')
    if not host or port == 0 or not (_HOST.fullmatch(host) or _ip_version(host)):
        raise ValueError('has no valid host or port; write "https://host:port/path"')
    if "@" in parts.netloc:
        raise ValueError("holds a user or password; put the credential into api_key or headers")
    if "?" in text or "#" in text:
        raise ValueError("ends at the path: leave out what begins with ? or #")
    path = parts.path.rstrip("/")
    if path and not _PREFIX.fullmatch(path):
        raise ValueError(
            "the path holds an empty segment or a character that would need encoding; "
            'write "https://host/path"'
        )
    return text.rstrip("/")


def path_prefix(text: str, shown: str) -> str:
    """/ or /segment/segment: the normal form of a path, on which requests are matched."""
    if not text.startswith("/"):
        hint = quoted("/" + text.strip("/")) if shown == quoted(text) else "it in front"
        raise ValueError(f"{shown} must begin with /; write {hint}")
    if text != "/" and text.endswith("/"):
        hint = quoted(text.rstrip("/") or "/") if shown == quoted(text) else "it without"
        raise ValueError(f"{shown} must not end in /: /x covers /x and /x/…; write {hint}")
    if {".", ".."} & set(text.split("/")):
        raise ValueError(f"{shown} holds a dot segment; write the path that is meant")
    if not _PREFIX.fullmatch(text):
        raise ValueError(
            f"{shown} holds //, % or another character that is not plain in a path; "
            "write segments of letters, digits, - and _"
        )
    return text


def host_name(text: str, shown: str) -> str:
    """A host name without port, in lower case; "" for any."""
    if text and not _HOST.fullmatch(text) and not _ip_version(text.strip("[]")):
        raise ValueError(f'{shown} is not a host name; write it without scheme and port, as "a.b"')
    return text.lower()


def origin(text: str, shown: str) -> str:
    """An origin as browsers send it (RFC 6454, 7), or * for all."""
    if text == "*":
        return text
    scheme, _, host = text.partition("://")
    name, _, port = host.partition(":")
    if (
        scheme not in ("http", "https")
        or not _HOST.fullmatch(name)
        or (port and not port.isdigit())
    ):
        raise ValueError(
            f'{shown} is not an origin; write scheme and host alone, as "https://app.example.org"'
        )
    return text.lower()


def location(text: str, shown: str) -> str:
    """header:NAME, header:NAME:SCHEME, query:NAME or cookie:NAME; header names in lower case."""
    place, colon, rest = text.partition(":")
    if place not in ("header", "query", "cookie"):
        raise ValueError(
            f"{shown} begins with none of header:, query:, cookie:; "
            + (meant(place, ("header", "query", "cookie")) if colon else "write header:NAME")
        )
    name, colon, scheme = rest.partition(":")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{shown} names no valid {place}; write {place}:NAME")
    if place != "header":
        if colon:
            raise ValueError(f"{shown}: only a header has a scheme; write {place}:NAME")
        return text
    if colon and not _TOKEN.fullmatch(scheme):
        raise ValueError(f"{shown} names no valid scheme; write header:authorization:Bearer")
    return f"header:{name.lower()}{colon}{scheme}"


def pattern(text: str, shown: str) -> str:
    """Exact, or with one * first or last."""
    stars = text.count("*")
    if not text or stars > 1 or (stars and not text.startswith("*") and not text.endswith("*")):
        raise ValueError(f'{shown}: write it exactly, or with one * first or last, as "gpt-4o*"')
    return text


def network(text: str, shown: str) -> str:
    """An IP address or network."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        try:
            near = quoted(str(ipaddress.ip_network(text, strict=False)))
        except ValueError:
            raise ValueError(
                f'{shown} is not an IP address or network; write "10.0.0.7" or "10.0.0.0/8"'
            ) from None
        # The exact network follows from the text; name it only where the text itself may be shown.
        hint = f"did you mean {near}?" if shown == quoted(text) else "clear the host bits"
        raise ValueError(f"{shown} has bits set after the network; {hint}") from None
    return text


def name(text: str, shown: str) -> str:
    """The name of a key, budget or upstream: shown in logs, metrics and URLs."""
    if not text or len(text) > 128 or not text.isprintable() or "/" in text or text != text.strip():
        raise ValueError(
            f"{shown} is not a name; write 1 to 128 printable characters without / "
            "and without spaces at the ends"
        )
    return text


def credential(text: str, shown: str) -> str:
    """What can stand in a header as a credential; "" is none."""
    if not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError(
            "holds a space, a line end or another character that no header can carry; "
            "check how it was stored"
        )
    return text


def store_prefix(text: str, shown: str) -> str:
    """A part of Redis keys; braces would change the slot of a cluster."""
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", text):
        raise ValueError(f'{shown}: write letters, digits, _ . : or -, as "fastgw"')
    return text


def namespace(text: str, shown: str) -> str:
    """The first part of metric names (Prometheus data model; a colon is for recording rules)."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError(
            f"{shown} cannot begin a metric's name; write letters, digits and _, not a digit "
            'first, as "fastgw"'
        )
    return text


def expression(text: str, shown: str) -> str:
    """See `parse_expression`."""
    try:
        parse_expression(text)
    except ValueError as error:
        # Its advice may repeat parts of the text, which is only fair where that may be shown.
        advice = str(error) if shown == quoted(text) else "not an expression"
        raise ValueError(f"{shown}: {advice}") from None
    return text


_OWN_LABELS = frozenset(
    "le quantile status reason route upstream method budget account code job instance".split()
)
"""Labels of the metrics themselves, and those that Prometheus adds when it scrapes."""


def label_pair(key: str, text: str, shown: str) -> str:
    """A label of the operator's: its name by Prometheus' grammar, an expression as its value."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key) or key.startswith("__"):
        raise ValueError(
            'not a label name; write letters, digits and _, not a digit or __ first, as "user_id"'
        )
    if key in _OWN_LABELS or key.startswith("gen_ai_"):
        raise ValueError(
            f"a label that metrics already have; write another, as {quoted('my_' + key)}"
        )
    return expression(text, shown)


_FRAMING = frozenset(
    "connection content-length expect host keep-alive proxy-connection te trailer "
    "transfer-encoding upgrade".split()
)


def header_pair(key: str, text: str, shown: str) -> str:
    """A header for the provider."""
    if not _TOKEN.fullmatch(key):
        raise ValueError('not a header name; write letters, digits and -, as "x-team"')
    if key.lower() in _FRAMING:
        raise ValueError("fastgw sets this header by itself; leave it out")
    if text != text.strip() or any(ord(c) < 32 or ord(c) > 255 or ord(c) == 127 for c in text):
        raise ValueError(
            "the value holds a character that no header can carry; check how it was stored"
        )
    return text


def pattern_pair(key: str, text: str, shown: str) -> str:
    """An entry of a budget's `match`."""
    return pattern(text, shown)


TEXTS: dict[str, Callable[[str, str], str]] = {
    "server.listen": address,
    "server.cors_origins": origin,
    "admin.listen": lambda text, shown: address(text, shown) if text else text,
    "admin.token": credential,
    "store.url": store_url,
    "store.prefix": store_prefix,
    "auth.locations": location,
    "keys.name": name,
    "keys.allowed_models": pattern,
    "keys.allowed_ips": network,
    "budgets.name": name,
    "budgets.per": expression,
    "upstreams.name": name,
    "upstreams.base_url": base_url,
    "upstreams.api_key": credential,
    "routes.path_prefix": path_prefix,
    "routes.host": host_name,
    "routes.models": pattern,
    "prices.model": pattern,
    "metrics.namespace": namespace,
}
"""Format of a text, or of each text of a list, by table and setting."""

PAIRS: dict[str, Callable[[str, str, str], str]] = {
    "budgets.match": pattern_pair,
    "upstreams.headers": header_pair,
    "metrics.labels": label_pair,
}
"""Format of each entry of a table of texts."""
