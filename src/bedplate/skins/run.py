"""`run.json`: how a run of `adapt` was asked for and what it ran with, so that a skin made in it can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from bedplate.adapters.tensor_files import read_json_object
from bedplate.core.config import Strict
from bedplate.core.files import atomic_write
from bedplate.skins.manifest import validate
from bedplate.skins.skin import Digest

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
        """Into the run's directory."""
        atomic_write(directory / RUN_FILE, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Run:
        """SkinError for a file that is not one."""
        path = directory / RUN_FILE
        return validate(cls, read_json_object(path), path)


def run_above(directory: Path, splits: Mapping[str, str]) -> Path | None:
    """The directory of the run that a skin was made in: the nearest one above it, if that judged by the same rows."""
    place = next((parent for parent in directory.absolute().parents if (parent / RUN_FILE).is_file()), None)
    judged_by = {name: splits[name] for name in ("valid", "test") if name in splits}
    return None if place is None or not judged_by.items() <= Run.read(place).data.items() else place
