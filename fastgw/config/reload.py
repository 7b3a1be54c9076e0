"""What of a new configuration a running process can take up, and what must wait for a restart."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgw.config.tables import Config, Server

WHOLE_TABLES = ("store", "metrics", "usage")
"""Tables of which nothing changes while the process runs."""


def take_up(old: Config, new: Config) -> tuple[Config, list[str]]:
    """`new`, with the settings that need a restart as they are in `old`; and those of them that
    differ, as `server.listen`."""
    left: list[str] = []
    server = new.server
    for name in ("listen", "workers", *_tls_switch(old.server, new.server)):
        if getattr(old.server, name) != getattr(new.server, name):
            left.append(f"server.{name}")
            server = replace(server, **{name: getattr(old.server, name)})
    admin = new.admin
    if admin.listen != old.admin.listen:
        left.append("admin.listen")
        admin = replace(admin, listen=old.admin.listen)
    for table in WHOLE_TABLES:
        was, wanted = getattr(old, table), getattr(new, table)
        left += [
            f"{table}.{each.name}"
            for each in fields(was)
            if getattr(was, each.name) != getattr(wanted, each.name)
        ]
    same = {table: getattr(old, table) for table in WHOLE_TABLES}
    return replace(new, server=server, admin=admin, **same), left


def _tls_switch(old: Server, new: Server) -> tuple[str, ...]:
    """A new certificate is taken up; to begin or end with TLS is not."""
    return ("tls_cert", "tls_key") if bool(old.tls_cert) != bool(new.tls_cert) else ()
