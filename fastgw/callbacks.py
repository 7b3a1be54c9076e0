"""What the two connections of an exchange tell it.

A class to derive from, not a `typing.Protocol`: compiled code calls the methods of a class that it
knows directly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw.compiled import mypyc_attr

if TYPE_CHECKING:
    from fastgw.errors import Refusal
    from fastgw.http1.response import ResponseHead


@mypyc_attr(allow_interpreted_subclasses=True)  # by tests
class Callbacks:
    """Each side uses its own half."""

    __slots__ = ()

    # by the client's connection

    def on_body(self, data: bytes, last: bool) -> None:
        """The next bytes of the request body."""
        raise NotImplementedError

    def on_broken_body(self, refusal: Refusal) -> None:
        """The rest of the body will not come: answer with `refusal` if nothing was answered."""
        raise NotImplementedError

    def on_disconnect(self) -> None:
        """The client is gone."""
        raise NotImplementedError

    def on_shutdown(self) -> None:
        """The worker stops and waits no longer: end, and tell the client why."""
        raise NotImplementedError

    def overdue(self, now: float) -> None:
        """Asked once a second, in monotonic seconds: end if this takes too long altogether."""
        raise NotImplementedError

    def on_client_full(self) -> None:
        """The client does not take what was written: stop writing."""
        raise NotImplementedError

    def on_client_ready(self) -> None:
        """The client takes bytes again."""
        raise NotImplementedError

    # by the provider's connection

    def on_response(self, head: ResponseHead, body: bytes, ended: bool) -> None:
        """The provider's head is here, with the part of the body that came with it."""
        raise NotImplementedError

    def on_response_body(self, body: bytes, framed: bytes | None, ended: bool) -> None:
        """More of the body. `framed` is the same bytes as one canonical chunk, if they came so."""
        raise NotImplementedError

    def on_upstream_failure(self, reason: str) -> None:
        """No (more) answer: `refused`, `reset`, `broken` (after its first byte), `malformed`,
        `timeout` or `stalled`."""
        raise NotImplementedError

    def on_upstream_full(self) -> None:
        """The provider does not take the upload: pause it."""
        raise NotImplementedError

    def on_upstream_ready(self) -> None:
        """The provider takes bytes again."""
        raise NotImplementedError
