"""A task file with its `adapt` section, whose rungs are looked up in the table of all there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import field_validator

from bedplate.adaptation.rungs import RUNGS
from bedplate.adaptation.task.raw_text import RawText
from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.adaptation.task.target_spec import check_target
from bedplate.core.config import load_config
from bedplate.core.errors import ConfigError, UsageError
from bedplate.evaluation.task import Task


class _AdaptSpec(AdaptSpec):
    @field_validator("rungs")
    @classmethod
    def _rungs(cls, rungs: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(rungs, str):
            check_rungs(rungs)
        return rungs


class _AdaptTask(Task):
    """A task file whose `adapt` section is read as well, so that mistakes in it are named with their line."""

    adapt: _AdaptSpec  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]


def check_rungs(rungs: Sequence[str]) -> None:
    """Raise ValueError for an empty list, or a rung that is unknown or named twice."""
    if not rungs:
        raise ValueError("name at least one rung, or write auto")
    for name in rungs:
        if name not in RUNGS:
            raise ValueError(f"there is no rung {name!r}; there are {', '.join(RUNGS)}")
    if len(set(rungs)) < len(rungs):
        raise ValueError("a rung is named twice")


def load_adapt_task(
    path: Path | str,
    overrides: Sequence[str] = (),
    rungs: Sequence[str] | None = None,
    *,
    anchor_file: Path | None = None,
) -> tuple[Task, AdaptSpec]:
    """A task file and its `adapt` section; `rungs` replaces the file's own. anchor_file: the file whose directory
    relative paths start from, where it is not this one. Raises ConfigError, UsageError."""
    task = load_config(path, Task, overrides)
    if task.adapt is None:
        raise ConfigError(
            f"{path}: there is no `adapt` section; it says which base, target, budget and machine "
            "(`bedplate adapt --help` shows one)"
        )
    spec = load_config(path, _AdaptTask, overrides).adapt
    task._path = Path(path) if anchor_file is None else anchor_file  # pyright: ignore[reportPrivateUsage]
    if spec.prompt is not None:
        spec = spec.model_copy(update={"prompt": spec.prompt.resolved(task)})
    rung_names = [name for name in RUNGS if (name in rungs if rungs is not None else spec.includes(name))]
    check_target(spec.target, task, rung_names)
    if spec.raw_text is not None:
        _check_raw_text(spec.raw_text, task)
    if rungs is not None:
        try:
            check_rungs(rungs)
        except ValueError as error:
            raise UsageError(f"--rungs: {error}") from error
        spec = spec.model_copy(update={"rungs": tuple(rungs)})
    return task, spec


def _check_raw_text(text: RawText, task: Task) -> None:
    """ConfigError where the text is the task's own data: a base would be trained on the rows that it is tested with."""
    place = (task.directory / Path(text.source).expanduser()).resolve()
    if any(source == text.source or (task.directory / source).resolve() == place for source in task.data.sources):
        raise ConfigError(
            f"{task.path}: adapt.raw_text.source: {text.source} is the task's own data, so a base would be trained on "
            "the rows that it is tested with; name other text of the domain"
        )
