"""Rows without labels: split and drawn whatever their labels are, so that the first of them are a fair sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bedplate.core.errors import DataError, UsageError
from bedplate.evaluation.examples import load_examples
from bedplate.evaluation.pool import LabelPool, load_pool
from bedplate.evaluation.task import Task


def pool_task(
    directory: Path, rows: list[dict[str, object]], *, group_by: str | None = None, seed: int = 0, **data: object
) -> Task:
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Task.model_validate(
        {
            "task": "t",
            "inputs": {"x": {"column": "text"}},
            "output": {"kind": "label", "labels": ["a", "b"]},
            "data": {
                "source": str(path),
                "target": "y",
                "group_by": group_by,
                "split": {"train": 0.5, "valid": 0.25, "test": 0.25},
                "seed": seed,
                **data,
            },
            "metric": "accuracy",
        }
    )


def texts(count: int, **fields: object) -> list[dict[str, object]]:
    return [{"id": str(i), "text": f"row number {i}", "g": str(i // 3), "y": None, **fields} for i in range(count)]


def order(pool: LabelPool) -> dict[str, list[str]]:
    return {name: [example.id for example in part] for name, part in pool.parts.items()}


def test_labels_decide_neither_on_splits_nor_on_the_order(tmp_path: Path) -> None:
    rows = texts(90)
    empty = load_pool(pool_task(tmp_path, rows, group_by="g"))
    for i, row in enumerate(rows):
        row["y"] = "ab"[i % 2] if i % 5 else ""
    partial = load_pool(pool_task(tmp_path, rows, group_by="g"))
    assert order(empty) == order(partial)
    assert empty.hash == partial.hash
    groups = [{example.group for example in part} for part in empty.parts.values()]
    assert not groups[0] & groups[1]
    assert not groups[1] & groups[2]
    assert order(load_pool(pool_task(tmp_path, rows, group_by="g", seed=1))) != order(empty)


def test_what_is_drawn_ends_at_the_first_row_without_a_label(tmp_path: Path) -> None:
    pool = load_pool(pool_task(tmp_path, texts(60)))
    part = pool.parts["test"]
    assert pool.drawn("test") == ()
    labels = {part[i].row_hash: "a" for i in (0, 1, 3)}
    assert [example.id for example in pool.labelled(labels).drawn("test")] == [part[0].id, part[1].id]
    skipped = pool.labelled(labels, {part[2].row_hash})
    assert [example.id for example in skipped.drawn("test")] == [part[i].id for i in (0, 1, 3)]
    whole = {example.row_hash: "ab"[i % 2] for name in pool.parts for i, example in enumerate(pool.parts[name])}
    data = pool.labelled(whole).data()
    assert (len(data.train), len(data.valid), data.test.n) == tuple(len(pool.parts[name]) for name in pool.parts)
    assert data.counts["unlabelled"] == 0


def test_copies_share_a_label_and_drop_out_where_they_disagree(tmp_path: Path) -> None:
    rows = texts(40)
    rows += [{**rows[0], "id": "copy", "y": "a"}, {**rows[1], "id": "b1", "y": "a"}, {**rows[1], "id": "b2", "y": "b"}]
    pool = load_pool(pool_task(tmp_path, rows))
    targets = {example.inputs["x"]: example.target for part in pool.parts.values() for example in part}
    assert targets["row number 0"] == "a"
    assert "row number 1" not in targets
    assert pool.counts["contradictory"] == 3


def test_a_mean_over_the_rows_drawn_so_far_is_unbiased(tmp_path: Path) -> None:
    """Also where some rows came with a label, by whatever choice."""
    rows = texts(120)
    truth = {str(i): float(i < 40) for i in range(120)}  # what a skin has right
    for i in range(20):
        rows[i]["y"] = "a"  # the first rows of the file, all of which it has right
    errors: list[float] = []
    for seed in range(60):
        pool = load_pool(pool_task(tmp_path, rows, seed=seed))
        part = pool.parts["test"]
        labelled = pool.labelled({example.row_hash: example.target or "b" for example in part[:12]})
        drawn = labelled.drawn("test")
        assert len(drawn) >= 12
        errors.append(float(np.mean([truth[example.id] for example in part[:12]])) - 40 / 120)
    assert abs(np.mean(errors)) < 3 * stats.sem(errors)
    assert stats.sem(errors) < 0.03


def test_what_cannot_be_drawn_from_is_refused(tmp_path: Path) -> None:
    files = {"train": "a.csv", "valid": "b.csv", "test": "c.csv"}
    with pytest.raises(UsageError, match="cuts by fractions"):
        load_pool(pool_task(tmp_path, texts(9), source=None, split=files))
    with pytest.raises(DataError, match="one of the task's labels"):
        load_pool(pool_task(tmp_path, [*texts(9), {"id": "z", "text": "q", "y": "c"}]))
    with pytest.raises(DataError, match=r"the train split (has 0 rows|is empty)"):
        load_pool(pool_task(tmp_path, texts(30))).data()


def test_rows_count_as_often_as_their_text_stands_there(tmp_path: Path) -> None:
    rows = texts(60)
    for i, row in enumerate(rows):
        row["y"] = "ab"[i % 2]
    rows += [{**row, "id": f"{row['id']}-again"} for row in rows[:30]]
    task = pool_task(tmp_path, rows, traffic={"duplicates": True})
    drawn, usual = load_pool(task).data(), load_examples(task)
    for data in (drawn, usual):
        examples = [*data.train, *data.valid, *data.test.open("their weights")]
        duplicated = {example.id.removesuffix("-again") for example in examples if example.weight > 1}
        assert duplicated <= {row["id"] for row in rows[:30]}
        assert len(duplicated) == 30
