import pytest

from fastgw.http1.response import CHUNKED, UNTIL_CLOSE, BadResponse, read_response_head


def head(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"\r\n".join([line, *fields, b"", b""])


def test_keeps_end_to_end_fields_and_drops_the_rest() -> None:
    response = read_response_head(
        head(
            b"Content-Type: text/event-stream; charset=utf-8",
            b"Date: x",
            b"X-Custom: 1",
            b"Connection: keep-alive, X-Hop",
            b"X-Hop: 1",
            b"Keep-Alive: timeout=5, max=100",
            b"x-request-id: theirs",
            b"x-ratelimit-limit-requests: 9",
            b"Transfer-Encoding: chunked",
        ),
        b"POST",
    )
    assert response.length == CHUNKED
    assert response.media == b"text/event-stream"
    assert response.keep_for == 5
    assert response.keep_alive
    lowered = response.fields.lower()
    assert b"x-custom: 1\r\n" in lowered
    assert b"date: x\r\n" in lowered
    for gone in (b"x-hop", b"keep-alive", b"theirs", b"ratelimit", b"chunked", b"connection"):
        assert gone not in lowered


@pytest.mark.parametrize(
    "name",
    [
        b"X-Accel-Redirect",
        b"x-accel-limit-rate",
        b"X-ACCEL-CHARSET",
        b"X-Accel-Expires",
        b"X-Sendfile",
        b"X-Sendfile2",
        b"X-LIGHTTPD-send-file",
        b"X-LiteSpeed-Location",
        b"x-reproxy-url",
    ],
)
def test_a_provider_gives_no_orders_to_a_server_in_front_of_us(name: bytes) -> None:
    """Nor as a line, or a whole head, that is known by its bytes."""
    raw = head(b"X-Custom: 1", name + b": /internal/secret", b"X-Accel-Buffering: no", b"age: 1")
    for _ in range(3):
        fields = read_response_head(raw, b"GET").fields
        assert fields == b"X-Custom: 1\r\nX-Accel-Buffering: no\r\nage: 1\r\n"


def test_rate_limit_fields_only_where_wanted() -> None:
    raw = head(b"x-ratelimit-limit-requests: 9", b"content-length: 0")
    assert b"ratelimit" not in read_response_head(raw, b"GET").fields
    assert b"ratelimit" in read_response_head(raw, b"GET", keep_rate_limit=True).fields


@pytest.mark.parametrize(
    ("raw", "method", "length"),
    [
        (head(b"content-length: 7"), b"GET", 7),
        (head(b"content-length: 7"), b"HEAD", 0),
        (head(b"content-length: 7", line=b"HTTP/1.1 304 Not Modified"), b"GET", 0),
        (head(line=b"HTTP/1.1 204 No Content"), b"GET", 0),
        (head(), b"GET", UNTIL_CLOSE),
        (head(b"transfer-encoding: CHUNKED"), b"GET", CHUNKED),
    ],
)
def test_body_length(raw: bytes, method: bytes, length: int) -> None:
    assert read_response_head(raw, method).length == length


@pytest.mark.parametrize(
    "raw",
    [
        head(line=b"HTTP/2.0 200 OK"),
        head(line=b"HTTP/1.1 20 OK"),
        head(line=b"HTTP/1.1 600 No"),
        head(line=b"HTTP/1.1 2x0 OK"),
        head(line=b"HTTP/1.1  200 OK"),
        head(line=b"garbage"),
        head(b"content-length: 1", b"content-length: 1"),
        head(b"content-length: 1", b"content-length: 2"),
        head(b"content-length: x"),
        head(b"content-length: -1"),
        head(b"content-length: 1", b"transfer-encoding: chunked"),
        head(b"transfer-encoding: chunked", b"content-length: 1"),
        head(b"transfer-encoding: gzip"),
        head(b"transfer-encoding: gzip, chunked"),
        head(b"bad name: 1"),
        head(b"x: a\nb"),
        head(b"x: a\0b"),
    ],
)
def test_refuses_what_is_not_one_sound_response(raw: bytes) -> None:
    with pytest.raises(BadResponse):
        read_response_head(raw, b"GET")


def test_http_1_0_closes_unless_it_says_otherwise() -> None:
    assert not read_response_head(head(line=b"HTTP/1.0 200 OK"), b"GET").keep_alive
    kept = head(b"connection: keep-alive", line=b"HTTP/1.0 200 OK")
    assert read_response_head(kept, b"GET").keep_alive


def test_the_memo_of_lines_does_not_grow_without_bound() -> None:
    from fastgw.http1 import response as module

    for number in range(module._MEMO_LINES * 2):
        read_response_head(head(b"x-random-%d: 1" % number), b"GET")
    assert len(module._MEMO) <= module._MEMO_LINES
