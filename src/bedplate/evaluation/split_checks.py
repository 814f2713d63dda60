"""Whether three splits can be worked with: none empty, and train has every label."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from bedplate.core.errors import DataError
from bedplate.data.splits import SplitRecord
from bedplate.evaluation.task import OutputSpec, Task

SPLITS = ("train", "valid", "test")


def check_splits(task: Task, parts: Mapping[str, Sequence[SplitRecord]]) -> list[str]:
    """Sentences about labels that valid or test lack. DataError where a split is empty or too small, or train lacks a
    label."""
    notes: list[str] = []
    total = sum(len(part) for part in parts.values())
    groups = len({record.group for part in parts.values() for record in part})
    for name in SPLITS:
        part = parts[name]
        if not part:
            raise DataError(
                f"the {name} split is empty: {total} usable rows in {groups} groups do not fill three splits; "
                "add rows (or groups), or change the fractions"
            )
        if len(part) < len(task.labels):
            raise DataError(f"the {name} split has {len(part)} rows for {len(task.labels)} labels; add labelled rows")
    for name in SPLITS:
        present = {record.target for record in parts[name]}
        absent = [label for label in task.labels if label not in present]
        if absent and name == "train":
            raise DataError(
                f"no row of the train split has the label {absent[0]!r}; add such rows or take it off the list"
            )
        if absent:
            notes.append(f"the {name} split has no row with the label {', '.join(map(repr, absent))}")
    if task.output.kind == "labels":
        notes += _check_several(task.output, parts)
    return notes


def _check_several(output: OutputSpec, parts: Mapping[str, Sequence[SplitRecord]]) -> list[str]:
    """A label of several may be rare, so a split without it is a note; one that no row has is an error."""
    present = {name: {label for r in parts[name] for label in json.loads(r.target)} for name in SPLITS}
    everywhere = set[str]().union(*present.values())
    nowhere = next((label for label in output.labels or () if label not in everywhere), None)
    if nowhere is not None:
        raise DataError(f"no row has the label {nowhere!r}; add such rows or take it off the list")
    notes: list[str] = []
    for name in SPLITS:
        absent = [label for label in output.labels or () if label not in present[name]]
        if absent:
            notes.append(f"the {name} split has no row with the label {', '.join(map(repr, absent))}")
    return notes
