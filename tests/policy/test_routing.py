import pytest

from fastgw.config.tables import Route, Upstream
from fastgw.errors import BadPath
from fastgw.policy.routing import Router, normalise

UPSTREAMS = [
    Upstream(name="openai", base_url="https://api.example/v1"),
    Upstream(name="bare", base_url="http://10.0.0.1:8000"),
]


def router(*routes: Route) -> Router:
    return Router(routes, UPSTREAMS)


ONE = router(Route(path_prefix="/openai", upstream="openai"))


@pytest.mark.parametrize(
    ("path", "sent", "below"),
    [
        (b"/openai", b"/v1/chat/completions", "/chat/completions"),
        (b"/openai/", b"/v1/chat/completions", "/chat/completions"),
        (b"/openai/v1", b"/v1/chat/completions", "/chat/completions"),
        (b"/openai/chat/completions", b"/v1/chat/completions", "/chat/completions"),
        (b"/openai/v1/chat/completions", b"/v1/chat/completions", "/chat/completions"),
        (b"/openai/v1/chat/completions/", b"/v1/chat/completions/", "/chat/completions"),
        (b"/openai/v1/embeddings", b"/v1/embeddings", "/embeddings"),
        (b"/openai/v10/embeddings", b"/v1/v10/embeddings", "/v10/embeddings"),
    ],
)
def test_every_base_url_that_users_type(path: bytes, sent: bytes, below: str) -> None:
    target = ONE.find(b"localhost:8080", path, b"POST")
    assert target is not None
    assert (target.path, target.below) == (sent, below)


def test_the_version_is_kept_where_the_base_url_has_none() -> None:
    target = router(Route(path_prefix="/llm", upstream="bare")).find(
        b"h", b"/llm/v1/chat/completions", b"POST"
    )
    assert target is not None
    assert (target.path, target.below) == (b"/v1/chat/completions", "/chat/completions")


@pytest.mark.parametrize(
    ("base", "path", "sent", "below"),
    [
        ("", b"/g/v1beta/models/x:generateContent", b"/v1beta/models/x:generateContent",
         "/models/x:generateContent"),
        ("/v1beta", b"/g/v1beta/models/x:generateContent", b"/v1beta/models/x:generateContent",
         "/models/x:generateContent"),
        ("/v1beta", b"/g/models", b"/v1beta/models", "/models"),
        ("/v1", b"/g/v2/chat", b"/v1/v2/chat", "/chat"),
    ],
)  # fmt: skip
def test_versions_of_other_providers(base: str, path: bytes, sent: bytes, below: str) -> None:
    routes = Router(
        [Route(path_prefix="/g", upstream="g")], [Upstream(name="g", base_url=f"http://h{base}")]
    )
    target = routes.find(b"h", path, b"GET")
    assert target is not None
    assert (target.path, target.below) == (sent, below)


@pytest.mark.parametrize("path", [b"/openaix", b"/", b"/OPENAI", b"/key/info"])
def test_prefixes_end_at_a_segment(path: bytes) -> None:
    assert ONE.find(b"h", path, b"POST") is None


def test_only_a_post_of_the_bare_prefix_is_a_chat() -> None:
    target = ONE.find(b"h", b"/openai", b"GET")
    assert target is not None
    assert target.path == b"/v1"


def test_longest_prefix_and_host_win() -> None:
    routes = router(
        Route(path_prefix="/", upstream="bare"),
        Route(path_prefix="/openai", upstream="openai"),
        Route(path_prefix="/", upstream="openai", host="api.test"),
    )

    def name(host: bytes, path: bytes) -> str:
        target = routes.find(host, path, b"GET")
        assert target is not None
        return target.route.upstream

    assert name(b"x", b"/models") == "bare"
    assert name(b"x:80", b"/openai/models") == "openai"
    assert name(b"api.test:8080", b"/openai/models") == "openai"
    assert name(b"api.test", b"/models") == "openai"


@pytest.mark.parametrize(
    "path",
    [
        b"/openai/../admin",
        b"/openai/./x",
        b"/openai/..",
        b"/openai/%2e%2e/admin",
        b"/openai/%2E/x",
        b"/openai%2fx",
        b"/openai/x%5cy",
        b"/openai\\x",
        b"/openai//x",
        b"//openai",
        b"/openai/%00",
        b"/openai/%0a",
        b"/openai/%7f",
        b"/openai/%252e%252e/x",
        b"/openai/%",
        b"/openai/%zz",
        b"/openai/..;x/admin",
        b"/openai/;/..",
        b"/openai/chat/completions;x=1",
        b"/openai/chat/completions%3bx=1",
        b"openai",
        b"/openai/<x>",
    ],
)
def test_paths_that_could_mean_something_else_are_refused(path: bytes) -> None:
    with pytest.raises(BadPath):
        normalise(path)


@pytest.mark.parametrize(
    ("path", "one_reading"),
    [
        (b"/openai/v1/x", b"/openai/v1/x"),
        (b"/%6fpenai", b"/openai"),
        (b"/a%20b%c3%a9", b"/a%20b%C3%A9"),
        (b"/a/...", b"/a/..."),
        (b"/a/.hidden", b"/a/.hidden"),
        (b"/", b"/"),
    ],
)
def test_one_reading(path: bytes, one_reading: bytes) -> None:
    assert normalise(path) == one_reading
