"""Rows with a word that gives their label away, of which the labels are asked for; and who fills them in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.adaptation.conftest import write_rows, write_task

Fill = Callable[[Path], int]


@pytest.fixture
def unlabelled(tmp_path: Path, tiny_base: Path) -> tuple[Path, Fill]:
    """A task file whose rows have no labels, and an annotator who writes them into a file; how many it says."""
    directory = tmp_path / "task"
    directory.mkdir()
    rows = write_rows(directory / "whole.jsonl", groups=320, rows_per_group=1, noise=0.03)
    labeled_rows = [json.loads(line) for line in rows.read_text().splitlines()]
    truth = {row["id"]: row["label"] for row in labeled_rows}
    open_rows = directory / "rows.jsonl"
    open_rows.write_text("".join(json.dumps({**row, "label": None}) + "\n" for row in labeled_rows))
    task = write_task(directory, tiny_base, rows=open_rows)

    def fill(path: Path) -> int:
        with path.open(newline="") as file:
            table = list(csv.DictReader(file))
        for row in table:
            row["label"] = truth[row["id"]]
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        return len(table)

    return task, fill
