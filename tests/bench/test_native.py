"""The load and the provider in C: what they say agrees with what the other side saw."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import openai
import orjson
import pytest

from bench import native
from fastgw.demo import answers
from fastgw.demo.behaviour import Behaviour
from tests.processes import ALICE, BOB, PER_USER, ROOT, Gateway, Provider, free_port, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_a_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")),
    reason="there is no C compiler here",
)
pytestmark = needs_a_compiler

SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def programs() -> Path:
    return native.build()


class Stub:
    """The provider in C in a process of its own."""

    def __init__(self, program: Path, behaviour: str = "") -> None:
        self.child = subprocess.Popen(
            [program, "--port", "0", "--behaviour", behaviour],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line.startswith("listening on 127.0.0.1:"), self.end()
        self.port = int(line.rpartition(":")[2])

    def chat(self, stub: str = "", **more: Any) -> tuple[int, bytes]:
        body = orjson.dumps({"model": "gpt-3.5-turbo", "messages": [], **more})
        status, _, answer = request(self.port, "POST", CHAT, body, {"x-stub": stub})
        return status, answer

    def stats(self) -> dict[str, int]:
        found: dict[str, int] = orjson.loads(request(self.port, "GET", "/stub/stats")[2])
        return found

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def end(self) -> tuple[int, str]:
        """Exit code and what it said to stderr."""
        self.child.send_signal(signal.SIGTERM)
        _, said = self.child.communicate(timeout=30)
        return self.child.returncode, said


@pytest.fixture
def stub(programs: Path) -> Iterator[Stub]:
    started = Stub(programs / "provider")
    yield started
    assert started.end() == (0, "")


def load(programs: Path, port: int, *arguments: str, code: int = 0) -> dict[str, Any]:
    run = subprocess.run(
        [programs / "load", "--port", str(port), *arguments],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == code, (run.stdout, run.stderr)
    assert not run.stderr
    found: dict[str, Any] = orjson.loads(run.stdout)
    return found


def read_all(sock: socket.socket) -> bytes:
    found = b""
    while piece := sock.recv(65536):
        found += piece
    return found


def events(stream: bytes) -> list[bytes]:
    return [event[6:] for event in stream.split(b"\n\n") if event]


# the build


def test_a_program_is_compiled_when_its_source_is_newer(programs: Path) -> None:
    before = (programs / "load").stat().st_mtime_ns
    assert native.build() == programs
    assert (programs / "load").stat().st_mtime_ns == before
    assert programs == ROOT / "build" / "bench"


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(native.NoCompiler, match="apt-get install gcc"):
        native.compiler()


def test_a_source_that_does_not_compile_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "wrong.c").write_text("int main(void) { return nothing; }")
    with pytest.raises(RuntimeError, match="nothing"):
        native.compile_source(tmp_path / "wrong.c", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_no_source_is_too_long() -> None:
    for path in (ROOT / "bench" / "native").glob("*.[ch]"):
        assert len(path.read_text().splitlines()) <= 600, f"{path.name}: split it"


# the provider


@pytest.mark.parametrize("text", ["", "pad=240", "events=40;prompt=7;completion=9", "events=0"])
@pytest.mark.parametrize("asked", [False, True])
def test_it_answers_as_the_stub_in_python_does(stub: Stub, text: str, asked: bool) -> None:
    behaviour = Behaviour().changed(text)
    status, body = stub.chat(text)
    assert status == 200
    theirs = orjson.loads(answers.body("chat", "gpt-3.5-turbo", behaviour))
    assert orjson.loads(body) == theirs
    options = {"stream_options": {"include_usage": True}} if asked else {}
    status, body = stub.chat(text, stream=True, **options)
    assert status == 200
    ours = events(body)
    wanted = events(b"".join(answers.events("chat", "gpt-3.5-turbo", behaviour, asked)))
    assert ours.pop() == wanted.pop() == b"[DONE]"
    for mine, other in zip(ours, wanted, strict=True):
        assert orjson.loads(mine) == orjson.loads(other)


def test_the_sdk_reads_it(stub: Stub) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{stub.port}/v1", api_key=ALICE) as client:
        messages: Any = [{"role": "user", "content": "Hello!"}]
        answer = client.chat.completions.create(model="gpt-3.5-turbo", messages=messages)
        assert answer.choices[0].message.content == "Hello! How can I help you with that today?"
        chunks = list(
            client.chat.completions.create(
                model="gpt-3.5-turbo",
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
                extra_headers={"x-stub": "events=5;pace=0.001"},
            )
        )
        assert len(chunks) == 7
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 5
        assert [model.id for model in client.models.list()] == ["gpt-3.5-turbo"]


def test_an_event_of_a_paced_stream_is_never_early(stub: Stub) -> None:
    began = time.monotonic_ns()
    _, body = stub.chat("events=6;pace=0.03;first=0.05", stream=True)
    stamps = [int(found) for found in re.findall(rb'"id":"chatcmpl-(\d{19})"', body)]
    assert len(stamps) == 7
    for at, stamp in enumerate(stamps):
        assert stamp - began >= 50_000_000 + at * 30_000_000
    assert all(one < other for one, other in pairwise(stamps))


def test_each_event_is_a_chunk(stub: Stub) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 17\r\n\r\n"
    for pace in (b"", b";pace=0.001"):
        with stub.connect() as sock:
            changed = head.encode().replace(b"Host: h", b"Host: h\r\nX-Stub: events=3" + pace)
            sock.sendall(changed + b'{"stream" : true}')
            raw = read_all(sock).partition(b"\r\n\r\n")[2]
        chunks = []
        while raw:
            size, _, raw = raw.partition(b"\r\n")
            chunks.append(raw[: int(size, 16)])
            raw = raw[int(size, 16) + 2 :]
        assert len(chunks) == 6
        assert chunks.pop() == b""
        assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in chunks)
        assert all(150 < len(chunk) < 240 for chunk in chunks[:-1])


CHUNKED = (
    f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    + b'4\r\n{"st\r\n5;x=y\r\nream"\r\n7\r\n: true}\r\n0\r\nX-Trailer: t\r\n\r\n'
)


def test_a_request_may_come_byte_by_byte_and_with_the_next(stub: Stub) -> None:
    closing = CHUNKED.replace(b"Host: h", b"Connection: close\r\nHost: h")
    with stub.connect() as sock:
        for at in range(len(CHUNKED)):
            sock.sendall(CHUNKED[at : at + 1])
        sock.sendall(CHUNKED * 3 + closing)
        found = read_all(sock)
    assert found.count(b"data: [DONE]") == 5
    paced = CHUNKED.replace(b"Host: h", b"x-stub: events=2;pace=0.002\r\nHost: h")
    with stub.connect() as sock:
        sock.sendall(paced * 2 + CHUNKED + closing)
        assert read_all(sock).count(b"data: [DONE]") == 4
    assert stub.stats()["requests"] == 9


def test_a_body_of_megabytes_is_looked_through(stub: Stub) -> None:
    text = 'say \\"stream\\": true ' * 200_000
    assert stub.chat(prompt=text)[1].startswith(b'{"id"')
    assert stub.chat(prompt=text, stream=True)[1].startswith(b"data: ")
    body = orjson.dumps({"prompt": text, "stream": True, "stream_options": {"include_usage": True}})
    pieces = iter([body[at : at + 7777] for at in range(0, len(body), 7777)])
    status, _, answer = request(stub.port, "POST", CHAT, pieces)  # type: ignore[arg-type]
    assert status == 200
    assert b'"completion_tokens":9' in events(answer)[-2]


def test_a_client_that_waits_for_100_gets_it(stub: Stub) -> None:
    with stub.connect() as sock:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
        sock.sendall(f"{head}Connection: close\r\n\r\n".encode())
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"{}")
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK\r\n")


def test_other_paths_and_settings(stub: Stub) -> None:
    assert request(stub.port, "GET", "/v1/models")[0] == 200
    assert request(stub.port, "GET", CHAT)[0] == 404
    assert request(stub.port, "POST", "/v1/embeddings", b"{}")[0] == 404
    for text in ("event=3", "events", "events=", "events=x", "events=-1", "events=1e6;pad=1e7"):
        assert stub.chat(text)[0] == 400, text
    assert stub.chat("events=3; pace=0 ;", stream=True)[0] == 200
    for at in range(200):  # more behaviours than are kept
        assert stub.chat(f"events={at}")[1].count(b"o") > 0


def test_a_reader_that_is_slow_gets_all_and_one_that_leaves_costs_nothing(stub: Stub) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 15\r\n"
    for setting in ("events=500;pad=20000", "events=500;pad=20000;pace=0.0001"):
        whole = f'{head}x-stub: {setting}\r\n\r\n{{"stream":true}}'.encode()
        with stub.connect() as gone:
            gone.sendall(whole)
            gone.recv(1000)
        with stub.connect() as sock:
            sock.sendall(whole)
            time.sleep(0.2)  # until the socket takes no more
            assert read_all(sock).count(b"data: ") == 502
    assert stub.stats()["connections"] == 1  # the one that asks


def test_it_ends_in_the_midst_of_streams(programs: Path) -> None:
    started = Stub(programs / "provider", "events=1000;pace=0.01")
    with started.connect() as sock:
        sock.sendall(CHUNKED)
        assert sock.recv(1000)
        assert started.end() == (0, "")


# the load


def test_the_provider_sees_what_the_load_tells(programs: Path, stub: Stub) -> None:
    found = load(programs, stub.port, "--requests", "500", "--connections", "7")
    assert found["requests"] == found["succeeded"] == stub.stats()["requests"] == 500
    assert found["statuses"] == {"200": 500}
    assert found["errors"] == found["unfinished"] == found["events"] == 0
    assert found["connected"] == 7
    assert 0 < found["first_byte_p50"] <= found["latency_p50"] <= found["latency_p99"]
    assert 0 < found["cpu_seconds"] <= found["seconds"] * 1.1
    found = load(programs, stub.port, "--seconds", "0.3", "--warmup", "0.2")
    assert found["warmup_requests"] > 0
    assert found["seconds"] < 10
    assert stub.stats()["requests"] == 500 + found["warmup_requests"] + found["requests"]


def test_events_of_streams_are_counted(programs: Path, stub: Stub) -> None:
    streams = ("--stream", "--once", "--connections", "50")
    found = load(programs, stub.port, *streams, "--stub", "events=30;pace=0.005")
    assert found["requests"] == found["streams"] == found["done"] == 50
    assert found["events"] == stub.stats()["events"] == 50 * 32
    assert 0 < found["age_p50"] <= found["age_p99"]
    assert found["gap_p50"] > 0
    found = load(programs, stub.port, *streams, "--include-usage", "--stub", "events=3000;pad=50")
    assert found["events"] == 50 * 3003
    assert found["done"] == 50
    assert found["age_p50"] == 0


def test_it_reads_the_stub_in_python(programs: Path, tmp_path: Path) -> None:
    provider = Provider(tmp_path)
    try:
        found = load(programs, provider.port, "--requests", "100", "--path", CHAT)
        assert found["statuses"] == {"200": 100}
        for setting in ("framing=chunked", "framing=close", "split=5", "status=none"):
            settings = ("--requests", "5", "--path", CHAT, "--stub", setting)
            code = setting == "status=none"
            found = load(programs, provider.port, *settings, code=code)
            assert found["requests"] == 5
            assert found["statuses"] == {"400" if code else "200": 5}
            assert found["connected"] >= (5 if setting == "framing=close" else 1)
        found = load(
            *(programs, provider.port, "--requests", "6", "--path", CHAT, "--stream"),
            *("--stub", "events=20;split=100"),
        )
        assert found["events"] == 6 * 22
        assert len(provider.entries()) == 100 + 3 * 5 + 6
        assert provider.last().count(b"X-Stainless-") == 7
    finally:
        assert provider.stop() == 0


@pytest.fixture
def gateway(stub: Stub, tmp_path: Path) -> Iterator[Gateway]:
    started = Gateway(tmp_path, stub.port, budgets=PER_USER.format(limit=10**9))
    yield started
    assert started.stop() == 0, started.log.read_text()


def test_the_gateway_sees_what_the_load_tells(
    programs: Path, stub: Stub, gateway: Gateway, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{ALICE}\n\n{BOB}\r\n")
    found = load(
        *(programs, gateway.port, "--requests", "200", "--connections", "9"),
        *("--keys", str(keys), "--stub", "pad=240", "--body-bytes", "5000"),
    )
    assert found["statuses"] == {"200": 200}
    assert gateway.used("alice") == gateway.used("bob") == 100 * 19
    found = load(
        *(programs, gateway.port, "--connections", "20", "--once", "--stream"),
        *("--key", BOB, "--stub", "events=10;pace=0.002"),
    )
    assert found["requests"] == found["done"] == 20
    assert found["events"] >= 20 * 12
    assert found["age_p50"] > 0
    assert gateway.used("bob") == 100 * 19 + 20 * 20
    assert stub.stats()["requests"] == len(gateway.access_log()) == 220
    keys.write_text(f"{ALICE}\nsk-wrong-0123456789\n")
    found = load(programs, gateway.port, "--requests", "20", "--keys", str(keys))
    assert found["statuses"] == {"200": 10, "401": 10}
    assert found["errors"] == 10
    assert found["succeeded"] == 10
    assert found["first_errors"][0].startswith("401: {")
    assert stub.stats()["requests"] == 230
    found = load(programs, gateway.port, "--requests", "3", "--key", "sk-wrong-0123456789", code=1)
    assert found["statuses"] == {"401": 3}


def test_where_nobody_listens_it_fails(programs: Path) -> None:
    found = load(programs, free_port(), "--requests", "3", "--connections", "2", code=1)
    assert found["errors"] == found["broken"] == 3
    assert found["first_errors"] == ["Connection refused"] * 3


class Script:
    """A server that answers each connection with the same pieces, and closes it."""

    def __init__(self, answer: Callable[[], list[bytes]]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with sock, contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if not sock.recv(65536):
                    return
                for piece in self._answer():
                    sock.sendall(piece)

    def end(self) -> None:
        # a connection that says nothing is the end
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join(20)
        self._listener.close()


OK = b"HTTP/1.1 200 OK\r\n"
SSE = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"9\r\ndata: {}\n\r\n1\r\n\n\r\nF\r\ndata: [DONE]\n\n:\r\n0\r\n\r\n"


def bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        ([OK + b"Content-Length: 2\r\n\r\n{}"], {"succeeded": 1}),
        (bytewise(OK + b"Content-Length: 2\r\n\r\n{}"), {"succeeded": 1, "bytes": 40}),
        (bytewise(SSE + CHUNKS), {"succeeded": 1, "streams": 1, "events": 2, "done": 1}),
        ([SSE + CHUNKS], {"succeeded": 1, "streams": 1, "events": 2, "done": 1}),
        ([OK + b"\r\n", b"to the end"], {"succeeded": 1}),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], {"succeeded": 1}),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + SSE + CHUNKS], {"succeeded": 1, "events": 2}),
        ([b'HTTP/1.1 429 No\r\nContent-Length: 4\r\n\r\n"\x80\n\\'], "429:"),
        ([], "closed without an answer"),
        ([OK], "an answer that was cut"),
        ([OK + b"Content-Length: 3\r\n\r\n{}"], "an answer that was cut"),
        ([SSE + CHUNKS[:-2]], "an answer that was cut"),
        ([OK + b"Content-Length: 2\r\n\r\n{}HTTP"], "bytes behind an answer"),
        ([SSE + b"x\r\n"], "a chunk that is none"),
        ([SSE + b"1\r\n\n!\r\n"], "a chunk that is none"),
        ([SSE + b"fffffffffffffffffff\r\n"], "a chunk that is none"),
        ([OK + b"Content-Length: -1\r\n\r\n"], "an answer that is no HTTP"),
        ([OK + b"Content-Length: 99999999999999999999\r\n\r\n"], "an answer that is no HTTP"),
        ([b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], "an answer that is no HTTP"),
        ([b"HTTP/1.1 2x0 OK\r\n\r\n"], "an answer that is no HTTP"),
        ([OK + b"x: " + b"y" * 9000], "an answer that is no HTTP"),
    ],
)
def test_answers_are_judged(programs: Path, pieces: list[bytes], wanted: Any) -> None:
    server = Script(lambda: pieces)
    try:
        failed = isinstance(wanted, str)
        once = ("--once", "--connections", "1")
        found = load(programs, server.port, *once, code=failed)
    finally:
        server.end()
    if failed:
        assert found["first_errors"][0].startswith(wanted)
        assert found["errors"] == 1
        assert found["succeeded"] == 0
    else:
        assert found["requests"] == 1
        assert found["errors"] == 0
        assert found | wanted == found


# garbage


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    try:
        for name in ("load", "provider"):
            native.compile_source(native.SOURCES / f"{name}.c", folder / name, *SANITIZED)
        found = subprocess.run([folder / "load", "--help"], capture_output=True, check=False)
        assert found.returncode == 0
    except (RuntimeError, AssertionError):
        pytest.skip("this compiler has no sanitizers")
    return folder


def spoiled(chance: random.Random, data: bytes) -> bytes:
    """`data` with some of it cut, doubled, or changed."""
    changed = bytearray(data)
    for _ in range(chance.randrange(6)):
        at = chance.randrange(len(changed) or 1)
        size = chance.choice((1, 2, 5, 40))
        changed[at : at + size] = chance.choice(
            (b"", b"\r\n", b"\n", b"\0", b"fffffff", b"data: ", b" ", bytes(changed[at:]), b"-1")
        )
    return bytes(changed)


def test_the_provider_outlives_garbage(sanitized: Path) -> None:
    chance = random.Random(7)
    started = Stub(sanitized / "provider")
    paced = CHUNKED.replace(b"Host: h", b"x-stub: events=5;pace=0.001;pad=9;output=3\r\nHost: h")
    plain = f'POST {CHAT} HTTP/1.1\r\nContent-Length: 15\r\n\r\n{{"stream":true}}'.encode()
    models = b"GET /v1/models HTTP/1.1\r\n\r\n"
    try:
        for _ in range(1000):
            data = spoiled(chance, chance.choice((CHUNKED, paced, plain, models)) * 2)
            with started.connect() as sock, contextlib.suppress(OSError):
                for at in range(0, len(data), size := chance.choice((7, 100, 10**6))):
                    sock.sendall(data[at : at + size])
                if chance.random() < 0.3:
                    sock.settimeout(0.01)  # it may wait for what was cut
                    sock.recv(1000)
        with started.connect() as sock, contextlib.suppress(OSError):
            sock.sendall(b"x" * 100_000)
        with started.connect() as sock, contextlib.suppress(OSError):
            sock.sendall(paced * 500)
            read_all(sock)
        assert started.chat()[0] == 200
    finally:
        assert started.end() == (0, "")


def test_the_load_outlives_garbage(sanitized: Path) -> None:
    chance = random.Random(7)
    whole = OK + b"Content-Length: 20\r\n\r\n" + b"x" * 20
    stamped = b'data: {"id":"chatcmpl-0000000000000000001"}\n\n'
    stream = SSE + b"%x\r\n%b\r\n" % (len(stamped), stamped) + CHUNKS

    def answer() -> list[bytes]:
        data = spoiled(chance, chance.choice((whole, stream, whole.replace(b"200", b"500"))))
        cut = chance.randrange(len(data) + 1)
        return [data[:cut], data[cut:]]

    server = Script(answer)
    try:
        found = load(
            *(sanitized, server.port, "--connections", "300", "--once"),
            *("--stream", "--include-usage"),
        )
    finally:
        server.end()
    assert 0 < found["succeeded"] < 300
    assert found["broken"] > 0
    assert found["requests"] + found["broken"] == 300
