"""Finds the rows of a task that a skin's run had in train, valid or test, so that they do not count as unseen.

A row that a skin was trained on, or chosen by, is answered better than one that it has not seen, and so is a row of the
same group. The run of a skin keeps its splits; a task whose rows are split by another seed mixes them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core.config import load_config
from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_write, read_text
from bedplate.data.splits import Assigned, SplitRecord
from bedplate.evaluation.examples import SPLITS, Example, TaskData
from bedplate.evaluation.ledger.row_keys import keys_of
from bedplate.evaluation.task import Task
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import skin_id
from bedplate.skins.records import SETTINGS_FILE, SPLITS_FILE, run_above
from bedplate.skins.skin import Skin

BEFORE: Mapping[str, tuple[str, ...]] = {"train": (), "valid": ("train",), "test": ("train", "valid")}
"""A split that is judged by → those of the skin's run whose rows it may not hold."""


@dataclass(frozen=True)
class EvaluatedRows:
    """The rows that a skin is judged by. split_counts: of all rows of the split, how many the skin's run had in each of
    its splits; None where nothing says so. left_out: rows that it was trained on or chosen by, which are not among
    `examples`."""

    examples: tuple[Example, ...]
    split_counts: Mapping[str, int] | None
    left_out: int


def judged_by(
    model: object, task: Task, split: str, examples: Sequence[Example], *, include_seen: bool = False
) -> EvaluatedRows:
    """The rows of a task's split that the skin of a predictor has not seen (of anything else all, and with
    `include_seen`). UsageError where it has seen them all."""
    from bedplate.inference.predict.callable_skin import SkinPredictor

    row_splits = None
    if isinstance(model, SkinPredictor) and model.skin.directory is not None:
        row_splits = splits_of(examples, model.skin.directory, model.skin, task)
    if row_splits is None:
        return EvaluatedRows(tuple(examples), None, 0)
    counts = Counter(name for name in row_splits if name is not None)
    split_counts = {name: counts[name] for name in SPLITS}
    usable = tuple(e for e, name in zip(examples, row_splits, strict=True) if include_seen or name not in BEFORE[split])
    if not usable:
        raise UsageError(
            f"the skin has seen all {len(examples):,} rows of {split}: its run had "
            f"{describe_counts(split_counts)}; give rows that it has not seen, or ask with "
            "--include-seen (include_seen=True)"
        )
    return EvaluatedRows(usable, split_counts, len(examples) - len(usable))


def describe_counts(split_counts: Mapping[str, int]) -> str:
    """Counts of rows by the split that they were in, in words."""
    return ", ".join(f"{count:,} of them in {name}" for name, count in split_counts.items() if count) or "none of them"


def splits_of(examples: Sequence[Example], directory: Path, skin: Skin, task: Task) -> list[str | None] | None:
    """The split that each row, or its group, had in the run that made a skin. A row is known by its texts as the
    ledger knows it. None where the run is not found, or kept no splits. DataError for a damaged file."""
    place = made_in(directory, skin_id(skin), skin)
    if place is None or not (place / SPLITS_FILE).is_file():
        return None
    assigned, texts = read_splits(place, task), read_texts(place / SPLITS_FILE)
    keys = keys_of((e.id, e.inputs) for e in examples).exact if texts else [frozenset[str]()] * len(examples)
    row_splits: list[str | None] = []
    for example, mine in zip(examples, keys, strict=True):
        record = SplitRecord(example.id, example.row_hash, example.target, example.group, links=example.links)
        split_names = assigned.splits_of(record)
        if record.row_hash not in assigned.rows:
            split_names |= {texts[key] for key in mine if key in texts}
        # what was learned from comes first
        row_splits.append(next((name for name in SPLITS if name in split_names), None))
    return row_splits


def made_in(directory: Path, id_: str, skin: Skin) -> Path | None:
    """The directory of the run that a skin was made in: above it, or where the catalogue knows that run."""
    run_directory = run_above(directory, skin.provenance.splits)
    if run_directory is not None:
        return run_directory
    with Catalog.open() as catalog:
        parents = [parent for parent_id in catalog.parents(id_) if (parent := catalog.get(parent_id)) is not None]
    runs = (Path(parent.path) for parent in parents if parent.artifact_type == "run" and parent.path is not None)
    return next((place for place in runs if place.is_dir()), None)


def write_splits(directory: Path, data: TaskData) -> None:
    """Which rows and groups are in which split: rows by hash and by the keys of their texts, groups by name and by
    links."""
    parts_by_split: dict[str, dict[str, list[str]]] = {
        name: {
            "rows": [example.row_hash for example in rows],
            "groups": sorted({example.group for example in rows}),
            "links": sorted({link for example in rows for link in example.links}),
        }
        for name, rows in (("train", data.train), ("valid", data.valid))
    }
    rows, groups, links = data.test.row_hashes, data.test.group_names, data.test.links
    parts_by_split["test"] = {"rows": list(rows), "groups": list(groups), "links": list(links)}
    for name, part in parts_by_split.items():
        part["texts"] = data.keys(name).all_exact
    atomic_write(directory / SPLITS_FILE, json.dumps(parts_by_split) + "\n")


def read_splits(run: Path, task: Task) -> Assigned:
    """What `write_splits` wrote into a run's directory, for the rows of a task. Names of groups count only where the
    task has the run's group columns: user 17 is not product 17. Links say their column. DataError."""
    path = run / SPLITS_FILE
    run_task = load_config(run / SETTINGS_FILE, Task)  # no load_task: its metric may be a function that is not here
    group_fields = ["links"]
    if set(run_task.data.group_columns) == set(task.data.group_columns):
        group_fields.append("groups")
    try:
        read: Any = json.loads(read_text(path))
        rows = {str(row): name for name in SPLITS for row in read[name]["rows"]}
        named = [(name, read[name].get(names, ())) for name in SPLITS for names in group_fields]
        groups = {str(group): name for name, part in named for group in part}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); restore it, or take it away") from error
    return Assigned(rows, groups)


def read_texts(path: Path) -> dict[str, str]:
    """The split of each key of a row's texts in a file that `read_splits` has read; none in files from before there
    were any."""
    read: Any = json.loads(read_text(path))
    return {str(key): name for name in reversed(SPLITS) for key in read[name].get("texts", ())}
