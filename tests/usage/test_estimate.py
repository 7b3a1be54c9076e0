"""What is counted where nobody reported."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastgw.usage.estimate import ByteCounter


@given(st.lists(st.text("aé漢😀\ud83d")))
def test_the_cuts_of_a_text_do_not_change_its_count(pieces: list[str]) -> None:
    cut, whole = ByteCounter(), ByteCounter()
    for piece in pieces:
        cut.add(piece)
    whole.add("".join(pieces))
    size = len("".join(pieces).encode("utf-8", "surrogatepass"))
    assert cut.total() == whole.total()
    assert whole.total() * 4 - size in range(4)  # rounded up
    assert whole.at_most() == whole.total()


def test_a_lone_surrogate_is_counted() -> None:
    counter = ByteCounter()
    counter.add("\ud83d")
    assert counter.total() == 1
