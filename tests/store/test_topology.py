"""Which scheme opens which store and link."""

from __future__ import annotations

import pytest

from fastgw.config.redis_url import SCHEMES
from fastgw.config.tables import Store as StoreSettings
from fastgw.store import open_store
from fastgw.store.cluster import ClusterLink
from fastgw.store.link import SingleLink
from fastgw.store.redis import RedisStore
from fastgw.store.sentinel import SentinelLink
from fastgw.store.topology import open_link


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_that_the_configuration_takes_has_a_store_and_its_link(scheme: str) -> None:
    url = f"{scheme}://:hunter2@h" + ("/main" if scheme.endswith("sentinel") else "")
    assert isinstance(open_store(StoreSettings(url=url)), RedisStore)
    kinds = {"": SingleLink, "sentinel": SentinelLink, "cluster": ClusterLink}
    link = open_link(url, 0.5)
    assert type(link) is kinds[scheme.partition("+")[2]]
    assert "hunter2" not in repr(link)


def test_another_scheme_has_none() -> None:
    with pytest.raises(ValueError, match="no store for postgres:"):
        open_store(StoreSettings(url="postgres://h"))
