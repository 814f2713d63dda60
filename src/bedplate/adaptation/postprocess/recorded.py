"""What a skin and its run recorded of how it was made, against what is here now: data, splits, bases, parent, code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.context import Context
from bedplate.adaptation.context.environment import environment
from bedplate.adaptation.task.parent import Parent, read_parent
from bedplate.core.errors import UsageError
from bedplate.core.files import read_text
from bedplate.evaluation.examples import TaskData
from bedplate.evaluation.leaks.seen_rows import made_in
from bedplate.evaluation.task import Task
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_identified, skin_id
from bedplate.skins.run import REPORT_FILE, RUN_FILE, SETTINGS_FILE, Run
from bedplate.skins.skin import Skin


@dataclass(frozen=True)
class RecordedDifference:
    """Something that is not what it was. decides: the skin cannot be made from it again; what does not (the code, a
    library, how a base is held) may change numbers."""

    what: str
    was: str
    now: str
    decides: bool = True


@dataclass(frozen=True, eq=False)
class RecordedSkin:
    """A skin and how it was made. candidate: its name in its run (a rung, on which base); report: of that run, without
    its rows. settings: the task file as it was resolved, or one that was given in its place; anchor_file: the file that
    relative paths in it start from."""

    skin: Skin
    id: str
    candidate: str
    report: Mapping[str, Any]
    settings: Path
    anchor_file: Path
    run: Run | None

    @property
    def run_settings(self) -> Mapping[str, Any]:
        """seed, rungs, budget_seconds, exhaustive, environment."""
        return self.report["settings"]

    def plan(self, candidate: str) -> Mapping[str, Any] | None:
        """The settings that decided how much was done, where they were recorded."""
        return self.report["lineage"]["skins"].get(candidate, {}).get("plan")

    @property
    def estimate(self) -> float | None:
        """On valid, then."""
        rows = [row for row in self.report["rungs"] if row["rung"] == self.candidate and row["split"] == "valid"]
        return rows[0]["estimate"] if rows else None


def recorded_of(directory: Path, task_file: Path | None) -> RecordedSkin:
    """Read what the skin in `directory` and its run recorded. task_file: in the place of the run's own. SkinError;
    UsageError where that is not enough to make it again."""
    id_, skin = read_identified(directory)
    path = directory / REPORT_FILE
    if not path.is_file():
        raise UsageError(
            f"{directory} has no {REPORT_FILE}, which says how it was made: it is not a skin of `bedplate adapt`, or "
            "that run was not finished; give the same command again to finish it"
        )
    report: dict[str, Any] = json.loads(read_text(path))
    skin_records: dict[str, Any] = report["lineage"]["skins"]
    candidate = next((name for name, record in skin_records.items() if record["skin_id"] == id_), None)
    if candidate is None:
        raise UsageError(f"{path} is not about this skin, which was changed after it was judged")
    place = made_in(directory, id_, skin)
    run = None if place is None else Run.read(place)
    if task_file is not None:
        return RecordedSkin(skin, id_, candidate, report, task_file, task_file, run)
    if place is None or run is None or not (place / SETTINGS_FILE).is_file():
        raise UsageError(
            f"the run that made {directory} is not there any more: no {RUN_FILE} is above it, nor where the catalogue "
            "knows that run; give the task file with --task"
        )
    return RecordedSkin(skin, id_, candidate, report, place / SETTINGS_FILE, Path(run.task_file), run)


def parent_of(recorded: RecordedSkin, task: Task) -> Parent | RecordedDifference | None:
    """The skin that it took over from; what differs where that is not there any more."""
    cascade = recorded.skin.cascade
    part_ids = set[str]() if cascade is None else {skin_id(cascade.first), skin_id(cascade.second)}
    named = [parent_id for parent_id in recorded.skin.provenance.parents if parent_id not in part_ids]
    if not named:
        return None
    places = [] if recorded.run is None or recorded.run.parent is None else [Path(recorded.run.parent)]
    with Catalog.open() as catalog:
        catalog_record = catalog.get(named[0])
    places += [] if catalog_record is None or catalog_record.path is None else [Path(catalog_record.path)]
    for place in (path for path in places if path.is_dir()):
        parent = read_parent(place, task)
        if parent.id == named[0]:
            return parent
    return RecordedDifference("the parent", named[0], "not there")


def data_differences(skin: Skin, data: TaskData) -> list[RecordedDifference]:
    """A file may have changed where no row of a split did."""
    origin = skin.provenance
    return [
        RecordedDifference(_called(name, origin.splits), was, data.hashes.get(name, "not there"), name in origin.splits)
        for name, was in {**origin.data, **origin.splits}.items()
        if data.hashes.get(name) != was
    ]


def base_differences(report: Mapping[str, Any], contexts: Sequence[Context]) -> list[RecordedDifference]:
    """The task's bases as they were judged against those that are here now."""
    before = report["lineage"]["bases"]
    if len(before) != len(contexts):
        was, current_names = (
            (base_record["name"] for base_record in before),
            (base_context.at.base_name for base_context in contexts),
        )
        return [RecordedDifference("the task's bases", ", ".join(was), ", ".join(current_names))]
    changes: list[RecordedDifference] = []
    for was, context in zip(before, contexts, strict=True):
        facts = context.at.facts
        identity = {key: getattr(facts.identity, key) for key in ("weights_id", "tokenizer_id", "template_id")}
        engine_settings = {"dtype": facts.dtype, "weights": facts.weights, "kernel": facts.kernel}
        changes += _changed({key: was[key] for key in identity}, identity, f"the base {was['name']}: ", decides=True)
        changes += _changed(
            {key: was[key] for key in engine_settings}, engine_settings, f"the base {was['name']}, as held: "
        )
    return changes


def code_differences(recorded: RecordedSkin) -> list[RecordedDifference]:
    """Versions of the code, of libraries, and of the machine."""
    was: Mapping[str, str] = recorded.run_settings.get("environment") or {"bedplate": recorded.run_settings["version"]}
    versions = environment()
    return _changed(was, {key: versions.get(key, "not there") for key in was})


def _called(name: str, splits: Iterable[str]) -> str:
    return f"the {name} split" if name in splits else f"the data {name.removeprefix('file:')}"


def _changed(
    was: Mapping[str, str], current: Mapping[str, str], prefix: str = "", *, decides: bool = False
) -> list[RecordedDifference]:
    return [
        RecordedDifference(f"{prefix}{key}", was[key], current[key], decides) for key in was if was[key] != current[key]
    ]
