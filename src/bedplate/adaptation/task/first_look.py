"""A first look at a task file, before anything heavy is imported: mistakes in it are answered at once.

It reads what the ladder will read again, with the same classes; what takes a model to be found out is found out later.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import field_validator

from bedplate.adaptation.task.rung_names import RUNG_LINES
from bedplate.adaptation.task.spec import AdaptSpec
from bedplate.adaptation.task.target_spec import check_target
from bedplate.core.config import load_config
from bedplate.core.errors import ConfigError, HubError, UnknownItemError, UsageError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.data.sources import check_source
from bedplate.evaluation.leaks.hidden_groups import grouping_of, sources_of
from bedplate.evaluation.task import Task
from bedplate.hub.pull import check_source as check_base


class _Adapt(AdaptSpec):
    @field_validator("rungs")
    @classmethod
    def _rungs(cls, rungs: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for name in () if isinstance(rungs, str) else rungs:
            _check_rung(name)
        return rungs


class _Task(Task):
    adapt: _Adapt | None = None  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]


def _check_rung(name: str) -> None:
    if name not in RUNG_LINES:
        hint = did_you_mean(nearest(name, RUNG_LINES)) or f"there are {', '.join(RUNG_LINES)}"
        raise ValueError(f"there is no rung {name!r}; {hint}")


def look(path: Path, overrides: Sequence[str] = (), rungs: Sequence[str] | None = None) -> AdaptSpec:
    """The task's `adapt` section, as far as it can be read without a model.

    Raises ConfigError for what is wrong in the file, its overrides or its prompt, UsageError for `rungs` that there are
    not, DataError for data files and UnknownItemError for bases that are not there."""
    for name in rungs or ():
        try:
            _check_rung(name)
        except ValueError as error:
            raise UsageError(f"--rungs: {error}") from error
    task = load_config(path, _Task, overrides)
    task._path = path  # pyright: ignore[reportPrivateUsage]
    spec = task.adapt
    if spec is None:
        raise ConfigError(
            f"{path}: there is no `adapt` section; it says which base, target, budget and machine "
            "(`bedplate adapt --help` shows one)"
        )
    rung_names = [name for name in RUNG_LINES if (name in rungs if rungs is not None else spec.includes(name))]
    check_target(spec.target, task, rung_names)
    for source in task.data.sources:
        check_source(source, path.parent)
    if not task.data.group_columns and task.data.ungrouped_because is None:
        grouping_of(task, sources_of(task))  # raises, with what the rows show
    for base in (*spec.bases, *spec.embedders):
        _check_base(base, path)
    if spec.prompt is not None:
        spec.prompt.resolved(task)
    return spec


def _check_base(base: str, path: Path) -> None:
    """A base of a task file is a path from here, or from beside the file."""
    try:
        check_base(base)
    except UnknownItemError as error:
        if not (path.parent / Path(base).expanduser()).exists():
            raise type(error)(f"{path}: adapt.bases: {error.message}") from error
    except HubError as error:
        raise type(error)(f"{path}: adapt.bases: {error.message}") from error
