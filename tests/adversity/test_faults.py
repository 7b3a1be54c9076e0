"""A connection that breaks at every byte, on either side of the gateway, in every kind of answer.

What must hold is derived from docs/accounting.md and docs/http.md, exchange by exchange:

    the provider did not get the whole request, or its head did not come    502, nothing charged
    it was cut in the answer, whose usage had come                          what was reported
    it was cut in the answer before that                                    prompt and text, counted
    the client left, the provider was asked                                 one of the two above
    the client left before the provider was asked                           nothing

and an answer that was cut is never a complete message to an HTTP client.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from tests.adversity.conftest import GUARD, Answer, Bench, Entry, ask, spoken
from tests.adversity.proxy import Action, Fault, Plan, abort
from tests.processes import ALICE

REPORTED = 10 + 3  # the stub's: 10 tokens of prompt, one for each of events=3
TEXT = len("Hello! How can")
PROMPT = range(5, 13)
"""Tokens that the prompt may be counted as: 10 bytes of text and role, 3 for the message, 3 for
the reply; the estimate may leave out role or reply."""
BREAKS: list[Action] = ["cut", "reset"]


@dataclass(frozen=True)
class Kind:
    """A kind of exchange: how the client asks and how the provider answers."""

    name: str
    stub: str = "events=3"
    stream: bool = False
    asks: bool = False
    version: str = "1.1"

    def spoken(self, number: str, path: str = "/openai", more: str = "", **how: Any) -> bytes:
        """A request of this kind."""
        return spoken(
            number,
            path,
            self.stub + more,
            stream=self.stream,
            asks=self.asks,
            version=self.version,
            **how,
        )

    def from_provider(self, bench: Bench) -> bytes:
        """The provider's answer, byte for byte."""
        asked = spoken(bench.name("direct"), "/v1", self.stub, stream=self.stream, asks=self.stream)
        answer = ask(bench.provider.port, asked)
        assert answer.whole
        return answer.raw

    def through(self, bench: Bench) -> tuple[str, Answer]:
        """An exchange without a fault, as the others are to be measured by."""
        number = bench.name("whole")
        answer = ask(bench.gateway.port, self.spoken(number))
        assert answer.whole
        assert answer.status == 200
        let_go()
        return number, answer


JSON = Kind("json")
PIECES = Kind("json-chunked", "events=3;framing=chunked")
STREAM = Kind("stream", stream=True)
ASKED = Kind("stream-asked", stream=True, asks=True)
SIZED = Kind("stream-sized", "events=3;framing=length", stream=True, asks=True)
OLD = Kind("stream-1.0", stream=True, version="1.0")
KINDS = [JSON, PIECES, STREAM, ASKED, SIZED, OLD]


def let_go() -> None:
    """Wait longer than the gateway keeps an idle connection: the next exchange has a new one."""
    time.sleep(0.002)


def is_free(entry: Entry) -> None:
    """It was told, and cost nothing."""
    assert (entry.line["usage_source"], entry.cost) == ("none", 0), entry


def is_reported(entry: Entry) -> None:
    """It cost what the provider said."""
    assert (entry.line["usage_source"], entry.cost) == ("reported", REPORTED), entry
    (asked,) = entry.asked
    assert asked["prompt"] + asked["completion"] == entry.cost


def is_counted(entry: Entry, least: int, most: int) -> None:
    """It cost the prompt and a text of so many bytes, a token for every four."""
    line = entry.line
    assert line["usage_source"] == "counted", entry
    assert line["input_tokens"] in PROMPT, entry
    assert -(-least // 4) <= line["output_tokens"] <= -(-most // 4), (least, most, entry)


def text_of(events: bytes) -> int:
    """Bytes of the model's text in the whole events of a stream."""
    size = 0
    for event in events.split(b"\n\n")[:-1]:
        if event.startswith(b"data: {"):
            for choice in orjson.loads(event[6:]).get("choices") or ():
                size += len(choice["delta"].get("content") or "")
    return size


def payload(received: bytes) -> bytes:
    """What of the answer's body is in `received`: a head and some of a body."""
    head, _, rest = received.partition(b"\r\n\r\n")
    if b"chunked" not in head:
        return rest
    body = b""
    while rest:
        line, found, rest = rest.partition(b"\r\n")
        if not found or line == b"0":
            break
        size = int(line, 16)
        body += rest[:size]
        rest = rest[size + 2 :]
    return body


def is_right_after_cut(kind: Kind, received: bytes, entry: Entry) -> None:
    """The charge for an answer of which the gateway got `received` and no more."""
    assert entry.line["reason"] == "upstream_cut", entry
    body = payload(received)
    if kind.stream:
        events = body[: body.rfind(b"\n\n") + 2] if b"\n\n" in body else b""
        if b'"usage":{' in events:
            is_reported(entry)
        elif body[len(events) :].rstrip(b"\n").endswith(b"}}}"):
            # The report is here, the blank line that ends its event is not: it may be believed.
            assert entry.cost == REPORTED or entry.line["usage_source"] == "counted", entry
        else:
            least = text_of(events)
            is_counted(entry, least, min(TEXT, least + len(" can") + 2))
    elif body.endswith(b"}}}"):
        is_reported(entry)  # all of the JSON is here, the end of the message is not
    else:
        shown = len(body.partition(b'"content":"')[2].partition(b'"')[0])
        is_counted(entry, shown, shown)


@pytest.mark.parametrize("action", BREAKS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_provider_breaks_at_every_byte_of_its_answer(
    bench: Bench, kind: Kind, action: Action
) -> None:
    number, good = kind.through(bench)
    answers = {number: good}
    whole = kind.from_provider(bench)
    head = whole.index(b"\r\n\r\n") + 4
    bench.provider.forget()
    places = {}
    for at in range(len(whole) + 1):
        bench.up.plan = Plan(response=Fault(action, at))
        number = bench.name("answer")
        places[number] = at
        answers[number] = ask(bench.gateway.port, kind.spoken(number))
    books = bench.books(set(answers))
    wrong = []
    for number, at in places.items():
        answer, entry = answers[number], books[number]
        try:
            if at < head:
                assert (answer.status, answer.whole) == (502, True), answer
                assert b'"upstream_unavailable"' in answer.body
                is_free(entry)
            elif at < len(whole):
                assert (answer.status, answer.whole) == (200, False), answer
                assert answer.reset or kind.version == "1.1"
                is_right_after_cut(kind, whole[:at], entry)
            else:
                assert (answer.whole, answer.body) == (True, good.body), answer
                is_reported(entry)
            assert len(entry.asked) == 1
        except AssertionError as error:
            wrong.append(f"at {at} of {len(whole)}: {error}")
    assert not wrong, summary(wrong)


@pytest.mark.parametrize("action", BREAKS)
@pytest.mark.parametrize("kind", [JSON, STREAM], ids=lambda kind: kind.name)
def test_the_provider_breaks_at_every_byte_of_the_request(
    bench: Bench, kind: Kind, action: Action
) -> None:
    kind.through(bench)
    size = len(bench.provider.last())
    places = {}
    for at in range(size + 1):
        bench.up.plan = Plan(request=Fault(action, at))
        number = bench.name("request")
        places[number] = at
        answer = ask(bench.gateway.port, kind.spoken(number))
        assert (answer.status, answer.whole) == (502, True), (at, answer)
    books = bench.books(set(places))
    for number, at in places.items():
        is_free(books[number])
        assert len(books[number].asked) == (1 if at == size else 0), (at, books[number])


@pytest.mark.parametrize("action", BREAKS)
def test_a_refusal_of_the_provider_that_breaks_costs_nothing(bench: Bench, action: Action) -> None:
    sick = Kind("500", "fault=status:500")
    whole = ask(bench.provider.port, sick.spoken(bench.name("direct"), "/v1")).raw
    head = whole.index(b"\r\n\r\n") + 4
    numbers = set()
    for at in range(head, len(whole) + 1):
        bench.up.plan = Plan(response=Fault(action, at))
        let_go()
        number = bench.name("sick")
        numbers.add(number)
        answer = ask(bench.gateway.port, sick.spoken(number))
        assert (answer.status, answer.whole) == (500, at == len(whole)), (at, answer)
    books = bench.books(numbers)
    for number in numbers:
        is_free(books[number])


def test_a_provider_that_accepts_and_resets_is_a_502(bench: Bench) -> None:
    bench.up.plan = Plan(refuse=True)
    numbers = set()
    for _ in range(300):
        number = bench.name("refused")
        numbers.add(number)
        answer = ask(bench.gateway.port, JSON.spoken(number))
        assert (answer.status, answer.whole) == (502, True), answer
    for entry in bench.books(numbers).values():
        is_free(entry)
        assert not entry.asked


@pytest.mark.parametrize("action", BREAKS)
@pytest.mark.parametrize("path", ["/direct", "/openai"], ids=["kept", "fresh"])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_the_client_breaks_at_every_byte_of_its_request(
    bench: Bench, chunked: bool, path: str, action: Action
) -> None:
    data = JSON.spoken("x" * 16, path, chunked=chunked)
    head = data.index(b"\r\n\r\n") + 4
    places = {}
    for at in range(len(data) + 1):
        bench.down.plan = Plan(request=Fault(action, at))
        number = bench.name("leaves")
        places[number] = at
        answer = ask(bench.down.port, JSON.spoken(number, path, chunked=chunked))
        assert (answer.status, answer.whole) == (0, False), (at, answer)
    books = bench.books({number for number, at in places.items() if at >= head})
    for number, at in places.items():
        entry = books.get(number, Entry())
        if at < head:
            assert not entry.lines, (at, entry)
            assert not entry.asked, (at, entry)
        elif at < len(data):
            is_free(entry)
            assert not entry.asked, (at, entry)
        else:
            is_right_after_leaving(entry, 0, at)


def is_right_after_leaving(entry: Entry, least: int, at: int) -> None:
    """The charge for an answer that the client left, having `least` bytes of the text."""
    if not entry.asked:
        assert entry.cost == 0, (at, "charged, and the provider was never asked", entry)
    elif entry.line["usage_source"] == "reported":
        is_reported(entry)
    else:
        is_counted(entry, least, TEXT)


@pytest.mark.parametrize("leaves", BREAKS)
@pytest.mark.parametrize("kind", [JSON, STREAM], ids=lambda kind: kind.name)
def test_a_client_that_leaves_before_the_answer_pays_the_prompt(
    bench: Bench, kind: Kind, leaves: Action
) -> None:
    number = bench.name("early")
    with socket.create_connection(("127.0.0.1", bench.gateway.port), timeout=GUARD) as sock:
        sock.sendall(kind.spoken(number, more=";first=60"))
        deadline = time.monotonic() + GUARD
        while not bench.provider.entries() and time.monotonic() < deadline:
            time.sleep(0.005)
        status = bench.gateway.api("/api/status")
        assert (status["exchanges"], status["upstreams"]["stub"]["busy"]) == (1, 1)
        if leaves == "reset":
            abort(sock)
    entry = bench.books({number})[number]
    is_counted(entry, 0, 0)
    assert entry.line["reason"] == "client_disconnected"
    assert entry.asked[0]["end"] == "client_closed"


@pytest.mark.parametrize("action", BREAKS)
@pytest.mark.parametrize("kind", [JSON, STREAM, OLD], ids=lambda kind: kind.name)
def test_the_client_breaks_at_every_byte_of_the_answer(
    bench: Bench, kind: Kind, action: Action
) -> None:
    pace = ";pace=0.0005" if kind.stream else ""
    number, good = kind.through(bench)
    whole = ask(bench.gateway.port, kind.spoken(bench.name("paced"), "/direct", pace))
    assert whole.body == good.body
    places = {}
    answers = {}
    for at in range(len(whole.raw) + 1):
        bench.down.plan = Plan(response=Fault(action, at))
        number = bench.name("leaves")
        places[number] = at
        answers[number] = ask(bench.down.port, kind.spoken(number, "/direct", pace))
    books = bench.books(set(places))
    wrong = []
    for number, at in places.items():
        answer, entry = answers[number], books[number]
        try:
            if answer.whole and kind.version == "1.1":
                # Where chunks were joined the answer is shorter than the one it is measured by.
                assert answer.body == good.body, answer
            if not kind.stream and at < len(whole.raw):
                assert not answer.whole, answer
            is_right_after_leaving(entry, text_of(answer.body), at)
        except AssertionError as error:
            wrong.append(f"at {at} of {len(whole.raw)}: {error}")
    assert not wrong, summary(wrong)


@pytest.mark.parametrize("action", BREAKS)
def test_a_post_on_a_kept_connection_that_dies_is_never_sent_twice(
    bench: Bench, action: Action
) -> None:
    ask(bench.gateway.port, JSON.spoken(bench.name("first"), "/kept"))
    size = len(bench.provider.last())
    places = {}
    for at in range(1, size + 1, 3):
        bench.up.drop()
        wait_for_idle(bench, 0)
        bench.up.plan = Plan(request=Fault(action, size + at))
        assert ask(bench.gateway.port, JSON.spoken(bench.name("first"), "/kept")).status == 200
        bench.up.plan = Plan()
        accepted = bench.up.accepted
        number = bench.name("second")
        places[number] = at
        answer = ask(bench.gateway.port, JSON.spoken(number, "/kept"))
        assert (answer.status, answer.whole) == (502, True), (at, answer)
        assert bench.up.accepted == accepted
    books = bench.books(set(places))
    for number, at in places.items():
        is_free(books[number])
        assert len(books[number].asked) == (1 if at == size else 0)


@pytest.mark.parametrize("action", BREAKS)
def test_a_get_on_a_kept_connection_that_dies_is_repeated(bench: Bench, action: Action) -> None:
    ask(bench.gateway.port, JSON.spoken(bench.name("first"), "/kept"))
    size = len(bench.provider.last())
    get = f"GET /kept/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {ALICE}\r\n\r\n".encode()
    good = ask(bench.gateway.port, get)
    assert good.whole
    for at in range(1, 60, 2):
        bench.up.drop()
        wait_for_idle(bench, 0)
        bench.up.plan = Plan(request=Fault(action, size + at))
        assert ask(bench.gateway.port, JSON.spoken(bench.name("first"), "/kept")).status == 200
        bench.up.plan = Plan()
        struck = bench.up.struck
        answer = ask(bench.gateway.port, get)
        assert (answer.status, answer.whole, answer.body) == (200, True, good.body)
        assert bench.up.struck == struck + 1
    bench.books(set())


def wait_for_idle(bench: Bench, number: int) -> None:
    """Until the gateway keeps so many connections behind /kept."""
    for _ in range(2000):
        if bench.gateway.api("/api/status")["upstreams"]["kept"]["idle"] == number:
            return
    raise AssertionError("connections that were closed are kept")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_one_byte_at_a_time_changes_nothing(bench: Bench, kind: Kind) -> None:
    _, good = kind.through(bench)
    slow = Fault("dribble")
    numbers = set()
    for plans in (
        (Plan(slow, slow), Plan()),
        (Plan(), Plan(slow, slow)),
        (Plan(slow, slow), Plan(slow, slow)),
    ):
        bench.down.plan, bench.up.plan = plans
        for chunked in (False, True) if kind.version == "1.1" else (False,):
            number = bench.name("dribble")
            numbers.add(number)
            answer = ask(bench.down.port, kind.spoken(number, chunked=chunked))
            assert (answer.status, answer.whole, answer.body) == (200, True, good.body)
    books = bench.books(numbers)
    for number in numbers:
        is_reported(books[number])


@pytest.mark.parametrize("kind", [JSON, STREAM, ASKED, SIZED], ids=lambda kind: kind.name)
def test_a_pause_at_any_byte_of_the_answer_changes_nothing(bench: Bench, kind: Kind) -> None:
    kinds = [JSON, STREAM, ASKED, SIZED]  # together they meet every place
    _, good = kind.through(bench)
    size = len(kind.from_provider(bench))
    numbers = set()
    for at in range(kinds.index(kind), size + 1, len(kinds)):
        bench.up.plan = Plan(response=Fault("delay", at, 0.001))
        let_go()
        number = bench.name("pause")
        numbers.add(number)
        answer = ask(bench.gateway.port, kind.spoken(number))
        assert (answer.status, answer.whole, answer.body) == (200, True, good.body), at
    books = bench.books(numbers)
    for number in numbers:
        is_reported(books[number])


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_pause_at_any_byte_of_the_request_changes_nothing(bench: Bench, chunked: bool) -> None:
    _, good = JSON.through(bench)
    numbers = set()
    for at in range(len(JSON.spoken("x" * 16, "/direct", chunked=chunked))):
        bench.down.plan = Plan(request=Fault("delay", at, 0.001))
        number = bench.name("pause")
        numbers.add(number)
        answer = ask(bench.down.port, JSON.spoken(number, "/direct", chunked=chunked))
        assert (answer.status, answer.whole, answer.body) == (200, True, good.body), at
    books = bench.books(numbers)
    for number in numbers:
        is_reported(books[number])


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_an_upload_that_breaks_never_looks_whole_to_the_provider(
    bench: Bench, chunked: bool
) -> None:
    """A body that is passed on as it comes: what the client did not end, nobody ends for it."""

    def upload(number: str) -> bytes:
        data = JSON.spoken(number, "/direct", chunked=chunked)
        return data.replace(b"/direct/chat/completions", b"/direct/files")

    bench.down.plan = Plan()
    first = bench.name("upload")
    assert ask(bench.down.port, upload(first)).status == 404  # the stub's: it got the whole
    numbers = set()
    actions: tuple[Action, Action] = ("cut", "reset")
    for at in range(len(upload(first))):
        bench.down.plan = Plan(request=Fault(actions[at % 2], at))
        number = bench.name("upload")
        numbers.add(number)
        assert ask(bench.down.port, upload(number)).status == 0
    books = bench.books({first})
    assert len(books[first].asked) == 1
    for number in numbers:
        assert not books.get(number, Entry()).asked, number


def test_faults_leave_nothing_behind(bench: Bench) -> None:
    """Memory, descriptors and connections are after a thousand faults what they were after a few
    hundred."""
    kinds = [JSON, PIECES, STREAM, ASKED, OLD]
    size = min(len(kind.from_provider(bench)) for kind in kinds)

    def plans(at: int, action: Action) -> list[tuple[Plan, Plan]]:
        return [
            (Plan(), Plan(response=Fault(action, at % size))),
            (Plan(), Plan(request=Fault(action, at % 200))),
            (Plan(), Plan(refuse=True)),
            (Plan(response=Fault(action, at % size)), Plan()),
            (Plan(request=Fault(action, at % 200)), Plan()),
        ]

    def suffer(times: int) -> set[str]:
        numbers = set()
        for turn in range(times):
            kind = kinds[turn % len(kinds)]
            for bench.down.plan, bench.up.plan in plans(turn * 7, BREAKS[turn % 2]):
                number = bench.name("leak")
                numbers.add(number)
                ask(bench.down.port, kind.spoken(number))
        bench.down.plan = bench.up.plan = Plan()
        bench.quiet()
        return numbers

    suffer(60)
    resident, files = bench.resident, bench.files
    suffer(240)
    assert bench.files <= files + 2
    assert bench.resident - resident < 2 * 1024 * 1024, "1200 faults: less than 2 KiB each"
    bench.books(set())


def summary(wrong: list[str]) -> str:
    """The first, a middle and the last failure, and how many there are."""
    shown = [wrong[0], wrong[len(wrong) // 2], wrong[-1]]
    return f"{len(wrong)} places:\n" + "\n".join(each[:700] for each in shown)
