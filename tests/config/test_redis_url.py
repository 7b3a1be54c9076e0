"""The address of Redis, taken apart."""

from __future__ import annotations

import pytest

from fastgw.config.redis_url import SCHEMES, RedisUrl, parse_redis_url

SOUND = [
    ("redis://h", RedisUrl("single", False, (("h", 6379),))),
    ("redis://h/", RedisUrl("single", False, (("h", 6379),))),
    ("redis://H.example:7000/3", RedisUrl("single", False, (("h.example", 7000),), db=3)),
    ("redis://[::1]:7000/0", RedisUrl("single", False, (("::1", 7000),))),
    ("redis://:p%40%2Fw@h", RedisUrl("single", False, (("h", 6379),), password="p@/w")),
    (
        "rediss://u:p@h:6380/1?ssl_ca_certs=/ca.pem&ssl_check_hostname=false",
        RedisUrl(
            "single",
            True,
            (("h", 6380),),
            db=1,
            username="u",
            password="p",
            options={"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False},
        ),
    ),
    (
        "redis://h?client_name=gw",
        RedisUrl("single", False, (("h", 6379),), options={"client_name": "gw"}),
    ),
    (
        "redis+sentinel://u:p@a,b:26380,[::1]/main/2?sentinel_password=x%20y",
        RedisUrl(
            "sentinel",
            False,
            (("a", 26379), ("b", 26380), ("::1", 26379)),
            service="main",
            db=2,
            username="u",
            password="p",
            sentinel_password="x y",
        ),
    ),
    ("rediss+sentinel://a/main", RedisUrl("sentinel", True, (("a", 26379),), service="main")),
    (
        "redis+cluster://:p@a:7000,b",
        RedisUrl("cluster", False, (("a", 7000), ("b", 6379)), password="p"),
    ),
    ("rediss+cluster://a/0", RedisUrl("cluster", True, (("a", 6379),))),
]  # fmt: skip


@pytest.mark.parametrize(("text", "parts"), SOUND)
def test_taken_apart(text: str, parts: RedisUrl) -> None:
    assert parse_redis_url(text) == parts


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("unix:///run/redis.sock", ", ".join(SCHEMES)),
        ("redis+sentinels://h/x", "redis+sentinel"),
        ("redis:h", '"redis://host:6379/0"'),
        ("redis://", '"redis://host:6379/0"'),
        ("redis://h/x", '"redis://host:6379/0"'),
        ("redis://h/0/1", '"redis://host:6379/0"'),
        ("redis://h:0", '"redis://host:6379/0"'),
        ("redis://h:", '"redis://host:6379/0"'),
        ("redis://h:65536", '"redis://host:6379/0"'),
        ("redis://[::1", '"redis://host:6379/0"'),
        ("redis://::1:6379", '"redis://host:6379/0"'),
        ("redis://a,b", "redis+cluster:// or redis+sentinel://"),
        ("rediss://a,b", "rediss+cluster:// or rediss+sentinel://"),
        ("redis://:a#b@h", "%23"),
        ("redis+sentinel://a", '"redis+sentinel://host:26379,host:26379/service"'),
        ("redis+sentinel://a/", "/service"),
        ("redis+sentinel://a,/x", "/service"),
        ("redis+sentinel://a/x/y", "/service"),
        ("redis+cluster://a,,b", '"redis+cluster://host:6379,host:6379"'),
        ("redis+cluster://a/1", "database 0 alone"),
        ("redis://h?max_connections=9", "known are client_name;"),
        ("redis://h?decode_responses=0", "[store] timeout"),
        ("redis://h?socket_timeout=9", "[store] timeout"),
        ("redis://h?db=1", "not known"),
        ("redis://h?ssl_ca_certs=/x", "not known"),
        ("redis://h?client_name=a&client_name=b", "twice"),
        ("redis://h?sentinel_password=b", "not known"),
        ("rediss://h?ssl_check_hostname=perhaps", "true or false"),
        ("rediss://h?ssl_cert_reqs=perhaps", "none, optional or required"),
    ],
)
def test_refused(text: str, advice: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_redis_url(text)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "redis://zq9f8e@",
        "redis://h/zq9f8e",
        "zq9f8e://h",
        "redis+sentinel://u:zq9f8e@h",
        "redis+cluster://u:zq9f8e@h/9",
        "redis://:p?zq9f8e@h",
        "redis://:p#zq9f8e@h",
        "redis://:p/zq9f8e@h",
        "rediss://h?ssl_password=zq9f8e&zq9f8e=zq9f8e",
        "rediss://h?ssl_cert_reqs=zq9f8e",
    ],
)
def test_no_message_repeats_a_part_of_the_text(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_redis_url(text)
    assert "zq9f8e" not in str(caught.value)


def test_repr_shows_no_secret() -> None:
    text = "rediss+sentinel://u1:s1@h/x?sentinel_username=u2&sentinel_password=s2&ssl_password=s3"
    shown = repr(parse_redis_url(text))
    assert "h" in shown
    for secret in ("u1", "s1", "u2", "s2", "s3"):
        assert secret not in shown
