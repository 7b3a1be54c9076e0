import pytest

from fastgw.http1.serialize import field, status_line


def test_status_line() -> None:
    assert status_line(429) == b"HTTP/1.1 429 Too Many Requests\r\n"
    assert status_line(529) == b"HTTP/1.1 529 \r\n"


@pytest.mark.parametrize(
    ("name", "value"), [("x y", "1"), ("x", "a\r\nb: c"), ("x", "a\0"), ("", "1"), ("x:", "1")]
)
def test_no_value_can_break_out_of_its_line(name: str, value: str) -> None:
    with pytest.raises(ValueError):
        field(name, value)
