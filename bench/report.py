"""`python -m bench.report`: the results in bench/README.md, and its plots, from a results file.

    .venv/bin/python -m bench.report                            the newest that is not local-*
    .venv/bin/python -m bench.report bench/results/FILE.json

What stands between the markers of the page is replaced; a test holds page and plots to the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import orjson

from bench import figures, plots
from bench.tools import ROOT

PAGE = ROOT / "bench" / "README.md"
PLOTS = ROOT / "bench" / "plots"
RESULTS = ROOT / "bench" / "results"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
_ALT = {"w1.svg": "JSON", "w2.svg": "fast streams", "w3.svg": "slow streams", "w4.svg": "latency"}


def newest() -> Path:
    """The committed results file of the latest date. Raises FileNotFoundError."""
    found = [path for path in RESULTS.glob("*.json") if not path.name.startswith("local-")]
    if not found:
        raise FileNotFoundError("no results in bench/results: make bench ARGS=--reference")
    return max(found, key=lambda path: str(read(path)["date"]))


def read(path: Path) -> dict[str, Any]:
    """A results file."""
    results: dict[str, Any] = orjson.loads(path.read_bytes())
    return results


def section(results: dict[str, Any], name: str) -> str:
    """What stands between the markers."""
    machine, options, commit = results["machine"], results["options"], results["commit"]
    versions = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    kind = "virtual machine" if machine["virtual"] else "machine"
    changed = f" with changes in {len(commit['changed'])} files" if commit["changed"] else ""
    parts = [
        f"[results/{name}](results/{name}), {results['date'][:10]}, commit {commit['id']}{changed}:"
        f" a {kind} with {machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gib']} GiB,"
        f" {machine['system']}, Linux {machine['kernel']}, {machine['python']}. Medians of"
        f" {options['rounds']} rounds of {options['seconds']:g} s, load and stub in"
        f" {'C' if options['tools'] == 'native' else 'Python'}; {figures.reading(results)}",
        f"Versions: {versions}.",
    ]
    parts += [f"![{_ALT[picture]}](plots/{picture})" for picture in plots.draw(results)]
    parts += ["### What was aimed at", figures.aims_table(results), figures.tables(results)]
    return "\n\n".join(parts)


def page(results: dict[str, Any], name: str, text: str) -> str:
    """The page with its section made anew. Raises ValueError where the markers are not."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"bench/README.md has no {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{section(results, name)}\n\n{END}{after}"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="The results in bench/README.md, and its plots.")
    parser.add_argument("results", type=Path, nargs="?", help="default: the newest committed one")
    options = parser.parse_args()
    path = options.results or newest()
    results = read(path)
    PAGE.write_text(page(results, path.name, PAGE.read_text()))
    PLOTS.mkdir(exist_ok=True)
    for name, text in plots.draw(results).items():
        (PLOTS / name).write_text(text)
    print(f"bench/README.md and bench/plots show {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
