"""The same kinds of trouble over TLS, on either side: who vouches for an end, who is spoken to.

One authority made here, a gateway with a certificate of its own before a provider with one, and
ways to providers that must not be believed.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import orjson
import pytest
import trustme

from tests.adversity.proxy import Fault, Plan, Proxy
from tests.adversity.recorder import (
    CLOSE,
    GO,
    PAUSE,
    RESET,
    SEVER,
    Client,
    Recorder,
    Script,
    fill,
    given_up,
    staged,
)
from tests.adversity.request_cases import chunked, head, sized
from tests.adversity.response_cases import CHUNKED, DONE, EVENT, JSON, OK, SIZED, STREAM, chunk
from tests.processes import ALICE, UPSTREAM_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.adversity.recorder import Answer, Stage

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
WAY = """
[[upstreams]]
name = "{name}"
base_url = "{url}/v1"
api_key = "{key}"
connect_timeout = "8s"
{more}
[[routes]]
path_prefix = "/{name}"
upstream = "{name}"
"""


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def way(name: str, url: str, more: str = "") -> str:
    return WAY.format(name=name, url=url, key=UPSTREAM_KEY, more=more)


class Setting(NamedTuple):
    """The stage, the proxy before its provider, providers that must not be believed, and the
    authority's own file."""

    stage: Stage
    proxy: Proxy
    strangers: tuple[Recorder, ...]
    ca_file: str


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder: Path = tmp_path_factory.mktemp("tls")
    authority, stranger = trustme.CA(), trustme.CA()
    ca_file, both = folder / "ca.pem", folder / "both.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(str(both))
    trusts = f'ca_file = "{ca_file}"'
    expired = authority.issue_cert(
        "localhost", not_before=LONG_AGO, not_after=LONG_AGO + datetime.timedelta(days=1)
    )
    with contextlib.ExitStack() as stack:
        strangers = tuple(
            stack.enter_context(Recorder(tls))
            for tls in (
                serving(expired),
                serving(stranger.issue_cert("localhost")),
                serving(authority.issue_cert("other.example")),
                None,
            )
        )
        urls = [f"https://localhost:{each.port}" for each in strangers]
        proxy = Proxy(0)
        stack.callback(proxy.close)
        more = "".join(
            (
                way("expired", urls[0], trusts),
                way("stranger", urls[1], trusts),
                way("misnamed", urls[2], trusts),
                way("plain", urls[3], trusts),
                way("address", "https://127.0.0.1:@PORT@", trusts),
                way("distrusted", "https://localhost:@PORT@"),
                way("untold", "http://localhost:@PORT@"),
                way("broken", f"https://localhost:{proxy.port}", trusts),
            )
        )
        stage = stack.enter_context(
            staged(
                folder,
                recorder_tls=serving(certificate),
                client_tls=ssl.create_default_context(cafile=str(ca_file)),
                base_url="https://localhost:@PORT@/v1",
                server=f'tls_cert = "{both}"\ntls_key = "{both}"\nheader_timeout = "2s"',
                upstream=trusts,
                more=more,
            )
        )
        proxy.target = stage.recorder.port
        yield Setting(stage, proxy, strangers, str(ca_file))


@pytest.fixture
def stage(setting: Setting) -> Stage:
    return setting.stage


def refused(stage: Stage, answer: Answer) -> None:
    """A 502 with a body of ours, which tells nothing of what is behind the gateway."""
    assert (answer.status, answer.complete) == (502, True), answer
    error = orjson.loads(answer.body)["error"]
    assert error["code"] == "upstream_unavailable"
    shown = answer.body + b"".join(name + value for name, value in answer.fields.items())
    for secret in (
        *(UPSTREAM_KEY, ALICE, "localhost", "127.0.0.1", str(stage.recorder.port), "other.example"),
        *("certificate", "CERTIFICATE", "expired", ".pem", "ssl", "SSL", "_ssl.c"),
    ):
        assert secret.encode() not in shown


# The provider: whom to speak to ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["expired", "stranger", "misnamed", "plain", "address", "distrusted", "untold"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_provider_that_nobody_vouches_for_is_told_nothing(
    setting: Setting, name: str, method: str
) -> None:
    """Expired, of an unknown authority, of another name, without TLS, by an address that is not in
    the certificate, of an authority that is not the system's; and TLS where none is expected."""
    stage = setting.stage
    path = b"/%b/models" % name.encode()
    data = head(line=b"GET " + path + b" HTTP/1.1") if method == "GET" else sized(path=path)
    number = stage.name("told")
    with stage.client() as client:
        client.send(fill(data, number))
        refused(stage, client.answer())
        stage.good(client)
    stage.good_elsewhere()
    assert stage.seen(number) == []
    for each in setting.strangers:
        assert each.messages == []
        for link in each.links:  # neither a key nor a head, not even in part
            assert b"HTTP/1.1" not in link.data
            assert UPSTREAM_KEY.encode() not in link.data


@pytest.mark.parametrize("action", ["reset", "cut"])
@pytest.mark.parametrize("side", ["request", "response"])
def test_a_handshake_that_breaks(setting: Setting, side: str, action: str) -> None:
    stage, proxy = setting.stage, setting.proxy
    assert action in ("reset", "cut")
    for at in (0, 1, 5, 6, 60, 130, 200, 400, 700):
        fault = Fault("reset" if action == "reset" else "cut", at)
        proxy.plan = Plan(request=fault) if side == "request" else Plan(response=fault)
        number = stage.name("broken")
        with stage.client() as client:
            client.send(fill(head(line=b"GET /broken/models HTTP/1.1"), number))
            refused(stage, client.answer())
            stage.good(client)
        assert stage.seen(number) == [], at
    proxy.plan = Plan()
    with stage.client() as client:
        client.send(fill(head(line=b"GET /broken/models HTTP/1.1"), stage.name("sound")))
        assert client.answer().status == 200
    proxy.drop()
    stage.good_elsewhere()


# The provider: an end that nobody vouches for ----------------------------------------------------

GET = head()
OLD = GET.replace(b"HTTP/1.1", b"HTTP/1.0")
STREAMED = sized(body=b'{"model":"m","messages":[],"stream":true}')


@pytest.mark.parametrize("end", [SEVER, RESET])
@pytest.mark.parametrize(
    ("data", "begin"),
    [
        (GET, OK + b"\r\n" + JSON),
        (GET, SIZED[:-2]),
        (GET, CHUNKED + chunk(JSON)),
        (OLD, OK + b"\r\n" + JSON),
        (OLD, CHUNKED + chunk(JSON)),
        (STREAMED, STREAM + chunk(EVENT)),
        (STREAMED, OK + b"Content-Type: text/event-stream\r\n\r\n" + EVENT + DONE),
    ],
    ids=["close", "sized", "chunked", "close to 1.0", "chunked to 1.0", "stream", "stream, close"],
)
def test_an_answer_that_is_cut_is_not_whole(
    stage: Stage, data: bytes, begin: bytes, end: str
) -> None:
    """Without a close_notify the end may be anybody's (RFC 8446, 6.1; RFC 9112, 9.8)."""
    number = stage.name("cut")
    stage.recorder.hold()
    stage.recorder.scripts[number] = Script((begin, GO, PAUSE, end))
    with stage.client() as client:
        client.on_bytes = stage.recorder.go
        client.send(fill(data, number))
        answer = client.answer(data.split(b" ", 1)[0])
        assert answer.status == 200
        # what ends with the connection for 1.0 must not end in a close_notify of ours
        assert client.reset if data is OLD else not answer.complete
    (message,) = stage.seen(number)
    given_up(message.link)
    stage.good_elsewhere()


@pytest.mark.parametrize("data", [GET, OLD], ids=["1.1", "1.0"])
def test_an_answer_that_ends_with_a_close_notify_is_whole(stage: Stage, data: bytes) -> None:
    number = stage.name("ends")
    stage.recorder.scripts[number] = Script((OK + b"\r\n" + JSON, PAUSE, JSON, CLOSE))
    with stage.client() as client:
        client.send(fill(data, number))
        answer = client.answer()
        assert (answer.status, answer.body, answer.complete) == (200, JSON * 2, True)
        assert not client.reset
    stage.good_elsewhere()


def test_a_large_answer_to_a_client_that_is_slow_and_a_provider_that_leaves(stage: Stage) -> None:
    """What was sent before the end is not lost while the client takes its time."""
    number = stage.name("slow")
    size = 3_000_000
    stage.recorder.scripts[number] = Script(
        (OK + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % size + b"x" * size, CLOSE)
    )
    with stage.client() as client, stage.client() as other:
        client.send(fill(GET, number))
        for _ in range(20):
            stage.good(other)
        answer = client.answer()
        assert (len(answer.body), answer.complete) == (size, True)


# The client --------------------------------------------------------------------------------------


def test_requests_over_tls(stage: Stage) -> None:
    names = [stage.name("pipe") for _ in range(20)]
    with stage.client() as client:
        for byte in fill(sized(), first := stage.name("bytes")):
            client.send(bytes((byte,)))
        assert orjson.loads(client.answer(b"POST").body)["echo"] == first
        client.send(b"".join(fill(head(), name) for name in names))
        for name in names:
            assert orjson.loads(client.answer().body)["echo"] == name


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (head(b"X: a\nb"), 400),
        (sized(b"Transfer-Encoding: chunked"), 400),
        (sized(b"Content-Length: 33554433").replace(b"Content-Length: 27\r\n", b""), 413),
        (chunked(b"zz\r\n"), 400),
        (head(line=b"GET /openai/models HTTP/1.2"), 505),
        (bytes.fromhex("16030102000100"), 400),
    ],
)
def test_a_refusal_reaches_a_client_that_is_still_sending(
    stage: Stage, data: bytes, status: int
) -> None:
    """And what follows it is no request: neither at once nor later."""
    with stage.client() as client:
        client.send(fill(data + head(line=b"GET /openai/hidden HTTP/1.1"), "hidden"))
        client.send(b"x" * 200_000)
        answer = client.answer(b"POST")
        assert (answer.status, answer.complete, answer.closes) == (status, True, True)
        client.send(fill(head(line=b"GET /openai/hidden HTTP/1.1"), "hidden"))
        assert client.rest() == b""
    stage.good_elsewhere()
    assert stage.seen("hidden") == []


def test_a_head_that_does_not_come(stage: Stage) -> None:
    """The times of the data port hold over TLS."""
    with stage.client() as silent, stage.client() as half:
        half.send(fill(head(), "hidden")[:-1])
        assert half.answer().status == 408
        assert half.rest() == b""
        assert silent.rest() == b""
    stage.good_elsewhere()
    assert stage.seen("hidden") == []


def bare(stage: Stage, data: bytes) -> bytes:
    """What a client without TLS gets for these bytes on the TLS port, to the end."""
    with Client(stage.gateway.port) as client:
        client.send(data)
        return client.rest()


def test_bytes_that_are_no_tls_on_the_tls_port(stage: Stage) -> None:
    """Not a byte of HTTP comes back; a handshake that does not come or end is not waited for."""
    hello = hello_of_a_client()
    assert len(hello) > 100
    alien = [
        fill(head(), "hidden"),
        fill(sized(), "hidden"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0" * 1000,
        bytes(range(256)) * 20,
        hello[:100],
        hello[:-1],
        hello[:50] + b"\xff" * (len(hello) - 50),
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"",
    ]
    with ThreadPoolExecutor(len(alien)) as pool:
        for data, got in zip(alien, pool.map(lambda each: bare(stage, each), alien), strict=True):
            assert b"HTTP" not in got, data
            assert len(got) < 100, data  # an alert at most
    stage.good_elsewhere()
    assert stage.seen("hidden") == []


def hello_of_a_client() -> bytes:
    """A sound ClientHello."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_a_client_that_breaks_its_handshake_or_its_request(stage: Stage) -> None:
    """Whatever is left of it, nobody else notices."""
    hello = hello_of_a_client()
    for data in (b"", hello[:1], hello[:60], hello):
        with socket.create_connection(("127.0.0.1", stage.gateway.port), timeout=30) as sock:
            sock.sendall(data)
    for size in (1, 50, len(fill(sized(), "hidden")) - 1):
        with stage.client() as client:
            client.send(fill(sized(), "hidden")[:size])  # and leaves, without a close_notify
    stage.good_elsewhere()
    assert stage.seen("hidden") == []


def test_old_versions_of_tls_are_refused(setting: Setting) -> None:
    context = ssl.create_default_context(cafile=setting.ca_file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.minimum_version = ssl.TLSVersion.TLSv1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        Client(setting.stage.gateway.port, context)
    setting.stage.good_elsewhere()


def test_the_log_tells_why_and_no_secret(setting: Setting) -> None:
    """The last test: an operator learns which provider is not believed, and nobody's key."""
    log = setting.stage.gateway.log.read_text()
    for name in ("expired", "stranger", "misnamed", "address", "distrusted"):
        assert f"upstream {name}: cannot connect: " in log
    assert "certificate has expired" in log
    assert "Hostname mismatch" in log
    for secret in (UPSTREAM_KEY, ALICE, "PRIVATE KEY"):
        assert secret not in log
