"""A ladder's report as a page of Markdown, for a pull request or the summary of a build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.report.html import headline
from bedplate.report.markdown import cell, table
from bedplate.report.said import said


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
            (one["rung"], f"`{one['key']}`", f"{one['given']:g}", f"{one['needed']:g}", _seen(report, one["estimate"]))
            for one in kept_out
        ]
        lines += ["### Kept out by the budget", "", *table(head, rows), ""]
    head = ("rung", "split", target["metric"], "95% interval", "rows", "USD per 1,000 calls", "p95 ms")
    done = [row for row in report["rungs"] if row["status"] == "done"]
    lines += [*table(head, [_row(report, row) for row in done]), ""]
    required = report.get("requirements") or {}
    if required:
        held = {True: "yes", False: "no", None: "undecided"}
        made = [(name, held[one["holds"]], cell(one["reason"])) for name, found in required.items() for one in found]
        lines += ["### Required", "", *table(("nominee", "holds", "what was found"), made), ""]
    missing = report["not_tried"]
    if missing:
        lines += ["### Not tried", ""]
        lines += [f"- {cell(one['rung'])}: {cell(one['reason'])}" for one in missing]
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
        said(report, row["estimate"]),
        f"{said(report, low)} to {said(report, high)}",
        f"{row['n']:,}",
        "" if usd is None else f"{usd:.5f}",
        "" if slowest is None else f"{slowest:.1f}",
    )


def _seen(report: Mapping[str, Any], value: float | None) -> str:
    return "not tried" if value is None else said(report, value)
