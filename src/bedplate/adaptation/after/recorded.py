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
from bedplate.evaluation.leaks.seen import made_in
from bedplate.evaluation.task import Task
from bedplate.skins.catalog import Catalog
from bedplate.skins.files import read_identified, skin_id
from bedplate.skins.run import REPORT_FILE, RUN_FILE, SETTINGS_FILE, Run
from bedplate.skins.skin import Skin


@dataclass(frozen=True)
class Change:
    """Something that is not what it was. decides: the skin cannot be made from it again; what does not (the code, a
    library, how a base is held) may change numbers."""

    what: str
    was: str
    now: str
    decides: bool = True


@dataclass(frozen=True, eq=False)
class Recorded:
    """A skin and how it was made. candidate: its name in its run (a rung, on which base); report: of that run, without
    its rows. settings: the task file as it was resolved, or one that was given in its place; beside: the file that
    relative paths in it start from."""

    skin: Skin
    id: str
    candidate: str
    report: Mapping[str, Any]
    settings: Path
    beside: Path
    run: Run | None

    @property
    def asked(self) -> Mapping[str, Any]:
        """seed, rungs, budget_seconds, exhaustive, environment."""
        return self.report["settings"]

    def plan(self, candidate: str) -> Mapping[str, Any] | None:
        """The settings that decided how much was done, where they were recorded."""
        return self.report["lineage"]["skins"].get(candidate, {}).get("plan")

    @property
    def estimate(self) -> float | None:
        """On valid, then."""
        rows = [one for one in self.report["rungs"] if one["rung"] == self.candidate and one["split"] == "valid"]
        return rows[0]["estimate"] if rows else None


def recorded_of(directory: Path, task_file: Path | None) -> Recorded:
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
    made: dict[str, Any] = report["lineage"]["skins"]
    candidate = next((name for name, one in made.items() if one["skin_id"] == id_), None)
    if candidate is None:
        raise UsageError(f"{path} is not about this skin, which was changed after it was judged")
    place = made_in(directory, id_, skin)
    run = None if place is None else Run.read(place)
    if task_file is not None:
        return Recorded(skin, id_, candidate, report, task_file, task_file, run)
    if place is None or run is None or not (place / SETTINGS_FILE).is_file():
        raise UsageError(
            f"the run that made {directory} is not there any more: no {RUN_FILE} is above it, nor where the catalogue "
            "knows that run; give the task file with --task"
        )
    return Recorded(skin, id_, candidate, report, place / SETTINGS_FILE, Path(run.task_file), run)


def parent_of(recorded: Recorded, task: Task) -> Parent | Change | None:
    """The skin that it took over from; what differs where that is not there any more."""
    within = recorded.skin.cascade
    own = set[str]() if within is None else {skin_id(within.first), skin_id(within.second)}
    named = [one for one in recorded.skin.provenance.parents if one not in own]
    if not named:
        return None
    places = [] if recorded.run is None or recorded.run.parent is None else [Path(recorded.run.parent)]
    with Catalog.open() as catalog:
        entry = catalog.get(named[0])
    places += [] if entry is None or entry.path is None else [Path(entry.path)]
    for place in (one for one in places if one.is_dir()):
        found = read_parent(place, task)
        if found.id == named[0]:
            return found
    return Change("the parent", named[0], "not there")


def data_differences(skin: Skin, data: TaskData) -> list[Change]:
    """A file may have changed where no row of a split did."""
    origin = skin.provenance
    return [
        Change(_called(name, origin.splits), was, data.hashes.get(name, "not there"), name in origin.splits)
        for name, was in {**origin.data, **origin.splits}.items()
        if data.hashes.get(name) != was
    ]


def base_differences(report: Mapping[str, Any], contexts: Sequence[Context]) -> list[Change]:
    """The task's bases as they were judged against those that are here now."""
    before = report["lineage"]["bases"]
    if len(before) != len(contexts):
        was, now = (one["name"] for one in before), (one.at.given for one in contexts)
        return [Change("the task's bases", ", ".join(was), ", ".join(now))]
    found: list[Change] = []
    for was, context in zip(before, contexts, strict=True):
        facts = context.at.facts
        identity = {key: getattr(facts.identity, key) for key in ("weights_id", "tokenizer_id", "template_id")}
        held = {"dtype": facts.dtype, "weights": facts.weights, "kernel": facts.kernel}
        found += _changed({key: was[key] for key in identity}, identity, f"the base {was['name']}: ", decides=True)
        found += _changed({key: was[key] for key in held}, held, f"the base {was['name']}, as held: ")
    return found


def code_differences(recorded: Recorded) -> list[Change]:
    """Versions of the code, of libraries, and of the machine."""
    was: Mapping[str, str] = recorded.asked.get("environment") or {"bedplate": recorded.asked["version"]}
    now = environment()
    return _changed(was, {key: now.get(key, "not there") for key in was})


def _called(name: str, splits: Iterable[str]) -> str:
    return f"the {name} split" if name in splits else f"the data {name.removeprefix('file:')}"


def _changed(
    was: Mapping[str, str], now: Mapping[str, str], prefix: str = "", *, decides: bool = False
) -> list[Change]:
    return [Change(f"{prefix}{key}", was[key], now[key], decides) for key in was if was[key] != now[key]]
