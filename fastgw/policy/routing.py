"""Which route a request takes, and the path it has at the provider.

One path is parsed, matched and sent: what was matched is what goes out. A path that could mean
something else to the next parser (dot segments, encoded slashes and dots, backslashes, parameters,
control bytes, empty segments) is refused, not repaired (RFC 3986, 6.2.2; RFC 9110, 17.6).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from fastgw.errors import BadPath

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastgw.config.tables import Route, Upstream

_PLAIN = re.compile(rb"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~:@!$&'()*+,=-]*)+/?|/")
_VERSION = re.compile(rb"/v[1-9](?:(?:alpha|beta)[0-9]*)?(?=/|$)")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_ALLOWED = re.compile(rb"[A-Za-z0-9._~!$&'()*+,=:@/%;-]*")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~")
_REFUSED_ESCAPES = frozenset(b"/\\.%;\x7f") | frozenset(range(32))


def normalise(path: bytes) -> bytes:
    """The one reading of a raw path. Raises BadPath where there could be two."""
    if _PLAIN.fullmatch(path):
        return path
    if not path.startswith(b"/") or not _ALLOWED.fullmatch(path):
        raise BadPath("the path holds a byte that must be percent-encoded")
    if b"//" in path:
        raise BadPath("the path holds an empty segment (//); check the slashes of the base URL")
    if b";" in path:
        raise BadPath("the path holds a parameter (;), which servers read differently")
    if path.count(b"%") != len(_ESCAPE.findall(path)):
        raise BadPath("the path holds a % that is not followed by two hexadecimal digits")

    def decode(match: re.Match[bytes]) -> bytes:
        byte = int(match[1], 16)
        if byte in _REFUSED_ESCAPES:
            raise BadPath(f"the path holds %{match[1].decode()}, which parsers read differently")
        return bytes((byte,)) if byte in _UNRESERVED else match[0].upper()

    path = _ESCAPE.sub(decode, path)
    for segment in path.split(b"/"):
        if segment in (b".", b".."):
            raise BadPath("the path holds a dot segment")
    return path


class Target(NamedTuple):
    """Where a request goes: the route, the path at the provider, and the part of it below the
    base URL without a version (`/chat/completions`), by which operations are known."""

    route: Route
    path: bytes
    below: str


class Router:
    """The routes of a configuration. The longest prefix wins, one with a host before all others."""

    def __init__(self, routes: Iterable[Route], upstreams: Iterable[Upstream]) -> None:
        bases = {
            upstream.name: urlsplit(upstream.base_url).path.rstrip("/").encode()
            for upstream in upstreams
        }
        self._routes = sorted(
            (
                (route, route.path_prefix.rstrip("/").encode(), bases[route.upstream])
                for route in routes
            ),
            key=lambda entry: (bool(entry[0].host), len(entry[1])),
            reverse=True,
        )

    def find(self, host: bytes, path: bytes, method: bytes) -> Target | None:
        """The target of a normalised path, or None if no route covers it."""
        name = host.rpartition(b":")[0] if _has_port(host) else host
        for route, prefix, base in self._routes:
            if route.host and route.host.lower().encode() != name:
                continue
            if path == prefix or path.startswith(prefix + b"/"):
                return _target(route, base, path[len(prefix) :], method)
        return None


def _has_port(host: bytes) -> bool:
    return b":" in host and not host.endswith(b"]")


def _target(route: Route, base: bytes, rest: bytes, method: bytes) -> Target:
    version = _VERSION.match(rest)
    below = rest[version.end() :] if version else rest
    if version and base.endswith(version[0]):
        rest = below
    if method == b"POST" and below.rstrip(b"/") == b"":
        # The bare prefix is a chat completion, with or without the version.
        rest = rest.rstrip(b"/") + b"/chat/completions"
        below = b"/chat/completions"
    return Target(route, base + rest or b"/", below.rstrip(b"/").decode("ascii"))
