"""A ladder's report as JUnit XML, for build servers: the verdict is one case, which fails unless it is PASS, and every
candidate is one, skipped where it was not climbed.

The form is the one that Jenkins and GitLab read (https://github.com/testmoapp/junitxml).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET


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
    verdict_case = _case(suite, task, "verdict", sum(timing["tests"].values()))
    if verdict["status"] != "PASS":
        failure = ET.SubElement(
            verdict_case, "failure", {"type": verdict["status"], "message": _text(verdict["reason"])}
        )
        failure.text = _text(verdict["reason"])
    else:
        ET.SubElement(verdict_case, "system-out").text = _text(verdict["reason"])
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
