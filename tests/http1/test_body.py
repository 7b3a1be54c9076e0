import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgw.http1.body import LAST_CHUNK, BadChunk, ChunkedDecoder, chunk

WHOLE = b"5\r\nhello\r\n6;name=v\r\n world\r\n0\r\nTrailer: x\r\n\r\n"


def decode(pieces: list[bytes]) -> tuple[bytes, bool, bytes]:
    decoder = ChunkedDecoder()
    out = b"".join(decoder.feed(piece) for piece in pieces if not decoder.ended)
    return out, decoder.ended, decoder.rest


def test_split_at_every_byte() -> None:
    for at in range(len(WHOLE) + 1):
        assert decode([WHOLE[:at], WHOLE[at:]]) == (b"hello world", True, b"")
    assert decode([WHOLE[i : i + 1] for i in range(len(WHOLE))])[0] == b"hello world"


def test_what_follows_the_end_is_handed_back() -> None:
    assert decode([WHOLE + b"GET / HTTP/1.1"]) == (b"hello world", True, b"GET / HTTP/1.1")


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.randoms())
def test_any_payload_in_any_pieces(payloads: list[bytes], random: object) -> None:
    body = b"".join(chunk(payload) for payload in payloads) + LAST_CHUNK
    pieces = []
    while body:
        size = random.randint(1, len(body))  # type: ignore[attr-defined]
        pieces.append(body[:size])
        body = body[size:]
    assert decode(pieces) == (b"".join(payloads), True, b"")


def test_passed_on_as_it_is_only_for_exactly_one_canonical_chunk() -> None:
    decoder = ChunkedDecoder()

    def feed(data: bytes) -> tuple[bytes, bool]:
        one = decoder.one(data)
        if one:
            assert decoder.one(data) == one  # nothing has changed
        return (one, True) if one else (decoder.feed(data), False)

    assert feed(b"5\r\nhello\r\n") == (b"hello", True)
    for odd in (b"05\r\nhello\r\n", b"5;x\r\nhello\r\n"):
        assert feed(odd) == (b"hello", False)
    assert feed(b"A\r\n0123456789\r\n") == (b"0123456789", False)
    assert feed(b"3\r\nabc\r\n3\r\nxyz\r\n") == (b"abcxyz", False)
    assert feed(b"5\r\nhel") == (b"hel", False)
    assert feed(b"lo\r\n") == (b"lo", False)
    assert feed(b"5") == (b"", False)
    assert feed(b"\r\nhello\r\n") == (b"hello", False)
    for none in (
        b"0\r\n\r\n",
        b"\r\n\r\n",
        b"-5\r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"6\r\nhello\r\n",
    ):
        assert ChunkedDecoder().one(none) == b""


@pytest.mark.parametrize(
    "body",
    [
        b"5\nhello\r\n",
        b"5\r\nhelloX\r\n",
        b"5\r\nhello\n",
        b"5\r\nhello0\r\n\r\n",
        b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5_0\r\n",
        b" 5\r\nhello\r\n",
        b"\r\n",
        b"g\r\n",
        b"1" * 16 + b"\r\n",
        b"5;a\x00\r\nhello\r\n",
        b"5;a\rb\r\nhello\r\n",
        b"0\r\nbad trailer\r\n\r\n",
        b"0\r\nA : b\r\n\r\n",
        b"0\r\n: b\r\n\r\n",
        b"5;" + b"x" * 5000,
        b"0\r\n" + b"A: b\r\n" * 5000,
        b"1;" + b"e" * 4000 + b"\r\nx\r\n" + (b"1;" + b"e" * 4000 + b"\r\nx\r\n") * 5,
    ],
)
def test_refuses(body: bytes) -> None:
    with pytest.raises(BadChunk):
        ChunkedDecoder().feed(body + b"0\r\n\r\n")
    with pytest.raises(BadChunk):
        decode([body[i : i + 1] for i in range(len(body))] + [b"0\r\n\r\n"])
