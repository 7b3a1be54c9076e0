"""What texts must look like."""

from __future__ import annotations

import pytest

from fastgw.config import formats
from fastgw.config.problems import quoted

ACCEPTED = [
    (formats.address, "127.0.0.1:0", "127.0.0.1:0"),
    (formats.address, "localhost:65535", "localhost:65535"),
    (formats.address, "[::1]:8080", "[::1]:8080"),
    (formats.address, "unix:/run/x.sock", "unix:/run/x.sock"),
    (formats.store_url, "memory:", "memory:"),
    (formats.store_url, "sqlite:/var/x.db", "sqlite:/var/x.db"),
    (formats.store_url, "rediss://u:p@h:6379/2", "rediss://u:p@h:6379/2"),
    (formats.store_url, "redis+sentinel://a,b/s", "redis+sentinel://a,b/s"),
    (formats.store_url, "rediss+cluster://a,b:1", "rediss+cluster://a,b:1"),
    (formats.base_url, "https://h/v1/", "https://h/v1"),
    (formats.base_url, "http://[::1]:80", "http://[::1]:80"),
    (formats.path_prefix, "/", "/"),
    (formats.path_prefix, "/a/b-c.d", "/a/b-c.d"),
    (formats.host_name, "API.example.com", "api.example.com"),
    (formats.location, "header:X-API-Key", "header:x-api-key"),
    (formats.location, "header:Authorization:Bearer", "header:authorization:Bearer"),
    (formats.location, "query:key", "query:key"),
    (formats.pattern, "gpt-4*", "gpt-4*"),
    (formats.pattern, "*-mini", "*-mini"),
    (formats.pattern, "*", "*"),
    (formats.network, "10.0.0.0/8", "10.0.0.0/8"),
    (formats.network, "2001:db8::1", "2001:db8::1"),
    (formats.name, "Alice's laptop", "Alice's laptop"),
    (formats.namespace, "agentgateway", "agentgateway"),
]  # fmt: skip

REFUSED = [
    (formats.address, "8080", "host:port"),
    (formats.address, ":8080", '"0.0.0.0:8080"'),
    (formats.address, "*:8080", '"0.0.0.0:8080"'),
    (formats.address, "h:65536", "0 to 65535"),
    (formats.address, "h:-1", "0 to 65535"),
    (formats.address, "::1:8080", "brackets"),
    (formats.address, "[::g]:8080", "IPv6"),
    (formats.address, "1.2.3.400:8080", "not valid"),
    (formats.address, "http://h:8080", "brackets"),
    (formats.address, "unix:", "unix:/run"),
    (formats.address, "unix:/" + "x" * 107, "107"),
    (formats.store_url, "sqlit:x", "did you mean sqlite:?"),
    (formats.store_url, "postgres://h", "write sqlite:PATH"),
    (formats.store_url, "memory", "did you mean memory:?"),
    (formats.store_url, "redis+sentinal://h", "did you mean redis+sentinel:?"),
    (formats.store_url, "redis+sentinel://h", "/service"),
    (formats.store_url, "rediss+cluster://h/3", "database 0 alone"),
    (formats.store_url, "sqlite:", "path of a file"),
    (formats.store_url, "redis://", "redis://host:6379/0"),
    (formats.store_url, "redis://h/x", "redis://host:6379/0"),
    (formats.store_url, "redis://h:99999", "redis://host:6379/0"),
    (formats.base_url, "api.openai.com/v1", "https://"),
    (formats.base_url, "ftp://h", "https://"),
    (formats.base_url, "https:///v1", "host"),
    (formats.base_url, "https://h:0x/v1", "host or the port"),
    (formats.base_url, "https://h/v1?x=1", "?"),
    (formats.base_url, "https://h/v1#", "#"),
    (formats.base_url, "https://u@h/v1", "api_key"),
    (formats.base_url, "https://h/a//b", "empty segment"),
    (formats.base_url, "https://h/a b", "encoding"),
    (formats.path_prefix, "openai", 'write "/openai"'),
    (formats.path_prefix, "/openai/", 'write "/openai"'),
    (formats.path_prefix, "/a//b", "//"),
    (formats.path_prefix, "/a/../b", "dot segment"),
    (formats.path_prefix, "/a/.", "dot segment"),
    (formats.path_prefix, "/a%20b", "%"),
    (formats.path_prefix, "/a?b", "plain"),
    (formats.host_name, "https://h", "without scheme"),
    (formats.host_name, "h:8080", "port"),
    (formats.location, "headers:x", 'did you mean "header"?'),
    (formats.location, "x-api-key", "write header:NAME"),
    (formats.location, "header:", "header:NAME"),
    (formats.location, "header:a b", "header:NAME"),
    (formats.location, "header:a:", "scheme"),
    (formats.location, "query:a:b", "only a header"),
    (formats.pattern, "a*b", "one * first or last"),
    (formats.pattern, "*a*", "one * first or last"),
    (formats.pattern, "", "exactly"),
    (formats.network, "10.0.0.1/8", 'did you mean "10.0.0.0/8"?'),
    (formats.network, "10.0.0", "not an IP"),
    (formats.name, "a/b", "without /"),
    (formats.name, "", "1 to 128"),
    (formats.name, " a", "ends"),
    (formats.credential, "abc\n", "line end"),
    (formats.credential, "ünicode1", "header"),
    (formats.namespace, "9x", "digit"),
    (formats.namespace, "a:b", "letters"),
    (formats.store_prefix, "{x}", "letters"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "text", "kept"), ACCEPTED)
def test_accepted(check: object, text: str, kept: str) -> None:
    assert callable(check)
    assert check(text, quoted(text)) == kept


@pytest.mark.parametrize(("check", "text", "advice"), REFUSED)
def test_refused(check: object, text: str, advice: str) -> None:
    assert callable(check)
    with pytest.raises(ValueError) as caught:
        check(text, quoted(text))
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("label", "advice"),
    [
        ("user-id", "not a label name"),
        ("__name", "not a label name"),
        ("gen_ai_model", "already have"),
        ("status", "my_status"),
    ],
)
def test_labels(label: str, advice: str) -> None:
    with pytest.raises(ValueError) as caught:
        formats.label_pair(label, "user_id", '"user_id"')
    assert advice in str(caught.value)


def test_headers() -> None:
    assert formats.header_pair("OpenAI-Organization", "org", '"org"') == "org"
    for name, value in (("a b", "x"), ("Host", "x"), ("x", "a\r\nb: c"), ("x", "€")):
        with pytest.raises(ValueError):
            formats.header_pair(name, value, "the value")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("[::]:80", "localhost:80", True),
        ("127.0.0.1:80", "127.0.0.2:80", False),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "127.0.0.1:80", False),
    ],
)
def test_same_port(one: str, other: str, same: bool) -> None:
    assert formats.same_port(one, other) is same
    assert formats.same_port(other, one) is same
