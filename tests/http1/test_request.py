import gc

import pytest

from fastgw import errors
from fastgw.http1.request import UNSIZED, HeadCache, HeadMemo, RequestHead, read_request_head
from tests.looks_inside import members

GOOD = (
    b"POST /openai/v1/chat/completions HTTP/1.1\r\n"
    b"Host: localhost:8080\r\n"
    b"Authorization: Bearer sk-test\r\n"
    b"Content-Type: application/json\r\n"
    b"Content-Length: 12\r\n\r\n"
)


def head(*fields: bytes, line: bytes = b"GET /x HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""])


def test_reads_what_a_client_sends() -> None:
    request, length = read_request_head(GOOD, 100)
    assert (request.method, request.path, request.query) == (
        b"POST",
        b"/openai/v1/chat/completions",
        None,
    )
    assert length == 12
    assert request.has_length
    assert request.keep_alive
    assert request.get(b"authorization") == b"Bearer sk-test"
    assert "sk-test" not in repr(request)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (head(host=b""), errors.BadRequest),
        (head(b"Host: b"), errors.BadRequest),
        (head(host=b"Host: a b"), errors.BadRequest),
        (head(host=b"Host: a,b"), errors.BadRequest),
        (head(host=b"Host: user@a"), errors.BadRequest),
        (head(host=b"Host: "), errors.BadRequest),
        (head(line=b"GET  /x HTTP/1.1"), errors.BadRequest),
        (head(line=b"GET /x  HTTP/1.1"), errors.BadRequest),
        (head(line=b"GET /x"), errors.BadRequest),
        (head(line=b"GET /x HTTP/2.0"), errors.VersionNotSupported),
        (head(line=b"GET /x HTTP/1.2"), errors.VersionNotSupported),
        (head(line=b"PRI * HTTP/2.0"), errors.VersionNotSupported),
        (head(line=b"get /x HTTP/1.1"), errors.BadRequest),
        (head(line=b"CONNECT a:1 HTTP/1.1"), errors.NotImplementedHere),
        (head(line=b"TRACE /x HTTP/1.1"), errors.NotImplementedHere),
        (head(line=b"GET /x#y HTTP/1.1"), errors.BadRequest),
        (head(line=b"GET /\xff HTTP/1.1"), errors.BadRequest),
        (head(line=b"GET x HTTP/1.1"), errors.BadRequest),
        (head(line=b"GET * HTTP/1.1"), errors.BadRequest),
        (head(line=b"GET http://b/x HTTP/1.1"), errors.BadRequest),
        (head(line=b"GET ftp://a/x HTTP/1.1"), errors.BadRequest),
        (head(b"Content-Length: 1", b"Content-Length: 1"), errors.BadRequest),
        (head(b"Content-Length: 1, 1"), errors.BadRequest),
        (head(b"Content-Length: +1"), errors.BadRequest),
        (head(b"Content-Length: -1"), errors.BadRequest),
        (head(b"Content-Length: 0x1"), errors.BadRequest),
        (head(b"Content-Length: 1_0"), errors.BadRequest),
        (head(b"Content-Length: "), errors.BadRequest),
        (head(b"Content-Length: 99999999999999999999999"), errors.BadRequest),
        (head(b"Content-Length: 1", b"Transfer-Encoding: chunked"), errors.BadRequest),
        (head(b"Transfer-Encoding: chunked", b"Content-Length: 1"), errors.BadRequest),
        (head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), errors.BadRequest),
        (head(b"Transfer-Encoding: ,chunked"), errors.Refusal),
        (head(b"Transfer-Encoding: gzip, chunked"), errors.Refusal),
        (head(b"Transfer-Encoding: identity"), errors.Refusal),
        (head(b"Transfer-Encoding: xchunked"), errors.Refusal),
        (head(b"Transfer-Encoding: chunked", line=b"POST /x HTTP/1.0"), errors.BadRequest),
        (head(b"X-Y : 1"), errors.BadRequest),
        (head(b" X: 1"), errors.BadRequest),
        (head(b"X: 1", b"\tfolded"), errors.BadRequest),
        (head(b"X: a\rb"), errors.BadRequest),
        (head(b"X: a\nb: c"), errors.BadRequest),
        (head(b"X: a\0b"), errors.BadRequest),
        (head(b"X\xff: 1"), errors.BadRequest),
        (head(b": 1"), errors.BadRequest),
        (head(b"no colon"), errors.BadRequest),
        (head(b"Authorization: Bearer a", b"Authorization: Bearer b"), errors.BadRequest),
        (head(b"Expect: 200-ok"), errors.ExpectationFailed),
        (head(*[b"X: 1"] * 101), errors.HeadTooLarge),
    ],
)
def test_refuses_what_two_parsers_could_read_differently(
    raw: bytes, error: type[errors.Refusal]
) -> None:
    with pytest.raises(error):
        read_request_head(raw, 100)


ONCE = (
    b"Host", b"Content-Length", b"Transfer-Encoding", b"Content-Type", b"Content-Encoding",
    b"Authorization", b"Expect",
)  # fmt: skip
SOUND = {
    b"Host": b"a", b"Content-Length": b"1", b"Transfer-Encoding": b"chunked",
    b"Expect": b"100-continue",
}  # fmt: skip


@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("between", [(), (b"X: y",)], ids=["beside", "apart"])
def test_a_field_that_counts_comes_once(name: bytes, between: tuple[bytes, ...]) -> None:
    """Also where both say the same: which of them counts is not ours to choose."""
    field = name + b": " + SOUND.get(name, b"a/b")
    host = b"" if name == b"Host" else b"Host: a"
    assert read_request_head(head(field, host=host), 100)
    for other in (field, field.upper(), name.lower() + b": " + SOUND.get(name, b"c/d")):
        with pytest.raises(errors.BadRequest):
            read_request_head(head(field, *between, other, host=host), 100)


def test_absolute_form_must_agree_with_host() -> None:
    request, _ = read_request_head(head(line=b"GET http://A/x?q=1 HTTP/1.1"), 100)
    assert (request.path, request.query) == (b"/x", b"q=1")
    request, _ = read_request_head(head(line=b"GET http://a HTTP/1.1"), 100)
    assert request.path == b"/"


@pytest.mark.parametrize(
    ("fields", "line", "keep"),
    [
        ((), b"GET /x HTTP/1.1", True),
        ((b"Connection: close",), b"GET /x HTTP/1.1", False),
        ((b"Connection: Keep-Alive, Close",), b"GET /x HTTP/1.1", False),
        ((), b"GET /x HTTP/1.0", False),
        ((b"Connection: keep-alive",), b"GET /x HTTP/1.0", True),
    ],
)
def test_keep_alive(fields: tuple[bytes, ...], line: bytes, keep: bool) -> None:
    assert read_request_head(head(*fields, line=line), 100)[0].keep_alive is keep


def test_http_1_0_needs_no_host_and_upgrade_offers_are_ignored() -> None:
    assert read_request_head(head(line=b"GET /x HTTP/1.0", host=b""), 100)[0].minor == 0
    offer = head(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAA")
    assert read_request_head(offer, 100)[0].path == b"/x"


def test_chunked_is_unsized() -> None:
    request, length = read_request_head(
        head(b"Transfer-Encoding: Chunked", line=b"POST /x HTTP/1.1"), 100
    )
    assert length == UNSIZED
    assert request.chunked


class TestHeadMemo:
    def remembered(self) -> HeadMemo:
        memo = HeadMemo()
        memo.remember(GOOD, read_request_head(GOOD, 100)[0])
        return memo

    def test_knows_the_same_head_with_another_length(self) -> None:
        memo = self.remembered()
        other = GOOD.replace(b"Length: 12", b"Length: 98765") + b"body"
        end = memo.match(other)
        assert end == len(other) - 4
        assert memo.length == 98765

    @pytest.mark.parametrize("digits", [b"", b"+1", b"1 ", b"0x1", b"1" * 19, b"1,1", b"\xb2"])
    def test_takes_only_plain_digits(self, digits: bytes) -> None:
        memo = self.remembered()
        other = GOOD.replace(b"Length: 12", b"Length: " + digits)
        end = memo.match(other)
        assert not end or memo.length == UNSIZED

    def test_what_it_knows_of_the_last_length_does_not_mislead_it(self) -> None:
        lengths = [b"12", b"98", b"98", b"", b"x2", b"98", b"1\r", b"12345", b"12345", b"+2345"]
        lengths += [b"\r\nA: b", b"", b"12345", b"7", b"7", b"\xb2", b"7", b"0" * 19, b"0" * 18]
        memo = self.remembered()
        for digits in [*lengths, *reversed(lengths)]:
            other = GOOD.replace(b"Length: 12", b"Length: " + digits)
            for _ in range(2):
                end = memo.match(other + b"body")
                if digits.isdigit() and len(digits) <= 18:
                    assert end == len(other)
                    assert memo.length == int(digits)
                else:
                    assert not end or memo.length == UNSIZED

    def test_another_head_in_between_leaves_nothing(self) -> None:
        memo = self.remembered()
        assert memo.match(GOOD)
        assert memo.length == 12
        longer = GOOD.replace(b"Host: ", b"X: 1234567\r\nHost: ")
        memo.remember(longer, read_request_head(longer, 100)[0])
        for digits in (b"345", b"12"):
            other = longer.replace(b"Length: 12", b"Length: " + digits)
            assert memo.match(other) == len(other)
            assert memo.length == int(digits)
        assert not memo.match(GOOD)

    def test_any_other_byte_is_another_head(self) -> None:
        memo = self.remembered()
        for at in range(len(GOOD)):
            if GOOD[at : at + 1].isdigit() and b"Length: " in GOOD[at - 9 : at + 1]:
                continue
            changed = GOOD[:at] + bytes((GOOD[at] ^ 1,)) + GOOD[at + 1 :]
            assert not memo.match(changed), at
            assert not memo.match(GOOD[:at])

    def test_a_head_without_a_body_is_known_too(self) -> None:
        memo = HeadMemo()
        raw = head()
        memo.remember(raw, read_request_head(raw, 100)[0])
        assert memo.match(raw + b"next") == len(raw)
        assert memo.length == 0

    def test_a_field_that_mentions_the_length_does_not_confuse_it(self) -> None:
        raw = head(b"X: content-length: 7", b"content-LENGTH: \t 7", line=b"POST /x HTTP/1.1")
        memo = HeadMemo()
        memo.remember(raw, read_request_head(raw, 100)[0])
        other = raw.replace(b"\t 7", b"\t 41")
        assert memo.match(other)
        assert memo.length == 41

    def test_chunked_heads_are_read_each_time(self) -> None:
        raw = head(b"Transfer-Encoding: chunked", line=b"POST /x HTTP/1.1")
        memo = HeadMemo()
        memo.remember(raw, read_request_head(raw, 100)[0])
        assert not memo.match(raw)

    def test_a_long_head_is_not_kept_by_a_connection_that_waits(self) -> None:
        memo = HeadMemo()
        memo.remember(GOOD, read_request_head(GOOD, 100)[0])
        for size, kept in ((HeadMemo.LARGEST, True), (HeadMemo.LARGEST + 1, False)):
            raw = head(b"x: " + b"y" * (size - len(head(b"x: "))))
            assert len(raw) == size
            memo.remember(raw, read_request_head(raw, 100)[0])
            assert (memo.match(raw), memo.head is not None) == (size if kept else 0, kept)
            assert not memo.match(GOOD)


class TestHeadCache:
    def ask(self, heads: HeadCache, raw: bytes, address: str = "10.0.0.1") -> bool:
        """Ask for a head as a connection does; whether it was known."""
        found = heads.find(address, raw)
        head, length = read_request_head(raw, 100)
        if found is None:
            heads.remember(address, raw, head)
            return False
        memo = HeadMemo()
        same = [field for field in head.fields if field[0] != b"content-length"]
        kept = memo.recall(found).fields
        assert [field for field in kept if field[0] != b"content-length"] == same
        assert memo.length == length
        assert memo.match(raw + b"x" * length) == len(raw)
        assert memo.length == length
        return True

    @pytest.mark.parametrize(
        "raw", [GOOD, GOOD.replace(b"Content-Length", b"content-length"), head()]
    )
    def test_a_head_is_known_from_its_third_time_on(self, raw: bytes) -> None:
        heads = HeadCache()
        assert [self.ask(heads, raw) for _ in range(4)] == [False, False, True, True]
        assert not self.ask(heads, raw, "10.0.0.2")

    def test_another_length_is_the_same_head_and_another_byte_is_not(self) -> None:
        heads = HeadCache()
        for length in (b"1", b"22", b"333"):
            known = self.ask(heads, GOOD.replace(b"Length: 12", b"Length: " + length))
        assert known
        value = GOOD.index(b"sk-test")
        for at in range(len(GOOD)):
            digit = GOOD[at : at + 1].isdigit() and b"Length: " in GOOD[at - 9 : at + 1]
            if not digit and not value <= at < value + len(b"sk-test"):
                changed = GOOD[:at] + bytes((GOOD[at] ^ 1,)) + GOOD[at + 1 :]
                assert heads.find("10.0.0.1", changed) is None, at

    @pytest.mark.parametrize("digits", [b"", b"+1", b"1 ", b" 1", b"0x1", b"1" * 19, b"1,1"])
    def test_takes_only_plain_digits(self, digits: bytes) -> None:
        heads = HeadCache()
        for _ in range(3):
            self.ask(heads, GOOD)
        assert heads.find("10.0.0.1", GOOD.replace(b"Length: 12", b"Length: " + digits)) is None

    def test_a_field_that_mentions_the_length_does_not_confuse_it(self) -> None:
        heads = HeadCache()
        line = b"POST /x HTTP/1.1"
        for length in (b"3", b"4", b"5"):
            raw = head(b"X: Content-Length: 7", b"CONTENT-LENGTH: " + length, line=line)
            assert not self.ask(heads, raw)
        for length in (b"3", b"4", b"5"):
            raw = head(b"X: Content-Length: 7", b"content-length: " + length, line=line)
            known = self.ask(heads, raw)
        assert known

    @pytest.mark.parametrize(
        "field", [b"Transfer-Encoding: chunked", b"Content-Length: 1\r\nExpect: 100-continue"]
    )
    def test_what_needs_more_than_its_head_is_read_each_time(self, field: bytes) -> None:
        heads = HeadCache()
        raw = head(field, line=b"POST /x HTTP/1.1")
        assert not any(self.ask(heads, raw) for _ in range(4))

    def test_what_never_repeats_or_is_too_many_is_not_kept(self) -> None:
        heads = HeadCache(shapes=10)
        for number in range(100):
            assert not self.ask(heads, head(b"traceparent: %d" % number))
        for number in range(100):
            for _ in range(3):
                known = self.ask(heads, head(b"x: %d" % number))
            assert known
        assert not self.ask(heads, head(b"x: 0"))
        large = head(b"x: " + b"y" * HeadCache.LARGEST)
        assert not any(self.ask(heads, large) for _ in range(4))

    def test_the_oldest_head_goes_first(self) -> None:
        heads = HeadCache(3)
        raw = [GOOD.replace(b"sk-test", b"sk-%d" % number) for number in range(6)]
        for each in raw:
            self.ask(heads, each)
            if found := heads.find("10.0.0.1", each):
                heads.keep(found[0])  # without a plan, which is the connection's to look at
                heads.keep(found[0])
                assert len(heads) <= 3
        twice = [(heads.find("10.0.0.1", each), heads.find("10.0.0.1", each)) for each in raw]
        same = [one is not None and one == other for one, other in twice]
        assert same == [False, False, False, True, True, True]
        assert len(heads.let_go()) == 3
        assert len(heads) == 0
        assert heads.find("10.0.0.1", raw[5]) is None

    def keep(self, heads: HeadCache, raw: bytes) -> None:
        """As one that the engine has made a plan for."""
        found = heads.find("10.0.0.1", raw)
        assert found is not None
        heads.keep(found[0])

    def test_heads_go_with_their_shapes(self) -> None:
        """A client that sends each of many heads twice, which no shape is found for any more."""
        heads = HeadCache(shapes=100)
        most = 0
        for number in range(10_000):
            raw = head(b"x: %d" % number)
            self.ask(heads, raw)
            self.ask(heads, raw)
            self.keep(heads, raw)
            most = max(most, len(heads))
        assert most <= 101
        assert len(heads._order) == len(heads)

    def test_many_heads_of_a_shape_go_in_parts(self) -> None:
        heads = HeadCache(shapes=4)
        for _ in range(2):
            self.ask(heads, GOOD)
        for number in range(1000):
            self.keep(heads, GOOD.replace(b"sk-test", b"sk-%d" % number))
        before = len(heads)
        for number in range(4):
            for _ in range(2):
                self.ask(heads, head(b"x: %d" % number))
        assert before - len(heads) == heads.PART
        for number in range(4, 20):
            for _ in range(2):
                self.ask(heads, head(b"x: %d" % number))
            self.keep(heads, head(b"x: %d" % number))
        assert len(heads) == 1  # shapes went again as the last came
        assert heads._left == heads._room - sum(
            shape.size + heads.KNOWN for shape, _ in heads._heads
        )
        assert heads.find("10.0.0.1", head(b"x: 19")) is not None

    def test_large_heads_are_bounded_by_their_bytes(self) -> None:
        room = 100 * (len(GOOD) + HeadCache.KNOWN)
        large = GOOD[:-2] + b"x: " + b"y" * 3000 + b"\r\n\r\n"
        for raw, most in ((GOOD, 100), (large, room // (len(large) + HeadCache.KNOWN))):
            heads = HeadCache(room=room)
            for _ in range(2):
                self.ask(heads, raw)
            for number in range(300):
                self.keep(heads, raw.replace(b"sk-test", b"sk-%d" % number))
            assert len(heads) == most
            heads.let_go()
            assert heads._left == heads._room


def same(raw: bytes, found: RequestHead) -> None:
    """The head that was found says what the parser reads."""
    read = read_request_head(raw, 100)[0]
    for name in members(read):
        if name not in ("plan", "shape", "fields"):
            assert getattr(found, name) == getattr(read, name), name
    length = [field for field in found.fields if field[0] == b"content-length"]
    assert [field for field in found.fields if field not in length] == [
        field for field in read.fields if field[0] != b"content-length"
    ]


CREDENTIALS = (
    b"Authorization: Bearer ", b"authorization: bearer ", b"x-api-key: ", b"X-Api-Key: ",
    b"api-key: ", b"x-goog-api-key: ",
)  # fmt: skip


class TestShapes:
    """Heads that differ in their credential: the short way is as strict as the parser."""

    def known(self, begin: bytes, *more: bytes) -> tuple[HeadCache, bytes]:
        """A cache that has seen heads with two credentials, and such a head with %b for it."""
        raw = head(b"X-A: 1", begin + b"@", b"Content-Length: 3", *more, line=b"POST /x HTTP/1.1")
        heads = HeadCache()
        for key in (b"sk-1", b"sk-2"):
            one = raw.replace(b"@", key)
            heads.remember("", one, read_request_head(one, 100)[0])
        return heads, raw

    @pytest.mark.parametrize("begin", CREDENTIALS)
    @pytest.mark.parametrize("first", [b"", b"Content-Length: 3\r\n"])
    def test_a_head_with_another_credential_is_known(self, begin: bytes, first: bytes) -> None:
        line = b"POST /x HTTP/1.1"
        last = b"Content-Length: 3" if not first else b"X: 1"
        raw = head(b"A: b", first + begin + b"@", last, line=line)
        heads = HeadCache()
        for number, key in enumerate((b"sk-1", b"sk-2", b"a-longer/key+==", b"!~")):
            one = raw.replace(b"@", key)
            found = heads.find("", one)
            assert (found is not None) is (number > 1)
            if found is None:
                heads.remember("", one, read_request_head(one, 100)[0])
            else:
                same(one, found[0])
                assert found[0].shape is not None
                assert found[0].shape.name == begin.partition(b":")[0].lower()
                assert found[0].shape.credential(found[0]).endswith(key)
                assert found[3] == 3
                assert heads.find("10.0.0.9", one) is None

    @pytest.mark.parametrize("begin", CREDENTIALS)
    @pytest.mark.parametrize("byte", range(256))
    def test_any_byte_in_a_credential_is_judged_as_the_parser_does(
        self, begin: bytes, byte: int
    ) -> None:
        heads, raw = self.known(begin)
        for key in (b"%b", b"sk%b", b"s%bk", b"%bsk", b"s%b%bk"):
            value = key.replace(b"%b", bytes((byte,)))
            one = raw.replace(b"@", value)
            if (found := heads.find("", one)) is not None:
                assert 0x21 <= byte <= 0x7E
                same(one, found[0])

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b" ",
            b"\r\nContent-Length: 0\r\nX: ",
            b"sk-1\r\nContent-Length: 30",
            b"sk-1\r\nTransfer-Encoding: chunked",
            b"sk-1\nTransfer-Encoding: chunked",
            b"sk-1\rTransfer-Encoding: chunked",
            b"sk-1\r\n\tfolded",
            b"sk-1\r\nHost: other",
            b"sk-1\r\nAuthorization: Bearer sk-2",
            b"sk-1\r\nx-api-key: sk-2",
            b"sk-1 sk-2",
            b"sk-1\x00",
            b"sk-1\x7f",
            b"sk-1\xa0",
            b"s" * 600,
        ],
    )
    @pytest.mark.parametrize("begin", CREDENTIALS)
    def test_nothing_but_a_credential_is_taken_for_one(self, begin: bytes, value: bytes) -> None:
        heads, raw = self.known(begin)
        assert heads.find("", raw.replace(b"@", b"sk-3")) is not None
        assert heads.find("", raw.replace(b"@", value)) is None

    @pytest.mark.parametrize("scheme", [b"Basic ", b"AWS4-HMAC-SHA256 ", b"", b"Bearer  "])
    def test_what_may_mean_more_than_who_sent_it_is_part_of_the_shape(self, scheme: bytes) -> None:
        heads, raw = self.known(b"Authorization: " + scheme)
        for key in (b"sk-1", b"sk-2", b"sk-3"):
            assert heads.find("", raw.replace(b"@", key)) is None

    def test_of_two_credentials_one_is_part_of_the_shape(self) -> None:
        heads, raw = self.known(b"Authorization: Bearer ", b"x-api-key: sk-0")
        one = raw.replace(b"@", b"sk-3")
        found = heads.find("", one)
        assert found is not None
        same(one, found[0])
        assert heads.find("", one.replace(b"sk-0", b"sk-9")) is None
        # the line that is looked for is the one with a single space
        heads, raw = self.known(b"x-api-key:@\r\nX-Api-Key:  @\r\nx-api-key: ")
        one = raw.replace(b"x-api-key: @", b"x-api-key: sk-3").replace(b"@", b"sk-2")
        found = heads.find("", one)
        if found is not None:
            same(one, found[0])

    def test_the_place_of_a_credential_is_that_of_its_line(self) -> None:
        raw = head(b"x-api-key:sk-0", b"x-api-key: @", b"x-api-key:sk-1")
        heads = HeadCache()
        for key in (b"sk-0", b"sk-1"):
            one = raw.replace(b"@", key)
            heads.remember("", one, read_request_head(one, 100)[0])
        one = raw.replace(b"@", b"sk-7")
        found = heads.find("", one)
        assert found is not None
        same(one, found[0])

    def test_a_head_and_its_shape_are_freed_without_the_collector(self) -> None:
        gc.collect()
        gc.disable()
        try:
            heads, raw = self.known(b"x-api-key: ")
            found = heads.find("", raw.replace(b"@", b"sk-3"))
            assert found is not None
            heads.keep(found[0])
            del heads, found
            assert gc.collect() == 0
        finally:
            gc.enable()
