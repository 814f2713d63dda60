"""A ladder's report for build systems: a Markdown page for a pull request, and JUnit XML in the form that Jenkins and
GitLab read (https://github.com/testmoapp/junitxml), where the verdict is one case, which fails unless it is PASS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from bedplate.report.formatting import cell, shown_estimate, shown_status, table
from bedplate.report.html import headline


def summary(report: Mapping[str, Any]) -> str:
    """The Markdown of report.json's values: the verdict, what a budget kept out, a table of candidates, and what was
    left out."""
    verdict, target = report["verdict"], report["target"]
    labels = (report.get("labels"), report["data"].get("second_labels"))
    texts = [headline(report), verdict["reason"], *(part["said"] for part in labels if part)]
    lines = [f"## {cell(report['task'])}: {shown_status(report)}", ""]
    lines += [line for text in texts for line in (cell(text), "")]
    kept_out = verdict.get("kept_out", ())
    if kept_out:
        head = ("candidate", "`budget` key", "value", "needed", f"{target['metric']} on valid")
        rows = [
            (
                *(change["rung"], f"`{change['key']}`", f"{change['given']:g}", f"{change['needed']:g}"),
                "not tried" if change["estimate"] is None else shown_estimate(report, change["estimate"]),
            )
            for change in kept_out
        ]
        lines += ["### Excluded by the budget", "", *table(head, rows), ""]
    head = ("rung", "split", target["metric"], "95% interval", "rows", "USD per 1,000 calls", "p95 ms")
    finished = [row for row in report["rungs"] if row["status"] == "done"]
    lines += [*table(head, [_row(report, row) for row in finished]), ""]
    required = report.get("requirements") or {}
    if required:
        answers = {True: "yes", False: "no", None: "undecided"}
        checks = [(name, check) for name, of_nominee in required.items() for check in of_nominee]
        rows = [(name, answers[check["holds"]], cell(check["reason"])) for name, check in checks]
        lines += ["### Requirements", "", *table(("nominee", "holds", "evidence"), rows), ""]
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


def junit(report: Mapping[str, Any]) -> str:
    """The XML of report.json's values."""
    verdict, task, timing = report["verdict"], report["task"], report["timing"]
    climbed = [row for row in report["rungs"] if row["split"] == "valid"]
    left_out = sum(row["status"] != "done" for row in climbed)
    counts = {
        "tests": str(1 + len(climbed)),
        "failures": str(int(verdict["status"] != "PASS")),
        "errors": "0",
        "skipped": str(left_out),
        "time": f"{timing['seconds']:.3f}",
    }
    suites = ET.Element("testsuites", {"name": "bedplate adapt", **counts})
    suite = ET.SubElement(suites, "testsuite", {"name": _text(task), **counts})
    verdict_case, reason = _case(suite, task, "verdict", sum(timing["tests"].values())), _text(verdict["reason"])
    if verdict["status"] != "PASS":
        ET.SubElement(verdict_case, "failure", {"type": verdict["status"], "message": reason}).text = reason
    else:
        ET.SubElement(verdict_case, "system-out").text = reason
    for row in climbed:
        case = _case(suite, task, row["rung"], timing["rungs"].get(row["rung"], 0.0))
        if row["status"] == "done":
            ET.SubElement(case, "system-out").text = _text(
                f"{report['target']['metric']} {row['estimate']:.4f} on {row['n']} rows of valid: {row['reason']}"
            )
        else:
            ET.SubElement(case, "skipped", {"message": _text(f"{row['status']}: {row['reason']}")})
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _case(suite: ET.Element, task: str, name: str, seconds: float) -> ET.Element:
    values = {"classname": _text(f"bedplate.adapt.{task}"), "name": _text(name), "time": f"{seconds:.3f}"}
    return ET.SubElement(suite, "testcase", values)


def _text(value: str) -> str:
    """Without the characters that XML 1.0 does not have."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", value)
