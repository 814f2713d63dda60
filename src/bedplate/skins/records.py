"""What the catalogue keeps of what lies in directories: skins with their data and run, runs, bases, reports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bedplate.adapters.tensor_files import read_json_object
from bedplate.core.config import Strict
from bedplate.core.errors import DataError
from bedplate.core.files import atomic_write, sha256_file
from bedplate.models.checkpoints.base import BASE_FILE
from bedplate.models.checkpoints.identity import Identity
from bedplate.skins.files import read_skin, skin_id
from bedplate.skins.manifest import SKIN_FILE, validate
from bedplate.skins.skin import BaseReference, Digest, EndpointReference, Skin

RUN_FILE, SETTINGS_FILE, REPORT_FILE, SPLITS_FILE = "run.json", "task.yaml", "report.json", "splits.json"
SPLIT_NAMES = ("train", "valid", "test")


class Run(Strict):
    """What `adapt` was called with. task_file: where that lay, as what a task names is relative to it; `task.yaml` in
    the run's directory is the same with its overrides. budget_seconds: None for no limit. parent: directory and id of
    the skin that the new ones took over from. data: hashes of files and splits. environment: versions of what
    computes."""

    id: Digest
    task: str
    task_file: str
    seed: int
    rungs: tuple[str, ...]
    budget_seconds: float | None
    exhaustive: bool
    parent: str | None = None
    parent_id: Digest | None = None
    bases: tuple[str, ...] = ()
    """Weights' ids."""
    data: dict[str, str] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=dict)

    def write(self, directory: Path) -> None:
        atomic_write(directory / RUN_FILE, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Run:
        path = directory / RUN_FILE
        return validate(cls, read_json_object(path), path)


def run_above(directory: Path, splits: Mapping[str, str]) -> Path | None:
    """The directory of the run that a skin was made in: the nearest one above it, if that judged by the same rows."""
    place = next((parent for parent in directory.absolute().parents if (parent / RUN_FILE).is_file()), None)
    judged_by = {name: splits[name] for name in ("valid", "test") if name in splits}
    return None if place is None or not judged_by.items() <= Run.read(place).data.items() else place


ArtifactType = Literal["base", "skin", "run", "report", "data"]
_BASE_DETAILS = ("family", "tokenizer_id", "template_id", "equivalent_of")


@dataclass(frozen=True)
class CatalogRecord:
    """One thing, and the ids of what it was made from."""

    artifact_type: ArtifactType
    id: str
    name: str
    path: Path | str | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parents: tuple[str, ...] = ()
    hearsay: bool = False
    """What something else says of it: not recorded over what is known of it already."""


def files_of(directory: Path) -> list[Path]:
    """The files of a directory that say what it holds."""
    names = (SKIN_FILE, BASE_FILE) if (directory / SKIN_FILE).is_file() else (BASE_FILE, RUN_FILE, REPORT_FILE)
    return [directory / name for name in names if (directory / name).is_file()]


def of_file(path: Path) -> list[CatalogRecord]:
    """What such a file is about, last, after what it was made from. BedplateError, OSError, ValueError."""
    if path.name == SKIN_FILE:
        return of_skin(read_skin(path.parent), path.parent)
    if path.name == RUN_FILE:
        return of_run(path.parent)
    fields = read_json_object(path)
    return [of_base(path, fields) if path.name == BASE_FILE else of_report(path, fields)]


def of_skin(skin: Skin, path: Path | str | None) -> list[CatalogRecord]:
    """A skin, last, after its bases, data and run. Its parents are the bases, data, skins and report that it names, and
    the run above its directory."""
    origin = skin.provenance
    data = list(_data({**origin.data, **origin.splits}, origin.task))
    place = None if path is None else run_above(Path(path), origin.splits)
    run = [] if place is None else of_run(place)
    bases = [_referred(base) for base in skin.bases.values() if isinstance(base, BaseReference)]
    parents = [record.id for record in (*bases, *data, *run[-1:])]
    parents += [*origin.parents, *([] if origin.report is None else [origin.report])]
    main = skin.bases.get("main")
    details: dict[str, Any] = {"kind": skin.kind, "base": main and main.name}
    details |= origin.model_dump(include={"task", "rung", "seed", "code_version"})
    details["evaluated_with"] = skin.evaluated_with and skin.evaluated_with.model_dump()
    remote = [used.name for used in skin.bases.values() if isinstance(used, EndpointReference)]
    details |= {"endpoints": remote} if remote else {}
    return [*bases, *data, *run, CatalogRecord("skin", skin_id(skin), skin.name, path, details, tuple(parents))]


def of_run(directory: Path) -> list[CatalogRecord]:
    """A run, last, after the data that it read."""
    run = Run.read(directory)
    data = list(_data(run.data, run.task))
    parents = (*run.bases, *(record.id for record in data), *([] if run.parent_id is None else [run.parent_id]))
    fields = run.model_dump(mode="json", exclude={"id", "bases", "data"})
    details = {name: value for name, value in fields.items() if value is not None}
    return [*data, CatalogRecord("run", run.id, f"adapt {run.task}", directory, details, parents)]


def of_identity(name: str, identity: Identity, path: Path, family: str, parents: tuple[str, ...] = ()) -> CatalogRecord:
    details = {"family": family, **{key: getattr(identity, key) for key in _BASE_DETAILS[1:]}}
    return CatalogRecord("base", identity.weights_id, name, path, details, parents)


def of_base(path: Path, fields: Mapping[str, Any]) -> CatalogRecord:
    weights_id = fields.get("weights_id")
    if not isinstance(weights_id, str):
        raise DataError("it has no weights_id")
    details = {key: fields.get(key) for key in _BASE_DETAILS}
    lineage = fields.get("lineage")
    parents: list[Any] = []
    if isinstance(lineage, dict):
        several, single_parent = lineage.get("parents"), lineage.get("parent")
        listed, single = several if isinstance(several, list) else (), single_parent
        parents = [*listed, single if single != weights_id else None]
    named = tuple(parent for parent in parents if isinstance(parent, str))
    return CatalogRecord("base", weights_id, path.parent.name, path.parent, details, named)


def of_report(path: Path, fields: Mapping[str, Any]) -> CatalogRecord:
    """A report, whose parents are the bases and skins that it is about. opened: the verdict that its test rows were
    opened for, by its id in the ledger; None where they were not."""
    details = {key: fields.get(key) for key in ("task", "verdict")}
    ledger, task = fields.get("ledger"), fields.get("task")
    opened = ledger.get("verdict_id") if isinstance(ledger, Mapping) else None
    details["opened"] = opened if isinstance(opened, str) else None
    name = task if isinstance(task, str) else path.parent.name
    return CatalogRecord("report", sha256_file(path), name, path, details, _judged(fields.get("lineage")))


def _referred(base: BaseReference) -> CatalogRecord:
    place = Path(base.name) if Path(base.name).is_absolute() else None
    details = {key: getattr(base, key) for key in _BASE_DETAILS}
    return CatalogRecord("base", base.weights_id, Path(base.name).name, place, details, hearsay=True)


def _data(hashes: Mapping[str, str], task: str | None) -> Iterator[CatalogRecord]:
    """Files (`file:…`) and splits."""
    for key, digest in hashes.items():
        if key in SPLIT_NAMES:
            yield CatalogRecord("data", digest, f"{key} of {task}", None, {"kind": "split", "task": task})
        else:
            yield CatalogRecord("data", digest, key.removeprefix("file:"), None, {"kind": "file"})


def _judged(lineage: Any) -> tuple[str, ...]:
    if not isinstance(lineage, dict):
        return ()
    bases: Any = lineage.get("bases")
    skins: Any = lineage.get("skins")
    named: list[tuple[Any, str]] = [(base, "weights_id") for base in (bases if isinstance(bases, list) else ())]
    named += [(skin, "skin_id") for skin in (skins.values() if isinstance(skins, dict) else ())]
    ids = [reference.get(key) for reference, key in named if isinstance(reference, dict)]
    return tuple(id_ for id_ in ids if isinstance(id_, str))
