"""A ladder's report as a page of Markdown, for a pull request or the summary of a build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.report.formatting import shown_estimate
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
    label_notes = [labels["said"] for labels in (report.get("labels"), second) if labels]
    lines += [line for text in label_notes for line in (cell(text), "")]
    kept_out = verdict.get("kept_out", ())
    if kept_out:
        head = ("would be admitted", "key of `budget`", "given", "would do", f"{target['metric']} on valid")
        rows = [
            (
                exclusion["rung"],
                f"`{exclusion['key']}`",
                f"{exclusion['given']:g}",
                f"{exclusion['needed']:g}",
                _shown_score(report, exclusion["estimate"]),
            )
            for exclusion in kept_out
        ]
        lines += ["### Kept out by the budget", "", *table(head, rows), ""]
    head = ("rung", "split", target["metric"], "95% interval", "rows", "USD per 1,000 calls", "p95 ms")
    finished = [row for row in report["rungs"] if row["status"] == "done"]
    lines += [*table(head, [_row(report, row) for row in finished]), ""]
    required = report.get("requirements") or {}
    if required:
        answers = {True: "yes", False: "no", None: "undecided"}
        requirement_rows = [
            (name, answers[check["holds"]], cell(check["reason"]))
            for name, checks in required.items()
            for check in checks
        ]
        lines += ["### Required", "", *table(("nominee", "holds", "what was found"), requirement_rows), ""]
    missing = report["not_tried"]
    if missing:
        lines += ["### Not tried", ""]
        lines += [f"- {cell(omission['rung'])}: {cell(omission['reason'])}" for omission in missing]
        lines += [""]
    seconds, budget = report["timing"]["seconds"], report["settings"]["budget_seconds"]
    of = "" if budget is None else f" of {budget:,.0f}"
    lines.append(f"{seconds:,.0f}{of} s, ${report['timing']['usd']:.4f}, seed {report['settings']['seed']}.")
    return "\n".join(lines) + "\n"


def _row(report: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = row["interval"]
    usd, slowest = row["usd_per_1k_calls"], row["p95_ms"]
    return (
        row["rung"],
        row["split"],
        shown_estimate(report, row["estimate"]),
        f"{shown_estimate(report, low)} to {shown_estimate(report, high)}",
        f"{row['n']:,}",
        "" if usd is None else f"{usd:.5f}",
        "" if slowest is None else f"{slowest:.1f}",
    )


def _shown_score(report: Mapping[str, Any], value: float | None) -> str:
    return "not tried" if value is None else shown_estimate(report, value)
