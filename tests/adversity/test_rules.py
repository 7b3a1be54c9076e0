"""Every rule of docs/http.md's table has cases: named here, and held to the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.adversity import framing_cases, request_cases

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (.+?) \| (.+?) \|$", re.MULTILINE)
NAMES = {case.name for case in request_cases.CASES + framing_cases.CASES}
TIMES, TLS = "tests/adversity/test_timeouts.py", "tests/adversity/test_tls.py"
LIMITS = "tests/e2e/test_limits.py"
REFUSED, OVERLOAD = "tests/e2e/test_refusals.py", "tests/e2e/test_overload.py"

RULES: dict[str, tuple[str, ...]] = {
    "TLS bytes, HTTP/0.9": ("TLS client hello", "HTTP/0.9", "random bytes", "a body alone",
                            "SSH banner", "TLS hello with a line end in it"),
    "bytes that are no TLS": (f"{TLS}::test_bytes_that_are_no_tls_on_the_tls_port",
                              f"{TLS}::test_old_versions_of_tls_are_refused"),
    "version other than": ("version 1.2", "version 2.0", "version 0.9", "HTTP/2 preface"),
    "bare LF or CR": ("all lines end in LF", "CR in the value", "NUL in the value", "folded value",
                      "control byte in the value", "space before the colon", "bare LF first"),
    "no Host or two": ("no Host", "two Hosts", "the same Host twice", "user in Host", "empty Host"),
    "Content-Length repeated": ("Content-Length twice", "two Content-Lengths",
                                "Content-Length: plus", "Content-Length: hexadecimal",
                                "length and coding", "coding and length"),
    "Transfer-Encoding other": ("coding gzip", "coding gzip, chunked", "coding empty",
                                "coding xchunked", "Transfer-Encoding in 1.0"),
    "chunk size with sign": ("chunks: size with plus", "chunks: size with 0x",
                             "chunks: size before a blank", "chunks: size of 64 bits and more",
                             "chunks: data longer than its size", "chunks: size that ends in LF"),
    "more than 16 KiB of trailers": ("chunks: 20,000 bytes of extensions", "chunks: extensions",
                                  "chunks: 20,000 bytes of trailers", "chunks: trailer Host"),
    "second Authorization": ("two Authorizations", "two of Content-Type", "two of Expect",
                             "two of Content-Encoding"),
    "CONNECT, TRACE": ("CONNECT gateway:443", "TRACE /openai/models", "OPTIONS *"),
    "Upgrade": ("an offer of HTTP/2", "an offer of WebSocket", "an offer with a body"),
    "a method other than these": (f"{REFUSED}::test_a_method_is_no_way_around_a_limit",
                                  "GET with a body", "unknown method"),
    "absolute-form target": ("http://gateway/openai/models", "absolute-form of another host"),
    "`..`, `.`, `//`": ("path /openai/../models", "path /openai/./models", "path /openai//models",
                        "path /openai/models;v=1", "path /openai%2fmodels", "path /openai/a%5cb",
                        "path /openai/a%2eb", "path /openai/a%25b", "path /openai/models%3bv=1",
                        "path /openai/a%00b", "path /openai/a\\b", "fragment"),
    "Expect other than": ("Expect of something else", "Expect of two things"),
    "request line over 16 KiB": ("target of 17000", "target of 16000", "head of 70,000 bytes",
                                 "101 fields", "100 fields", "chunks over the limit",
                                 "Content-Length over the limit"),
    "head slower than": (f"{TIMES}::test_half_a_head", f"{TIMES}::test_half_a_body",
                         f"{TIMES}::test_a_head_that_trickles_gets_no_more_time"),
    "no byte for": (f"{TIMES}::test_who_says_nothing_is_told_nothing",
                    f"{TIMES}::test_who_asks_no_more_is_told_nothing_more"),
    "no byte of an answer taken": (f"{TIMES}::test_who_takes_nothing_of_its_answer_is_cut_off",),
    "requests while more than": (f"{OVERLOAD}::test_who_takes_no_answers_is_let_go",),
    "request bodies of more": (f"{LIMITS}::test_bodies_in_memory_are_bounded_all_together",),
    "more than 10,000 connections": (f"{LIMITS}::test_idle_connections_keep_nobody_out",
                                     f"{LIMITS}::test_busy_connections_are_not_given_up"),
    "different keys": ("different keys in two fields", "different keys in field and query",
                       "different keys in field and cookie", "key and nonsense in two fields"),
    "compressed body": ("compressed body that must be read",),
}  # fmt: skip
"""How a row of the table begins, and the cases or tests that hold it."""


def rows() -> list[str]:
    table = (ROOT / "docs/http.md").read_text().partition("## From the client")[2]
    found = [row[0] for row in ROW.findall(table.partition("\n## ")[0])]
    assert found[:2] == ["input", "---"]
    return found[2:]


def test_every_rule_has_a_case_and_every_case_a_rule() -> None:
    told = rows()
    assert len(told) == len(RULES)
    for row in told:
        assert [begin for begin in RULES if row.startswith(begin)], row
    for begin in RULES:
        assert len([row for row in told if row.startswith(begin)]) == 1, begin


@pytest.mark.parametrize("rule", RULES)
def test_the_cases_of_a_rule_are_there(rule: str) -> None:
    for name in RULES[rule]:
        file, found, test = name.partition("::")
        if found:
            assert f"def {test}(" in (ROOT / file).read_text(), name
        else:
            assert name in NAMES, name
