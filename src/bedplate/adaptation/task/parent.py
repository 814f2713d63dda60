"""A skin that new ones take over from: its weights are what training starts from, and its rows stay in their splits.

Whoever trains on from weights that have seen a row must not be judged by that row. So the run of a skin keeps which
rows and groups it had in which split, and its children have them there too; rows that it did not have are split as
always.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bedplate.core.errors import UsageError
from bedplate.data.splits import Assigned
from bedplate.evaluation.leaks.seen_rows import made_in, read_splits
from bedplate.evaluation.task import Task
from bedplate.skins.files import read_identified
from bedplate.skins.records import SPLITS_FILE
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
    return Parent(skin, id_, read_splits(place, task))
