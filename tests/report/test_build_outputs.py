"""What a build reads of a ladder: JUnit XML, Markdown, and the exit code of every verdict."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from tests.report.sample import report

from bedplate.adaptation import ladder
from bedplate.adaptation.task import task_file
from bedplate.cli.adapt import EXIT_CODES
from bedplate.cli.main import main
from bedplate.report.html import headline
from bedplate.report.run_report import Report
from bedplate.report.schema import ReportFile, Verdict
from bedplate.report.summary import junit, summary

KEPT_OUT = [{"rung": "lora", "key": "p95_ms", "given": 500.0, "needed": 640.0, "estimate": 0.91}]


def ended(status: str, **verdict: Any) -> dict[str, Any]:
    values = report()
    if status != "PASS":
        values["verdict"] |= {"status": status, "rung": None, "skin": None}
    values["verdict"] |= verdict
    ReportFile.model_validate_json(json.dumps(values))
    return values


def test_every_verdict_has_an_exit_code_of_its_own():
    assert set(EXIT_CODES) == set(Verdict.model_fields["status"].annotation.__args__)  # type: ignore[union-attr]
    assert EXIT_CODES["PASS"] == 0
    assert len({*EXIT_CODES.values(), 1, 2, 130}) == len(EXIT_CODES) + 3  # and none is an error's


@pytest.mark.parametrize("status", EXIT_CODES)
def test_the_command_ends_with_the_verdicts_code_and_writes_both_files(
    status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    ladder_report = Report(ended(status), tmp_path)
    monkeypatch.setattr(ladder, "adapt", lambda *_, **__: ladder_report)
    unlimited = SimpleNamespace(budget=SimpleNamespace(train_minutes=None))
    monkeypatch.setattr(task_file, "check_task_file", lambda *_: unlimited)
    (tmp_path / "task.yaml").write_text("task: t")
    xml, page = tmp_path / "junit.xml", tmp_path / "summary.md"
    line = [
        "adapt",
        str(tmp_path / "task.yaml"),
        "--out",
        str(tmp_path / "out"),
        "--junit",
        str(xml),
        "--markdown",
        str(page),
    ]
    with pytest.raises(SystemExit) as exit_info:
        main([*line, "--json"])
    assert exit_info.value.code == EXIT_CODES[status]
    assert json.loads(capsys.readouterr().out)["verdict"]["status"] == status
    assert ET.parse(xml).getroot().get("failures") == str(int(status != "PASS"))
    assert status in page.read_text()


def test_files_that_cannot_be_written_are_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(ladder, "adapt", lambda *_, **__: pytest.fail("time was spent"))
    (tmp_path / "task.yaml").write_text("task: t")
    for option, place in (("--junit", tmp_path / "task.yaml" / "a.xml"), ("--markdown", tmp_path)):
        with pytest.raises(SystemExit) as exit_info:
            main(["adapt", str(tmp_path / "task.yaml"), "--out", str(tmp_path / "out"), option, str(place)])
        assert exit_info.value.code == 2
        assert "cannot write" in capsys.readouterr().err


def test_cases_of_junit_are_the_verdict_and_every_candidate():
    values = ended("FAIL", reason="too low <&> \x00 here")
    root = ET.fromstring(junit(values))
    suite = root.find("testsuite")
    assert suite is not None
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    climbed = {row["rung"]: row["status"] for row in values["rungs"] if row["split"] == "valid"}
    assert set(cases) == {"verdict", *climbed}
    assert root.get("tests") == suite.get("tests") == str(len(cases))
    failure = cases["verdict"].find("failure")
    assert failure is not None
    assert (failure.get("type"), failure.text) == ("FAIL", "too low <&> \ufffd here")
    left_out = [name for name, case in cases.items() if case.find("skipped") is not None]
    assert left_out == [name for name, status in climbed.items() if status != "done"]
    assert left_out
    assert root.get("skipped") == str(len(left_out))
    assert ET.fromstring(junit(ended("PASS"))).find(".//failure") is None


def test_the_summary_has_a_row_for_each_estimate_and_what_the_budget_kept_out():
    values = ended("OUT_OF_BUDGET", kept_out=KEPT_OUT, reason="Nothing fits | here")
    page = summary(values)
    lines = page.splitlines()
    assert lines[0] == f"## {values['task']}: OUT_OF_BUDGET"
    assert "| lora | `p95_ms` | 500 | 640 | 0.910 |" in lines
    finished_rows = [row for row in values["rungs"] if row["status"] == "done"]
    starts = [f"| {row['rung']} | {row['split']} | {row['estimate']:.3f} |" for row in finished_rows]
    assert all(any(line.startswith(start) for line in lines) for start in starts)
    for untried in values["not_tried"]:
        assert f"- {untried['rung']}: " in page
    assert r"fits \| here" in page
    assert headline(values).endswith("p95_ms: 500 → 640 would admit lora.")


def test_a_verdict_of_a_report_from_before_has_nothing_kept_out():
    values = ended("PASS")
    values["verdict"].pop("kept_out", None)
    assert "Kept out" not in summary(values)
