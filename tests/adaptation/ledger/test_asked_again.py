"""The ladder on test rows that were opened before, under another column's name, from another home."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tests.adaptation.conftest import write_task
from tests.homes import new_home

from bedplate.adaptation.ladder import adapt
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.ledger import ledger_for
from bedplate.evaluation.task import load_task


def test_a_renamed_column_and_full_stops_at_another_home_are_the_second_verdict(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BEDPLATE_DATA_LEDGER")
    path = write_task(tmp_path / "task", tiny_base, groups=60)
    task = load_task(path)
    data = load_examples(task)
    ledger_for(task).open("an earlier one", data.test.keys, task=task.task, reason="test")

    rows = tmp_path / "task" / "rows.jsonl"
    records = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    changed = [{**{k: v for k, v in row.items() if k != "text"}, "body": row["text"] + "."} for row in records]
    rows.write_text("".join(json.dumps(row) + "\n" for row in reversed(changed)), "utf-8")
    values = yaml.safe_load(path.read_text("utf-8"))
    path.write_text(yaml.safe_dump({**values, "inputs": {"comment": {"column": "body"}}}), "utf-8")

    monkeypatch.setenv("BEDPLATE_HOME", str(new_home(tmp_path / "elsewhere")))
    report = adapt(path, tmp_path / "out", rungs=["zero_shot"])
    assert report.data["ledger"]["number"] == 2
    assert report.verdict["exploratory"] is True
    assert report.verdict["reason"].startswith("EXPLORATORY: some of these test rows were used for 1 earlier verdict;")
    assert "known from the ledger beside the data alone" in report.data["ledger"]["notes"][0]
    assert "known from the ledger beside the data alone" in (tmp_path / "out" / "report.html").read_text("utf-8")
    assert not list((tmp_path / "out").rglob(".bedplate"))


def test_another_procedure_on_the_same_rows_is_the_next_verdict(tiny_base: Path, tmp_path: Path) -> None:
    path = write_task(tmp_path / "task", tiny_base, groups=160, target={"value": 0.05, "confidence": 0.9})

    def number(out: str, testing: str) -> int:
        if out != "a":  # what is fitted does not depend on the procedure
            shutil.copytree(tmp_path / "a", tmp_path / out)
        report = adapt(
            path, tmp_path / out, rungs=["from_scratch", "zero_shot"], overrides=[f"adapt.testing={testing}"]
        )
        assert len(report.data["nominees"]["nominees"]) == 2
        return report.data["ledger"]["number"]

    procedures = {"a": "holm", "b": "holm", "c": "best_first", "d": "cheapest_first"}
    assert [number(out, testing) for out, testing in procedures.items()] == [1, 1, 2, 3]
