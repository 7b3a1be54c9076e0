"""Writes heads: canonical, one framing, nothing that a value could break out of."""

from __future__ import annotations

from http import HTTPStatus

from fastgw.http1.headers import FIELD_VALUE, TOKEN

STATUS_LINES: dict[int, bytes] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def status_line(status: int) -> bytes:
    """The status line with CRLF; a status without a registered phrase gets an empty one."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def field(name: str, value: str) -> bytes:
    """One header line with CRLF. Raises ValueError where name or value would break the head."""
    raw_name, raw_value = name.encode("latin-1"), value.encode("latin-1")
    if not TOKEN.fullmatch(raw_name) or not FIELD_VALUE.fullmatch(raw_value):
        raise ValueError(f"header {name!r}: a byte that no header may hold")
    return b"%b: %b\r\n" % (raw_name, raw_value)
