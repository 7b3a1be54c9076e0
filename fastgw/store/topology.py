"""Which link goes with which `[store] url`: one server, Sentinels, a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastgw.config.redis_url import parse_redis_url
from fastgw.store.cluster import ClusterLink
from fastgw.store.link import single
from fastgw.store.sentinel import SentinelLink

if TYPE_CHECKING:
    from fastgw.store.link import Link


def open_link(text: str, timeout: float) -> Link:
    """The link to what a URL names, with a hard deadline in seconds; does no I/O yet.

    Raises ValueError for a URL that is none.
    """
    url = parse_redis_url(text)
    if url.topology == "cluster":
        return ClusterLink(url, timeout)
    if url.topology == "sentinel":
        return SentinelLink(url, timeout)
    return single(url, timeout)
