"""Whole ladders whose target is the current system, or the cost of answers: the report, recomputed from its rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tests.adaptation.conftest import write_rows, write_task

from bedplate.adaptation.ladder import adapt
from bedplate.adaptation.postprocess.origin import origin_of, promise_of
from bedplate.adaptation.report.report import Report
from bedplate.core.errors import ConfigError, DataError
from bedplate.report.html import adaptation_page, headline
from bedplate.report.summary import summary

RUNGS = ["majority", "from_scratch"]


def task_file(directory: Path, base: Path, target: dict[str, Any], **changes: Any) -> Path:
    """The toy task, whose current system is wrong on every fourth row, and gives no usable answer on some of them."""
    directory.mkdir()
    rows = write_rows(directory / "rows.jsonl", 240, noise=0.02)
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    opposite = {"positive": "negative", "negative": "positive"}
    for i, row in enumerate(records):
        row["now"] = "sorry" if i % 24 == 0 else opposite[row["label"]] if i % 4 == 0 else row["label"]
        row["language"] = "de" if i % 3 == 0 else "en"
    rows.write_text("\n".join(map(json.dumps, records)) + "\n")
    path = write_task(directory, base, rows=rows, target=target)
    values = yaml.safe_load(path.read_text())
    values["data"] |= {"current": {"column": "now", "usd_per_1k_calls": 0.9}, "slices": ["language"]}
    values |= changes
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def row_of(data: dict[str, Any], rung: str, split: str) -> dict[str, Any]:
    return next(row for row in data["rungs"] if (row["rung"], row["split"]) == (rung, split))


def test_a_skin_passes_by_being_better_than_the_current_system(tmp_path: Path, tiny_base: Path) -> None:
    target = {
        "against": "current",
        "better_by": 0,
        "confidence": 0.9,
        "all_of": [{"every": "language", "at_least": 0.7}],
    }
    report = adapt(task_file(tmp_path / "task", tiny_base, target), tmp_path / "out", rungs=RUNGS)
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    scores = {
        name: np.array([row["target"] == row["prediction"] for row in data["rows"]["test"][name]])
        for name in ("current", "from_scratch")
    }
    current_row = row_of(data, "current", "test")
    assert current_row["estimate"] == pytest.approx(scores["current"].mean())
    assert (current_row["usd_per_1k_calls"], current_row["p95_ms"], current_row["skin"]) == (0.9, None, None)
    assert "rows without a usable answer count as wrong" in current_row["reason"]
    assert data["nominees"]["nominees"] == ["from_scratch"]
    against, *languages = data["requirements"]["from_scratch"]
    assert against["value"] == pytest.approx((scores["from_scratch"] * 1.0 - scores["current"]).mean())
    assert [requirement["slice"] for requirement in languages] == ["language: de", "language: en"]
    assert data["target"]["value"] == pytest.approx(current_row["estimate"])
    assert report.verdict["status"] == "PASS", report.verdict["reason"]
    (confirmed,) = data["nominees"]["confirmations"]
    assert confirmed["lower"] - current_row["estimate"] == pytest.approx(against["lower"])
    assert data["target"]["value_given"] is False  # that bound is one of a difference, and no promise for other rows
    promise = promise_of(origin_of(tmp_path / "out" / "skins" / "from_scratch", None))
    assert promise is not None
    assert (promise.target, promise.by_verdict) == (None, False)
    assert promise.floor == pytest.approx(promise.interval[0])
    assert "better than current: +0." in report.verdict["reason"]
    sentence = f"target {current_row['estimate']:.4g}. "  # computed, so that it has digits without end
    assert sentence in report.verdict["reason"]
    page = adaptation_page(report.data)
    assert "the system in use" in summary(report.data) + page
    assert "(better than current)" in headline(report.data)


def test_the_price_and_the_answers_are_one_expected_cost(tmp_path: Path, tiny_base: Path) -> None:
    costs = {"negative": {"positive": 2.0}, "positive": {"negative": 0.5}}
    target = {"value": 0.4, "against": "current", "margin": 0.05, "confidence": 0.9}
    path = task_file(tmp_path / "task", tiny_base, target, metric={"costs": costs})
    report = adapt(path, tmp_path / "out", rungs=RUNGS)
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["target"]["lower_is_better"] is True

    def by_hand(name: str, split: str) -> float:
        rows = data["rows"][split][name]
        worst = {"negative": 2.0, "positive": 0.5}
        paid = [
            0.0 if r["target"] == r["prediction"] else costs[r["target"]].get(r["prediction"], worst[r["target"]])
            for r in rows
        ]
        return float(np.mean(paid)) + row_of(data, name, split)["usd_per_1k_calls"] / 1000

    for name, split in (("current", "test"), ("from_scratch", "test"), ("from_scratch", "valid"), ("majority", "test")):
        row = row_of(data, name, split)
        assert row["estimate"] == pytest.approx(by_hand(name, split))
        assert 0 <= row["interval"][0] <= row["estimate"] <= row["interval"][1]
    (confirmed,) = data["nominees"]["confirmations"]
    assert "value_given" not in data["target"]
    assert confirmed["lower"] < confirmed["estimate"] < confirmed["upper"] < 0.4
    (against,) = data["requirements"]["from_scratch"]
    assert against["value"] == pytest.approx(by_hand("from_scratch", "test") - by_hand("current", "test"))
    assert against["value"] < 0
    assert (against["direction"], against["holds"]) == ("at_most", True)
    assert report.verdict["status"] == "PASS", report.verdict["reason"]
    assert f"${confirmed['estimate']:.4f}" in headline(report.data)
    assert "is the cheapest nominee that clears the bar: usd_per_call" in report.verdict["reason"]
    assert f"${row_of(data, 'from_scratch', 'test')['estimate']:.4f}" in adaptation_page(report.data)
    assert all(part["estimate"] >= 0 for part in data["focus"]["slices"])


def test_a_column_without_usable_answers_stops_the_run_before_any_candidate(tmp_path: Path, tiny_base: Path) -> None:
    path = task_file(tmp_path / "task", tiny_base, {"against": "current", "better_by": 0})
    rows = tmp_path / "task" / "rows.jsonl"
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    for answer, message in (("POSITIVE", r"\(for example 'POSITIVE'\)"), ("", "column 'now' is empty in all")):
        rows.write_text("".join(json.dumps({**row, "now": answer}) + "\n" for row in records))
        with pytest.raises(DataError, match=message):
            adapt(path, tmp_path / "out", rungs=RUNGS)


def test_a_candidate_can_be_the_reference_of_the_target(tmp_path: Path, tiny_base: Path) -> None:
    target = {"against": "from_scratch", "margin": 0.05, "confidence": 0.9}
    path = task_file(tmp_path / "task", tiny_base, target)
    report = adapt(path, tmp_path / "out", rungs=[*RUNGS, "zero_shot"])
    beaten = report.row("from_scratch", "test")
    assert beaten is not None
    assert "from_scratch" not in report.data["nominees"]["nominees"]
    assert report.data["target"]["value"] == pytest.approx(beaten["estimate"] - 0.05)
    with pytest.raises(ConfigError, match="neither 'current' nor a rung that is climbed"):
        adapt(path, tmp_path / "other", rungs=["majority"])


def test_a_plain_report_has_no_optional_parts(tmp_path: Path, tiny_base: Path) -> None:
    """Without a current system, costs or weights their fields are absent."""
    report: Report = adapt(write_task(tmp_path / "task", tiny_base), tmp_path / "out", rungs=["majority"])
    assert set(report.data["target"]) == {"metric", "value", "confidence"}
    assert report.data["requirements"] == {}
    assert "weight" not in report.data["rows"]["valid"]["majority"][0]
