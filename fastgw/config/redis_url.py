"""The address of Redis or Valkey as `[store] url` writes it: one server, Sentinel or Cluster.

    redis://[user:password@]host[:6379][/db]
    redis+sentinel://[user:password@]host[:26379],host…/service[/db]
    redis+cluster://[user:password@]host[:6379],host…

`rediss` in place of `redis` is TLS. Options follow as `?name=value&…`, names and values as redis-py
has them; those that would undo what the store relies on (time-outs, pool, decoding) do not exist.
User, password and options are percent-decoded. No message repeats a part of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Topology = Literal["single", "sentinel", "cluster"]

_SCHEME = re.compile(r"redis(s?)(?:\+(sentinel|cluster))?")
SCHEMES = tuple(f"redis{s}{kind}" for kind in ("", "+sentinel", "+cluster") for s in ("", "s"))

_TLS_OPTIONS = (
    "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password", "ssl_cert_reqs",
    "ssl_check_hostname",
)  # fmt: skip
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_FLAGS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A `[store] url` taken apart. Whatever may be secret is kept out of `repr`."""

    topology: Topology
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    """The server, the Sentinels, or some nodes of the cluster: host and port."""
    service: str = ""
    """The name under which the Sentinels know the master."""
    db: int = 0
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    sentinel_username: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)
    options: dict[str, str | bool] = field(default_factory=dict, repr=False)
    """More for each connection, by redis-py's names."""


def parse_redis_url(text: str) -> RedisUrl:
    """Take it apart. Raises ValueError with what is wrong and what to write."""
    scheme = text.partition(":")[0]
    found = _SCHEME.fullmatch(scheme)
    if found is None:
        raise ValueError("not a Redis address; it begins with " + ", ".join(SCHEMES))
    topology: Topology = found[2] or "single"  # type: ignore[assignment]
    example = {
        "single": f'"{scheme}://host:6379/0"',
        "sentinel": f'"{scheme}://host:26379,host:26379/service"',
        "cluster": f'"{scheme}://host:6379,host:6379"',
    }[topology]
    malformed = ValueError(f"not a Redis address; write {example}")
    if not text.startswith(f"{scheme}://") or not text.isprintable():
        raise malformed
    if "#" in text:
        raise ValueError(f"holds #; in a password write %23 for it, as for / and ?; {example}")
    # Not by urlsplit: since CVE-2024-11168 it refuses [::1] behind another host.
    place, _, query = text[len(scheme) + 3 :].partition("?")
    netloc, slash, path = place.partition("/")
    login, _, places = netloc.rpartition("@")
    username, _, password = login.partition(":")
    port = 26379 if topology == "sentinel" else 6379
    hosts = tuple(_host(place, port, malformed) for place in places.split(","))
    if topology == "single" and len(hosts) > 1:
        raise ValueError(
            "several hosts are a cluster or Sentinels; write "
            f"{scheme}+cluster:// or {scheme}+sentinel://"
        )
    service, db = _path(slash + path, topology, malformed)
    options = _options(query, topology, tls=bool(found[1]))
    return RedisUrl(
        topology=topology,
        tls=bool(found[1]),
        hosts=hosts,
        service=service,
        db=db,
        username=unquote(username),
        password=unquote(password),
        sentinel_username=str(options.pop("sentinel_username", "")),
        sentinel_password=str(options.pop("sentinel_password", "")),
        options=options,
    )


def _host(place: str, port: int, malformed: ValueError) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{place}")
        host, given = parts.hostname, parts.port
    except ValueError:
        raise malformed from None
    if not host or given == 0 or "@" in place or place.endswith(":"):
        raise malformed
    return host, given or port


def _path(path: str, topology: Topology, malformed: ValueError) -> tuple[str, int]:
    """Service and database."""
    if topology == "cluster":
        if path not in ("", "/", "/0"):
            raise ValueError("a cluster has database 0 alone; leave out what follows the hosts")
        return "", 0
    if topology == "single":
        found = re.fullmatch(r"(?:/(?P<db>\d{1,9})?)?", path)
    else:
        found = re.fullmatch(r"/(?P<service>[A-Za-z0-9._-]+)(?:/(?P<db>\d{1,9})?)?", path)
    if found is None:
        raise malformed
    return found.groupdict().get("service") or "", int(found["db"] or 0)


def _options(query: str, topology: Topology, *, tls: bool) -> dict[str, str | bool]:
    known = ["client_name"]
    if tls:
        known += _TLS_OPTIONS
    if topology == "sentinel":
        known += _SENTINEL_OPTIONS
    options: dict[str, str | bool] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known or name in options:
            raise ValueError(
                "an option after ? that is not known here, or is given twice; known are "
                + ", ".join(known)
                + "; for time-outs see [store] timeout"
            )
        options[name] = value
    if "ssl_check_hostname" in options:
        flag = _FLAGS.get(str(options["ssl_check_hostname"]).lower())
        if flag is None:
            raise ValueError("ssl_check_hostname is true or false")
        options["ssl_check_hostname"] = flag
    if options.get("ssl_cert_reqs", "required") not in ("none", "optional", "required"):
        raise ValueError("ssl_cert_reqs is none, optional or required")
    return options
