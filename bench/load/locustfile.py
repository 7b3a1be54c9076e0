"""The scenario test: applications with virtual keys, JSON and streams, some that leave midway.

    locust -f bench/load/locustfile.py --host http://127.0.0.1:8080 --keys sk-…,sk-…
    make load                  # starts a provider and a gateway of its own, and checks the sums

Beside locust's own rows the report has `time to first token` and `gap between chunks` (in
milliseconds, as the client sees them) and `refused` (429: an answer, not a failure).
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import orjson
from locust import HttpUser, constant_pacing, events, task

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterator

DEMO_KEYS = "sk-alice-abc123def456,sk-bob-xyz789uvw012"
PATH = "/openai/v1/chat/completions"
_turn = itertools.count()


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """Options beside locust's own; each has an environment variable too."""
    parser.add_argument(
        "--keys", default=DEMO_KEYS, env_var="FASTGW_LOAD_KEYS", help="virtual keys, by commas"
    )
    parser.add_argument(
        "--stub", default="", env_var="FASTGW_LOAD_STUB", help="behaviour of the stub provider"
    )


class Application(HttpUser):
    """One application: a key of its own, two requests a second at most."""

    wait_time = constant_pacing(0.5)

    def on_start(self) -> None:
        """Take the next key."""
        options = self.environment.parsed_options
        keys = options.keys.split(",")
        self.headers = {"Authorization": f"Bearer {keys[next(_turn) % len(keys)]}"}
        if options.stub:
            self.headers["x-stub"] = options.stub

    @task(4)
    def chat(self) -> None:
        """A buffered answer."""
        with self.client.post(
            PATH, json=_message(), headers=self.headers, name="chat", catch_response=True
        ) as answer:
            if answer.status_code == 429:
                self._refused(answer)
            elif answer.status_code != 200 or "usage" not in answer.json():
                answer.failure(f"HTTP {answer.status_code}")

    @task(4)
    def stream(self) -> None:
        """A streamed answer, read to its end."""
        self._stream("stream", leave_after=0)

    @task(1)
    def stream_and_leave(self) -> None:
        """A streamed answer whose reader goes away in the middle."""
        self._stream("stream, left", leave_after=3)

    def _stream(self, name: str, leave_after: int) -> None:
        began = last = time.perf_counter()
        whole = False
        with self.client.post(
            PATH,
            json=_message(stream=True),
            headers=self.headers,
            name=name,
            stream=True,
            catch_response=True,
        ) as answer:
            if answer.status_code == 429:
                self._refused(answer)
                return
            if answer.status_code != 200:
                answer.failure(f"HTTP {answer.status_code}")
                return
            for number, event in enumerate(_events(answer.iter_lines())):
                now = time.perf_counter()
                self._measure("gap between chunks" if number else "time to first token", now - last)
                last = now
                if event == b"[DONE]":
                    whole = True
                elif leave_after and number == leave_after:
                    answer.close()
                    break
            if not whole and not leave_after:
                answer.failure("the stream ended without [DONE]")
        self._measure("whole stream" if whole else "part of a stream", last - began)

    def _refused(self, answer: Any) -> None:
        answer.success()
        if "retry-after" not in answer.headers:
            answer.failure("429 without retry-after")
        self._measure("refused", answer.elapsed.total_seconds())

    def _measure(self, name: str, seconds: float) -> None:
        self.environment.events.request.fire(
            request_type="", name=name, response_time=seconds * 1000, response_length=0,
            exception=None, context={},
        )  # fmt: skip


def _message(stream: bool = False) -> dict[str, Any]:
    message = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello!"}]}
    return {**message, "stream": True} if stream else message


def _events(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The data of each event; an error event fails the request by its absent [DONE]."""
    for line in lines:
        if line.startswith(b"data: "):
            data = line[6:]
            if data != b"[DONE]" and "error" in orjson.loads(data):
                return
            yield data
