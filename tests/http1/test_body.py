from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgw.http1 import body as body_module
from fastgw.http1.body import LAST_CHUNK, MAX_EXTRAS, BadChunk, ChunkedDecoder, chunk
from tests.looks_inside import looks_inside

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


@st.composite
def spelled(draw: st.DrawFn) -> bytes:
    """A chunk in one of the ways that are allowed."""
    payload = draw(
        st.one_of(
            st.integers(1, 300).map(lambda size: b"e" * size),
            st.binary(min_size=1, max_size=40),
            st.sampled_from([b"\r\n", b"5\r\nhello\r\n", LAST_CHUNK, b"a\r\n\r\nb"]),
        )
    )
    line = draw(st.sampled_from([b"%x", b"%x", b"%x", b"%X", b"0%x", b"%x;a=b", b"%x ;a"]))
    return line % len(payload) + b"\r\n" + payload + b"\r\n"


def read(pieces: list[bytes]) -> tuple[bytes, bool, bytes] | str:
    """The payload, whether it ended, and what follows; of a bad body only that it is refused."""
    decoder = ChunkedDecoder()
    out = []
    after = b""
    try:
        for piece in pieces:
            if decoder.ended:
                after += piece
            else:
                out.append(decoder.feed(piece))
    except BadChunk:
        return "refused"
    return b"".join(out), decoder.ended, decoder.rest + after


@settings(deadline=None)
@given(
    st.lists(spelled(), min_size=1, max_size=40),
    st.sampled_from([b"5\r\nwhole\r\n" * 300, b"f\r\nfifteen letters\r\n" * 90, b""]),
    st.sampled_from([b"", b"zz\r\n", b"-5\r\nhello\r\n", b"4\r\nhello\r\n", b"6\r\nhello\r\n"]),
    st.sampled_from(
        [LAST_CHUNK, LAST_CHUNK + b"more", b"0\r\nX: y\r\n\r\n", b"5\r\nhel", b"1", b""]
    ),
    st.lists(st.integers(0, 12_000), max_size=4),
)
def test_many_chunks_are_read_as_byte_by_byte(
    chunks: list[bytes], many: bytes, bad: bytes, end: bytes, cuts: list[int]
) -> None:
    body = many + b"".join(chunks) + many + bad + many + end
    edges = [0, *sorted(cut for cut in cuts if cut < len(body)), len(body)]
    assert read([body[a:b] for a, b in pairwise(edges)]) == read(
        [body[at : at + 1] for at in range(len(body))]
    )


@looks_inside
def test_no_bytes_are_cut_up_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two whole chunks and an odd one, over and over: what follows is cut up once for each read."""
    cut = []
    run = body_module._run

    def seen(data: bytes, at: int, payload: list[bytes]) -> int:
        cut.append(at)
        return run(data, at, payload)

    monkeypatch.setattr(body_module, "_run", seen)
    body = b"2\r\nab\r\n" * 2 + b"02\r\nab\r\n"
    assert decode([body * 1000 + LAST_CHUNK]) == (b"ab" * 3000, True, b"")
    assert len(cut) == 1


def test_what_follows_sizes_is_bounded_and_sizes_are_not() -> None:
    most = b"1;\r\nx\r\n" * (MAX_EXTRAS - 5) + b"0000001\r\nx\r\n" * MAX_EXTRAS
    body = b"x" * (2 * MAX_EXTRAS - 5)
    assert decode([most + b"0\r\nA: bc\r\n\r\n"]) == (body, True, b"")
    with pytest.raises(BadChunk):
        decode([most + b"0\r\nA: bcd\r\n\r\n"])


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
        (b"1;" + b"e" * 4000 + b"\r\nx\r\n") * 6,
        (b"1" + b" " * 4000 + b";\r\nx\r\n") * 6,
        (b"1" + b"\t" * 2000 + b";" + b" " * 2000 + b"\r\nx\r\n") * 6,
        b"1;\r\nx\r\n" * (MAX_EXTRAS + 1),
    ],
)
def test_refuses(body: bytes) -> None:
    with pytest.raises(BadChunk):
        ChunkedDecoder().feed(body + b"0\r\n\r\n")
    with pytest.raises(BadChunk):
        decode([body[i : i + 1] for i in range(len(body))] + [b"0\r\n\r\n"])
    many = b"".join(chunk(b"x" * size) for size in range(20, 80))
    with pytest.raises(BadChunk):
        ChunkedDecoder().feed(many + body + many + b"0\r\n\r\n")
    with pytest.raises(BadChunk):
        decode([many[:1000], many[1000:] + body + many + b"0\r\n\r\n"])
