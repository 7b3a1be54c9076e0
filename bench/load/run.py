"""`make load`: locust against a gateway and a stub provider of our own, and the sums compared.

    make load
    make load ARGS="--users 200 --run-time 60s"

After the load the tokens that the provider reported are held against what the gateway debited, user
by user; streams that their reader left are counted by the gateway and are shown apart. The HTML
report and the CSV files stand in bench/results/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.processes import ROOT, Gateway, Provider, settled

RESULTS = ROOT / "bench" / "results"
KEYS = """
[[keys]]
name = "user-{at}"
key = "sk-load-{at:04d}-0123456789abcdef"
metadata = {{ user_id = "user-{at}" }}
"""
BUDGET = """
[[budgets]]
name = "per-user-daily"
per = ["user_id"]
limit = {limit}
"""


def main() -> int:
    """See the module; 1 if a request failed or the sums differ."""
    parser = argparse.ArgumentParser(description="The scenario test with locust.")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--spawn-rate", type=float, default=25.0, help="users a second")
    parser.add_argument("--run-time", default="20s")
    parser.add_argument("--limit", type=int, default=400, help="tokens a day for each user")
    parser.add_argument("--stub", default="events=20;pace=0.02", help="see fastgw.demo.behaviour")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    report = RESULTS / "local-load"
    with tempfile.TemporaryDirectory(prefix="fastgw-load-") as name:
        folder = Path(name)
        provider = Provider(folder, options.stub)
        keys = "".join(KEYS.format(at=at) for at in range(options.users))
        gateway = Gateway(
            folder, provider.port, budgets=BUDGET.format(limit=options.limit), more=keys
        )
        try:
            secrets = ",".join(f"sk-load-{at:04d}-0123456789abcdef" for at in range(options.users))
            failed = subprocess.run(
                [
                    *(sys.executable, "-m", "locust", "-f", "bench/load/locustfile.py"),
                    *("--headless", "--only-summary", "--host", gateway.url),
                    *("--users", str(options.users), "--spawn-rate", str(options.spawn_rate)),
                    *("--run-time", options.run_time, "--stop-timeout", "10s"),
                    *("--html", f"{report}.html", "--csv", str(report)),
                ],
                cwd=ROOT,
                env={**os.environ, "FASTGW_LOAD_KEYS": secrets},
                check=False,
            ).returncode
            failed |= not compare(gateway, provider)
        finally:
            gateway.stop()
            provider.stop()
    print(f"report: {report.relative_to(ROOT)}.html")
    return 1 if failed else 0


def compare(gateway: Gateway, provider: Provider) -> bool:
    """Print what the provider reported beside what was debited; whether they agree."""
    settled(gateway)
    reported = {entry["request_id"]: entry for entry in provider.entries()}
    debited: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    wrong = 0
    for line in gateway.access_log():
        tokens = line["input_tokens"] + line["output_tokens"]
        debited[line.get("key", "")] += tokens
        sources[line.get("usage_source", "none")] += 1
        if line.get("usage_source") == "reported":
            entry = reported[line["request_id"]]
            wrong += tokens != entry["prompt"] + entry["completion"]
    rows = {row["account"]["user_id"]: row["used"] for row in gateway.api("/api/budgets")}
    differ = {user for user in rows if rows[user] != debited[user]}
    print(
        f"\nexchanges by source: {dict(sources)}\n"
        f"reported usage that was debited otherwise: {wrong}\n"
        f"tokens debited: {sum(rows.values())} over {len(rows)} accounts; "
        f"accounts that differ from the sum of their exchanges: {len(differ)}"
    )
    return not wrong and not differ


if __name__ == "__main__":
    sys.exit(main())
