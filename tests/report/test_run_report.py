"""A report read back: what is none is named, what it shows is short and holds no markup of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.report.sample import report, row, skipped

import bedplate
from bedplate.core.errors import DataError, UsageError

MARKUP = "<script>alert('x')</script>"


def write(directory: Path, values: Any) -> Path:
    (directory / "report.json").write_text(json.dumps(values), "utf-8")
    return directory


def test_a_directory_gives_its_report(tmp_path: Path) -> None:
    values = report()
    loaded = bedplate.load_report(write(tmp_path, values))
    assert loaded.data == values
    assert loaded.skin == tmp_path / values["verdict"]["skin"]
    assert loaded.page == tmp_path / "report.html"
    assert repr(loaded).startswith("<report toy, PASS with lora, ")
    assert str(loaded.verdict) == f"PASS with lora: {values['verdict']['reason']}"
    assert json.loads(json.dumps(loaded.verdict)) == values["verdict"]
    without = {**values["verdict"], "status": "FAIL", "rung": None}
    assert str(bedplate.load_report(write(tmp_path, report(verdict=without))).verdict).startswith("FAIL: ")


def test_what_is_shown_is_escaped_and_as_short_for_many_rows(tmp_path: Path) -> None:
    rows = [row(f"{MARKUP}{n}", 0.5, 0.1) for n in range(300)] + [skipped("probe", f"no time {MARKUP}")]
    verdict = {**report()["verdict"], "reason": f"{MARKUP} " * 100}
    values = report(rungs=rows, verdict=verdict, task=MARKUP * 30)
    loaded = bedplate.load_report(write(tmp_path, values))
    assert len(repr(loaded)) < 300
    page = loaded._repr_html_()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 302
    assert "0.500 (0.470 to 0.520)" in page


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, UsageError, "there is no report; give the directory of a run"),
        ("{", DataError, "is not JSON"),
        ("[]", DataError, "is not a report of `adapt`: it has no 'task'"),
        (json.dumps(report(schema_version=1)), DataError, "schema version 1; 2 is read"),
    ],
)
def test_what_is_no_report_is_named(tmp_path: Path, content: str | None, error: type[Exception], message: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(error, match=message):
        bedplate.load_report(tmp_path)
