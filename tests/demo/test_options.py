"""What `fastgw stub` takes on its command line."""

from __future__ import annotations

import argparse

import pytest

from fastgw.demo.options import add_options


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_options(made)
    return made


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("--behaviour", "evnts=5", "the stub has no setting 'evnts'"),
        ("--behaviour", "events=many", "many"),
        ("--listen", "8000", "is not host:port"),
        ("--listen", "127.0.0.1:http", "is not host:port"),
        ("--listen", "127.0.0.1:65536", "is not host:port"),
    ],
)
def test_bad_usage(
    parser: argparse.ArgumentParser,
    capsys: pytest.CaptureFixture[str],
    option: str,
    text: str,
    says: str,
) -> None:
    """Exit code 2 and a sentence, as of every command."""
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([option, text])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_good_usage(parser: argparse.ArgumentParser) -> None:
    options = parser.parse_args(["--listen", "0.0.0.0:0", "--behaviour", "events=5;pace=0.1"])
    assert (options.listen, options.behaviour) == ("0.0.0.0:0", "events=5;pace=0.1")
