"""A new kind of input is one class and one row of INPUTS: task files, rows, skins and prompts take it from there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bedplate.core.values import Media, Value
from bedplate.data.rows import INPUTS, Row, text_of
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.task import load_task
from bedplate.skins.prompt import Prompt
from bedplate.skins.skin import InputField


class Drawing:
    """A toy: a file that is named in the cell, and stands in a prompt as a mark."""

    def read(self, row: Row, column: str, location: str) -> Value:
        name = text_of(row, column, location)
        return Media("drawing", name.encode().hex(), "text/x-drawing", name)

    def text_in_prompt(self, value: Value) -> str:
        assert isinstance(value, Media)
        return f"<drawing {value.source}>"


def test_a_toy_row_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INPUTS, "drawing", Drawing())
    rows = [{"picture": f"p{i}.txt", "label": "ab"[i % 2], "group": f"g{i}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "toy",
        "inputs": {"picture": {"column": "picture", "kind": "drawing"}},
        "output": {"kind": "label", "labels": ["a", "b"]},
        "instructions": "Say which.",
        "data": {
            "source": "rows.jsonl",
            "target": "label",
            "group_by": "group",
            "split": {"train": 0.6, "valid": 0.2, "test": 0.2},
        },
        "metric": "accuracy",
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    data = load_examples(load_task(tmp_path / "task.yaml"))
    example = data.train[0]
    assert isinstance(example.inputs["picture"], Media)
    assert InputField(kind="drawing").kind == "drawing"
    source = example.inputs["picture"].source
    assert Prompt("Look at {{ picture }}:").text(example.inputs) == f"Look at <drawing {source}>:"


def test_a_kind_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="input kind 'image' is not supported yet; supported: text"):
        InputField(kind="image")
