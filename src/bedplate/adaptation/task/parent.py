"""A skin that new ones take over from: its weights are what training starts from, and its rows stay in their splits.

Whoever trains on from weights that have seen a row must not be judged by that row. So the run of a skin keeps which
rows and groups it had in which split, and its children have them there too; rows that it did not have are split as
always.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.core.errors import DataError, UsageError
from bedplate.core.files import atomic_write, read_text
from bedplate.data.splits import Assigned
from bedplate.evaluation.examples import SPLITS, TaskData
from bedplate.evaluation.task import Task
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_identified
from bedplate.skins.run import SPLITS_FILE, run_above
from bedplate.skins.skin import Skin


@dataclass(frozen=True, eq=False)
class Parent:
    """The skin, its id, and which rows and groups its run had in which split."""

    skin: Skin
    id: str
    assigned: Assigned


def read_parent(directory: Path | str, task: Task) -> Parent:
    """The skin in `directory` as the parent of skins of this task. SkinError, DataError; UsageError where it asks for
    or answers something else, or where nothing says which rows it has seen."""
    id_, skin = read_identified(directory)
    if set(skin.inputs) != set(task.inputs):
        theirs, ours = ", ".join(sorted(skin.inputs)), ", ".join(sorted(task.inputs))
        raise UsageError(f"{directory} cannot be the parent: its inputs are {theirs}, those of {task.path} are {ours}")
    if skin.output.kind != task.output.kind:
        raise UsageError(
            f"{directory} cannot be the parent: it gives a {skin.output.kind}, {task.path} asks for {task.output.kind}"
        )
    place = made_in(Path(directory), id_, skin)
    if place is None or not (place / SPLITS_FILE).is_file():
        raise UsageError(
            f"{directory} cannot be the parent: no {SPLITS_FILE} of the run that made it is above it, nor where the "
            "catalogue knows that run, so nobody can tell which rows it has seen; adapt without --parent"
        )
    return Parent(skin, id_, read_splits(place / SPLITS_FILE))


def made_in(directory: Path, id_: str, skin: Skin) -> Path | None:
    """The directory of the run that a skin was made in: above it, or where the catalogue knows that run."""
    found = run_above(directory, skin.provenance.splits)
    if found is not None:
        return found
    with Catalog.open() as catalog:
        above = [catalog.get(one) for one in catalog.parents(id_)]
        runs = [Path(one.path) for one in above if one is not None and one.what == "run" and one.path is not None]
    return next((place for place in runs if place.is_dir()), None)


def write_splits(directory: Path, data: TaskData) -> None:
    """Which rows and groups are in which split, by hash and name, into a run's directory."""
    known: dict[str, Mapping[str, list[str]]] = {
        name: {"rows": [one.row_hash for one in rows], "groups": sorted({one.group for one in rows})}
        for name, rows in (("train", data.train), ("valid", data.valid))
    }
    known["test"] = {"rows": list(data.test.row_hashes), "groups": list(data.test.group_names)}
    atomic_write(directory / SPLITS_FILE, json.dumps(known) + "\n")


def read_splits(path: Path) -> Assigned:
    """What `write_splits` wrote. DataError."""
    try:
        read: Any = json.loads(read_text(path))
        rows = {str(row): name for name in SPLITS for row in read[name]["rows"]}
        groups = {str(group): name for name in SPLITS for group in read[name]["groups"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); adapt without --parent") from error
    return Assigned(rows, groups)
