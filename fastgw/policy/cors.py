"""What browsers are told: which origins may use the gateway (WHATWG Fetch, 3.2).

Off unless `[server] cors_origins` names origins. A preflight is answered without a key, since a
browser sends none with it; every other answer to an allowed origin, refusals included, carries the
fields without which the page could not read it. The provider's own CORS fields are never passed on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw.http1.headers import TOKEN, tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastgw.http1.request import RequestHead

MAX_AGE = 600
"""Seconds that a browser may remember a preflight."""

_EXPOSED = (
    b"x-request-id, request-id, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset, "
    b"x-ratelimit-unit, retry-after, x-should-retry"
)
_VARY = b"vary: origin\r\n"


class Cors:
    """The origins of a configuration."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.lower().encode() for origin in origins)
        self._all = b"*" in self._origins
        self.on = bool(self._origins)

    def _allows(self, origin: bytes) -> bool:
        return self._all or origin.lower() in self._origins

    def fields(self, request: RequestHead) -> bytes:
        """The header lines of an answer to this request, each with CRLF."""
        if not self.on:
            return b""
        origin = request.get(b"origin")
        if origin is None or not self._allows(origin):
            return _VARY
        allowed = b"*" if self._all else origin
        return b"access-control-allow-origin: %b\r\naccess-control-expose-headers: %b\r\n%b" % (
            allowed,
            _EXPOSED,
            b"" if self._all else _VARY,
        )

    def preflight(self, request: RequestHead) -> bytes | None:
        """The header lines of the answer to a preflight from an allowed origin; else None.

        A preflight is OPTIONS with Origin and Access-Control-Request-Method. The header names that
        it asks for are allowed as asked, if they are names: which ones reach the provider is
        decided elsewhere.
        """
        if not self.on or request.method != b"OPTIONS":
            return None
        method = request.get(b"access-control-request-method")
        origin = request.get(b"origin")
        if method is None or origin is None or not self._allows(origin):
            return None
        names = tokens(request.get(b"access-control-request-headers") or b"")
        asked = b", ".join(name for name in names if TOKEN.fullmatch(name))
        return b"%baccess-control-allow-methods: GET, POST, DELETE, OPTIONS\r\n%b%b" % (
            self.fields(request),
            b"access-control-allow-headers: %b\r\n" % asked if asked else b"",
            b"access-control-max-age: %d\r\n" % MAX_AGE,
        )
