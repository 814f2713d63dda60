"""A task file with its `adapt` section: read for a run, and checked at once, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bedplate.adaptation.task.adapt_parts import RawText
from bedplate.adaptation.task.rung_table import RUNG_TABLE, check_rungs
from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.adaptation.task.target_spec import check_target
from bedplate.core.config import load_config
from bedplate.core.errors import ConfigError, HubError, UnknownItemError, UsageError
from bedplate.data.sources import check_source
from bedplate.evaluation.examples import sources_of
from bedplate.evaluation.leaks.hidden_groups import grouping_of
from bedplate.evaluation.task import Task
from bedplate.hub.pull import check_source as check_base


class _AdaptTask(Task):
    """A task file whose `adapt` section is read as well, so that mistakes in it are named with their line."""

    adapt: AdaptSpec  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]


def check_task_file(path: Path, overrides: Sequence[str] = (), rungs: Sequence[str] | None = None) -> AdaptSpec:
    """The task's `adapt` section, checked as far as that takes no model: it loads no torch, so a typo is answered at
    once, and reads what the ladder will read again.

    Raises ConfigError for what is wrong in the file, its overrides or its prompt, UsageError for `rungs` that do not
    exist, DataError for data files and UnknownItemError for bases that are not there."""
    task, spec = load_adapt_task(path, overrides, rungs)
    for source in task.data.sources:
        check_source(source, path.parent)
    if not task.data.group_columns and task.data.ungrouped_because is None:
        grouping_of(task, sources_of(task))  # raises, with what the rows show
    for base in (*spec.bases, *spec.embedders):
        _check_base(base, path)
    return spec


def load_adapt_task(
    path: Path | str,
    overrides: Sequence[str] = (),
    rungs: Sequence[str] | None = None,
    *,
    anchor_file: Path | None = None,
) -> tuple[Task, AdaptSpec]:
    """A task file and its `adapt` section; `rungs` replaces the file's own. anchor_file: the file whose directory
    relative paths start from, where it is not this one. Raises ConfigError, UsageError."""
    if rungs is not None:
        try:
            check_rungs(rungs)
        except ValueError as error:
            raise UsageError(f"--rungs: {error}") from error
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
    rung_names = [name for name in RUNG_TABLE if (name in rungs if rungs is not None else spec.includes(name))]
    check_target(spec.target, task, rung_names)
    if spec.raw_text is not None:
        _check_raw_text(spec.raw_text, task)
    if rungs is not None:
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


def _check_base(base: str, path: Path) -> None:
    """A base of a task file is a path from here, or from beside the file."""
    try:
        check_base(base)
    except UnknownItemError as error:
        if not (path.parent / Path(base).expanduser()).exists():
            raise type(error)(f"{path}: adapt.bases: {error.message}") from error
    except HubError as error:
        raise type(error)(f"{path}: adapt.bases: {error.message}") from error
