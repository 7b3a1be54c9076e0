"""The table of docs/metering.md, from recorded answers of real providers.

    python -m tests.recorded_table [FOLDER]

Each answer is read in many ways (see test_recorded.py): as it came, with other line ends, a
byte-order mark, comments, compressed, in pieces; by its dialect and by content alone. Prints one
line for each dialect and format; exits with 1 if any count differs from what the provider reported.
"""

# ruff: noqa: T201 - a command prints

from __future__ import annotations

import gzip
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from fastgw.usage.dialects import DIALECTS
from fastgw.usage.meter import InflatingMeter
from tests import test_recorded
from tests.test_recorded import NAMES, check, formats, make, plans, recordings, run, variants


def ways(entry: dict[str, Any]) -> tuple[int, int]:
    """How often an answer was read, and how often a count was wrong."""
    body, framing = entry["bytes"], entry["framing"]
    generator = random.Random(entry["id"])
    read = wrong = 0
    for api in formats(entry):
        cases = [(variant, False) for variant in variants(body, framing)]
        cases += [(gzip.compress(variant), True) for variant, _ in cases]
        for data, packed in cases:
            some = list(plans(len(data), entry["id"]))
            for cuts in [[], *generator.sample(some, min(20, len(some)))]:
                meter = make(api, framing)
                _, usage = run(InflatingMeter(meter) if packed else meter, data, cuts)
                read += 1
                try:
                    check(usage, entry)
                except AssertionError:
                    wrong += 1
    return read, wrong


def main() -> int:
    """Print the table."""
    if len(sys.argv) > 1:
        test_recorded.FOLDER = Path(sys.argv[1])
    rows: dict[tuple[str, str, str], Counter[str]] = {}
    for entry in recordings():
        name = NAMES.get(entry["provider"], entry["provider"])
        dialect = name if name in DIALECTS else "openai"
        row = rows.setdefault((dialect, entry["api"], entry["framing"]), Counter())
        read, wrong = ways(entry)
        reported = entry["expected"]["usage"] is not None
        row.update(answers=1, reported=int(reported), read=read, wrong=wrong)
    print("| dialect | format | framing | answers | with usage | ways read | wrong |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (dialect, api, framing), row in sorted(rows.items()):
        print(
            f"| `{dialect}` | {api} | {framing} | {row['answers']} | {row['reported']} "
            f"| {row['read']:,} | {row['wrong']} |"
        )
    return 1 if any(row["wrong"] for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
