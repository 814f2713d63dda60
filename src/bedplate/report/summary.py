"""A ladder's report as a page of Markdown, for a pull request or the summary of a build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.report.html import headline
from bedplate.report.markdown import cell, table


def summary(report: Mapping[str, Any]) -> str:
    """The Markdown of report.json's values: the verdict, what a budget kept out, a table of candidates, and what was
    left out."""
    verdict, target = report["verdict"], report["target"]
    lines = [
        f"## {cell(report['task'])}: {verdict['status']}",
        "",
        cell(headline(report)),
        "",
        cell(verdict["reason"]),
        "",
    ]
    second = report["data"].get("second_labels")
    beside = [one["said"] for one in (report.get("labels"), second) if one]
    lines += [line for text in beside for line in (cell(text), "")]
    kept_out = verdict.get("kept_out", ())
    if kept_out:
        head = ("would be admitted", "key of `budget`", "given", "would do", f"{target['metric']} on valid")
        rows = [
            (one["rung"], f"`{one['key']}`", f"{one['given']:g}", f"{one['needed']:g}", _number(one["estimate"]))
            for one in kept_out
        ]
        lines += ["### Kept out by the budget", "", *table(head, rows), ""]
    head = ("rung", "split", target["metric"], "95% interval", "rows", "USD per 1,000 calls", "p95 ms")
    done = [row for row in report["rungs"] if row["status"] == "done"]
    lines += [*table(head, [_row(row) for row in done]), ""]
    missing = report["not_tried"]
    if missing:
        lines += ["### Not tried", ""]
        lines += [f"- {cell(one['rung'])}: {cell(one['reason'])}" for one in missing]
        lines += [""]
    seconds, budget = report["timing"]["seconds"], report["settings"]["budget_seconds"]
    of = "" if budget is None else f" of {budget:,.0f}"
    lines.append(f"{seconds:,.0f}{of} s, ${report['timing']['usd']:.4f}, seed {report['settings']['seed']}.")
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = row["interval"]
    return (
        row["rung"],
        row["split"],
        _number(row["estimate"]),
        f"{low:.3f} to {high:.3f}",
        f"{row['n']:,}",
        f"{row['usd_per_1k_calls']:.5f}",
        f"{row['p95_ms']:.1f}",
    )


def _number(value: float | None) -> str:
    return "not tried" if value is None else f"{value:.3f}"
