"""Writes heads: canonical, one framing, nothing that a value could break out of."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from fastgw.http1.headers import FIELD_VALUE, TOKEN

STATUS_LINES: Final[dict[int, bytes]] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def status_line(status: int) -> bytes:
    """The status line with CRLF; a status without a registered phrase gets an empty one."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def own_answer(
    status: int, request_id: bytes, fields: bytes, body: bytes, closing: bool, head_only: bool
) -> bytes:
    """A whole answer that comes from no provider. `fields` are header lines, each with CRLF;
    `head_only` leaves the body out (HEAD); 204 has neither body nor length (RFC 9110, 8.6)."""
    return b"%bx-request-id: %b\r\nrequest-id: %b\r\n%b%b%b\r\n%b" % (
        status_line(status),
        request_id,
        request_id,
        fields,
        b"" if status == 204 else b"content-length: %d\r\n" % len(body),
        b"connection: close\r\n" if closing else b"",
        b"" if head_only else body,
    )


def field(name: str, value: str) -> bytes:
    """One header line with CRLF. Raises ValueError where name or value would break the head."""
    raw_name, raw_value = name.encode("latin-1"), value.encode("latin-1")
    if not TOKEN.fullmatch(raw_name) or not FIELD_VALUE.fullmatch(raw_value):
        raise ValueError(f"header {name!r}: a byte that no header may hold")
    return b"%b: %b\r\n" % (raw_name, raw_value)
