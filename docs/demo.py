"""Fill the README's table, and draw its picture, from a finished run of `make demo`.

usage: docs/demo.py [RUN]        RUN is runs/reviews by default
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bedplate.report import plots

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "quality-vs-cost.svg"
BEGIN, END = "<!-- demo -->", "<!-- /demo -->"


def table(report: dict[str, Any], groups: str) -> str:
    """One row for each rung and split that was measured, as in report.json; `groups` names what its groups are."""
    lines = [
        f"| rung | split | {report['target']['metric']} (95% interval) | rows / {groups} | USD per 1,000 calls "
        "| p50 / p95 ms | training s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rungs"]:
        if row["status"] != "done":
            lines.append(f"| {row['rung']} | {row['status']} | {row['reason']} | | | | |")
            continue
        low, high = row["interval"]
        lines.append(
            f"| {row['rung']} | {row['split']} | {row['estimate']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {row['n']} / {row['groups']} | {row['usd_per_1k_calls']:.5f} "
            f"| {row['p50_ms']:.0f} / {row['p95_ms']:.0f} | {row['train_seconds']:.0f} |"
        )
    verdict, pair = report["verdict"], next((c for c in report["comparisons"] if c["planned"]), None)
    claim = ""
    if pair is not None:
        low, high = pair["interval"]
        claim = (
            f"\n{pair['a']} against {pair['b']}, a pair fixed before test was opened, on the same {pair['n']} rows: "
            f"{pair['difference']:+.3f} ({low:+.3f} to {high:+.3f}), p = {pair['p_value']:.2g} (paired, clustered).\n"
        )
    return f"{chr(10).join(lines)}\n\n**{verdict['status']}**: {verdict['reason']}\n{claim}"


def picture(report: dict[str, Any]) -> str:
    """Quality against cost, each rung on the split that speaks last for it."""
    rows: dict[str, dict[str, Any]] = {}
    for row in report["rungs"]:
        if row["status"] == "done":
            rows[row["rung"]] = row | {"reference": row["skin"] is None}
    target = report["target"]
    return plots.quality_against_cost(list(rows.values()), target["value"], target["metric"])


def main() -> None:
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "reviews"
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    before, tail = readme.read_text(encoding="utf-8").split(BEGIN)
    after = tail.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(report, 'reviews')}{END}{after}", encoding="utf-8")
    PICTURE.write_text(picture(report), encoding="utf-8")
    print(f"{readme} and {PICTURE} hold the numbers of {run}")


if __name__ == "__main__":
    main()
