"""A new kind of output is one class and one row of OUTPUT_KINDS: task files, metrics, rungs, skins and reports take it
from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from tests.adaptation.conftest import write_task

from bedplate.adaptation.ladder import adapt
from bedplate.core.errors import ConfigError, RequestError
from bedplate.evaluation.metrics import METRICS, Metric
from bedplate.evaluation.task import load_task
from bedplate.skins.files import read_skin
from bedplate.skins.output import OUTPUT_KINDS, OutputForm


class StarsOutput(OutputForm):
    """One to five stars, written as a digit."""

    task_fields = frozenset({"max_tokens"})

    kind: Literal["stars"] = "stars"
    max_tokens: int = 4

    @property
    def token_limit(self) -> int:
        return self.max_tokens

    def for_prompt(self, texts: tuple[str, ...], max_tokens: int, stop: tuple[str, ...]) -> StarsOutput:
        return StarsOutput(max_tokens=max_tokens)

    def comparable(self, text: str) -> str:
        if text.strip() not in set("12345"):
            raise RequestError(f"{text!r} is not 1 to 5 stars")
        return text.strip()

    def grammar(self) -> tuple[Literal["json_schema", "ebnf", "choice"], str]:
        return "choice", json.dumps(list("12345"))


def closeness(target: str, prediction: str | None) -> float:
    return 0.0 if prediction is None else 1 - abs(int(prediction) - int(target)) / 4


@pytest.fixture
def stars_task(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(OUTPUT_KINDS, "stars", StarsOutput)
    monkeypatch.setitem(METRICS, "closeness", Metric("closeness", ("stars",), closeness, real=True))
    path = write_task(tmp_path / "task", tiny_base, groups=24)
    rows = [json.loads(line) for line in (path.parent / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        row["stars"] = "5" if row["label"] == "positive" else "1"
    (path.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task: dict[str, Any] = yaml.safe_load(path.read_text())
    task |= {"output": {"kind": "stars", "max_tokens": 3}, "metric": "closeness"}
    task["data"]["target"] = "stars"
    path.write_text(yaml.safe_dump(task))
    return path


def test_a_new_output_is_one_row(stars_task: Path, tmp_path: Path) -> None:
    report = adapt(stars_task, tmp_path / "out", rungs=["majority", "zero_shot"])
    row = report.row("zero_shot")
    assert row is not None
    assert row["status"] == "done"
    assert isinstance(read_skin(tmp_path / "out/skins/zero_shot").output, StarsOutput)


def test_its_fields_are_checked_as_those_of_any_other(stars_task: Path) -> None:
    for key, value, message in (
        ("stop", ["x"], "`stop` belongs to outputs of kind text, not stars"),
        ("labels", ["1", "2"], "`labels` belongs to outputs of kind label or labels, not stars"),
    ):
        task = yaml.safe_load(stars_task.read_text())
        task["output"][key] = value
        other = stars_task.with_name("other.yaml")
        other.write_text(yaml.safe_dump(task))
        with pytest.raises(ConfigError, match=message):
            load_task(other)
    task = yaml.safe_load(stars_task.read_text())
    stars_task.write_text(yaml.safe_dump(task | {"metric": "accuracy"}))
    with pytest.raises(ConfigError, match="'accuracy' does not fit an output of kind stars; closeness would"):
        load_task(stars_task)
