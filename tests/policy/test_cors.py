"""What browsers are told (WHATWG Fetch, 3.2)."""

from __future__ import annotations

import pytest

from fastgw.http1.request import RequestHead, read_request_head
from fastgw.policy.cors import Cors

APP = "https://app.example.org"


def head(method: str, **fields: str) -> RequestHead:
    lines = [f"{method} /openai HTTP/1.1", "Host: h"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return read_request_head("\r\n".join([*lines, "", ""]).encode(), 100)[0]


def preflight(origin: str = APP, headers: str = "authorization, X-Stainless-Lang") -> RequestHead:
    return head(
        "OPTIONS",
        Origin=origin,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers=headers,
    )


def test_off_says_nothing_and_answers_no_preflight() -> None:
    cors = Cors(())
    assert not cors.on
    assert cors.fields(head("POST", Origin=APP)) == b""
    assert cors.preflight(preflight()) is None


def test_one_origin_is_named_and_caches_are_told() -> None:
    fields = Cors((APP,)).fields(head("POST", Origin=APP)).decode()
    assert fields.count("access-control-allow-origin") == 1
    assert f"access-control-allow-origin: {APP}\r\n" in fields
    assert "vary: origin\r\n" in fields
    exposed = fields.partition("access-control-expose-headers: ")[2].partition("\r\n")[0]
    for name in ("limit", "remaining", "reset", "unit"):
        assert f"x-ratelimit-{name}" in exposed.split(", ")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{APP}.evil.example", ""])
def test_another_origin_gets_no_permission(origin: str) -> None:
    cors = Cors((APP,))
    assert b"allow-origin" not in cors.fields(head("POST", Origin=origin))
    assert cors.preflight(preflight(origin)) is None


def test_all_origins() -> None:
    assert b"allow-origin: *\r\n" in Cors(("*",)).fields(head("POST", Origin="https://any.example"))


def test_a_preflight_allows_what_it_asks_for() -> None:
    answer = Cors((APP,)).preflight(preflight())
    assert answer is not None
    assert b"access-control-allow-headers: authorization, x-stainless-lang\r\n" in answer
    assert b"access-control-allow-methods: GET, POST, DELETE, OPTIONS\r\n" in answer


def test_what_is_no_field_name_is_not_repeated() -> None:
    answer = Cors((APP,)).preflight(preflight(headers="authorization, a b, <x>"))
    assert answer is not None
    assert b"access-control-allow-headers: authorization\r\n" in answer


def test_options_without_a_method_asked_for_is_no_preflight() -> None:
    assert Cors((APP,)).preflight(head("OPTIONS", Origin=APP)) is None
