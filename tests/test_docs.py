"""The documentation is held to the code: codes, metrics, log fields, commands, links, examples."""

from __future__ import annotations

import asyncio
import re
import tomllib
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fastgw.cli import _parser
from fastgw.config.tables import LISTED_TABLES, SINGLE_TABLES, spellings
from fastgw.config.tables import Metrics as Settings
from fastgw.errors import Refusal
from fastgw.metrics import _SAMPLED, Metrics, Sample
from fastgw.model import Usage
from tests.series import use

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")])
ROW = re.compile(r"^\| (.+) \|$", re.MULTILINE)


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a page."""
    lines = ROW.findall((ROOT / page).read_text())
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def refusals() -> set[type[Refusal]]:
    found: set[type[Refusal]] = set()
    waiting = [Refusal]
    while waiting:
        kind = waiting.pop()
        found.add(kind)
        waiting += kind.__subclasses__()
    return found


def test_every_code_is_explained_with_its_status_and_type() -> None:
    told = {
        (cells[0].strip("`"), cells[1], cells[2].strip("`"))
        for cells in rows("docs/errors.md")
        if len(cells) > 3 and cells[1].isdigit()
    }
    assert told == {(kind.code, str(kind.status), kind.kind) for kind in refusals()}


def test_every_metric_is_explained() -> None:
    metrics = Metrics(Settings(labels={"user_id": "apiKey.user_id"}), "1.0")
    series = metrics.series(("/openai", "stub", "chat", "openai", "m", "m", "alice"))
    series.count(("POST", 200, "ok"), 1)
    use(series, Usage(10, 9, source="reported"))
    series.spent.cost = series.spent.unpriced = 1
    for observe in (
        series.duration,
        series.processing,
        series.server_duration,
        series.time_to_first_token,
        series.time_per_output_token,
    ):
        observe(0.1)
    metrics.store.settled(0.1, 1)
    metrics.add_source(
        lambda: [Sample(name, ("x",) * len(labels), 1) for name, (_, labels) in _SAMPLED.items()]
    )
    text = asyncio.run(metrics.render()).decode()
    kinds = {
        family.name.removeprefix("fastgw_") + "_total" * (family.type == "counter"): family.type
        for family in text_string_to_metric_families(text)
        if not family.name.startswith("process_")
    }
    told = {
        name: cells[1]
        for cells in rows("docs/metrics.md")
        if len(cells) == 4 and cells[1] in ("counter", "gauge", "histogram")
        for name in re.findall(r"`([a-z_]+)`", cells[0])
    }
    assert told == kinds


def test_every_field_of_the_access_log_is_explained() -> None:
    source = (ROOT / "fastgw/recorder.py").read_text()
    written = set(re.findall(r'(?<!= )"([a-z_.]+)":', source))
    table = (ROOT / "docs/metrics.md").read_text().partition("## Access log")[2]
    told = {
        name
        for line in ROW.findall(table)
        for name in re.findall(r"`([a-z_.]+)`", line.split(" | ")[0])
    }
    assert told == written - {"message"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    for path in re.findall(r"`((?:fastgw|bench|tests|docs)/[a-z0-9_./-]+)`", text):
        if "local-" not in path and not path.endswith(("results/", "/")):
            places = (ROOT / path, ROOT / f"{path}.py")
            assert any(place.exists() for place in places), f"{page.name}: {path}"


def test_the_makefile_has_the_targets_that_are_named() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE))
        assert named <= targets, page.name


def test_the_commands_that_are_named_exist() -> None:
    known = set(_parser().format_help().partition("COMMAND")[2].split())
    for page in PAGES:
        text = page.read_text()
        named = set(re.findall(r"(?:bin/|`)fastgw ([a-z]+)", text))
        assert named <= known, page.name


def test_toml_examples_hold_only_settings_that_exist() -> None:
    for page in PAGES:
        for block in re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL):
            for name, value in tomllib.loads(block).items():
                table = SINGLE_TABLES.get(name) or LISTED_TABLES[name]
                for entry in value if isinstance(value, list) else [value]:
                    assert set(entry) <= set(spellings(table)), page.name


def test_settings_that_pages_name_exist() -> None:
    names = set().union(
        *(spellings(table) for table in (*SINGLE_TABLES.values(), *LISTED_TABLES.values()))
    )
    for page in PAGES:
        for table, setting in re.findall(r"`\[\[?([a-z_]+)\]?\] ([a-z_]+)`", page.read_text()):
            assert table in SINGLE_TABLES or table in LISTED_TABLES, f"{page.name}: [{table}]"
            assert setting in names, f"{page.name}: [{table}] {setting}"
