"""The page shows the results that are committed, and nothing else."""

from __future__ import annotations

import pytest

from bench import figures, plots, report
from bench.run import dump
from tests.bench.test_figures import RESULTS


def test_the_page_and_its_plots_are_those_of_the_newest_results() -> None:
    path = report.newest()
    results = report.read(path)
    again = "run .venv/bin/python -m bench.report"
    assert report.page(results, path.name, report.PAGE.read_text()) == report.PAGE.read_text(), (
        again
    )
    drawn = {place.name: place.read_text() for place in report.PLOTS.glob("*.svg")}
    assert drawn == plots.draw(results), again
    assert not [line for line in figures.failures(results) if "fastgw" in line]


def test_what_stands_around_the_section_is_kept() -> None:
    results = report.read(RESULTS)
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    made = report.page(results, "x.json", text)
    assert made.startswith(f"before\n{report.BEGIN}\n\n[results/x.json](results/x.json)")
    assert made.endswith(f"{report.END}\nafter\n")
    assert "old" not in made
    assert report.page(results, "x.json", made) == made
    with pytest.raises(ValueError, match="has no <!-- results -->"):
        report.page(results, "x.json", "no markers")


def test_a_file_is_written_as_it_is_read() -> None:
    assert dump(report.read(RESULTS)) == RESULTS.read_text()
