import pytest

from fastgw.http1.headers import AUTHORITY, REQUEST_ID, tokens


def test_tokens() -> None:
    assert tokens(b" Keep-Alive ,, \tCLOSE,") == [b"keep-alive", b"close"]


@pytest.mark.parametrize("good", [b"a", b"a.b:80", b"[::1]:8080", b"10.0.0.1"])
def test_authority(good: bytes) -> None:
    assert AUTHORITY.fullmatch(good)


@pytest.mark.parametrize("bad", [b"", b"a/b", b"u@a", b"a:b", b"a:123456", b"[::1", b"a b"])
def test_not_an_authority(bad: bytes) -> None:
    assert not AUTHORITY.fullmatch(bad)


def test_request_ids_cannot_break_a_log_or_a_head() -> None:
    for good in (b"req-1", b"!#[]~", b"x" * 128):
        assert REQUEST_ID.fullmatch(good)
    for bad in (b"", b"a b", b"a\r\nb", b"x" * 129, b"\xff", b"\x7f", b'a"b', b"a\\"):
        assert not REQUEST_ID.fullmatch(bad)
