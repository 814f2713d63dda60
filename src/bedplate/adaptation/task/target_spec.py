"""The `target` of a task file: the bar, what is to be beaten or not be worse than, and what else has to hold."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated

from pydantic import Field, model_validator

from bedplate.core.config import Grown, Strict
from bedplate.core.errors import ConfigError
from bedplate.core.suggestions import did_you_mean, nearest
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.task import LABEL, Task

CURRENT = "current"
"""The system that runs today, by its answers in `data.current`, where candidates are named."""
COVERAGE, CALIBRATION = "coverage", "calibration_error"
"""Requirements that are no metric of rows: the share that is answered, and the expected calibration error."""

Margin = Annotated[float, Field(ge=0)]


class RequirementSpec(Strict):
    """One more number and its bar. metric: the task's own if it is not said, another of the table, `coverage` or
    `calibration_error`. where: only rows of one slice, as {language: de}; every: each value of a column, one by one.
    The column is one of `data.slices`, or `label`, the right answer."""

    metric: str | None = None
    where: Annotated[dict[str, str], Field(min_length=1, max_length=1)] | None = None
    every: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _whole(self) -> RequirementSpec:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give either `at_least` or `at_most`")
        if self.where is not None and self.every is not None:
            raise ValueError("give either `where` (one slice) or `every` (all values of a column)")
        if self.metric is None and self.column is None:
            raise ValueError("say of what: a `metric`, a slice under `where`, or a column under `every`")
        if self.metric == CALIBRATION and self.at_most is None:
            raise ValueError("a calibration error is bounded from above: give `at_most`")
        if self.metric not in (None, COVERAGE, CALIBRATION, *METRICS):
            metric_names = (*METRICS, COVERAGE, CALIBRATION)
            raise ValueError(
                f"no metric {self.metric!r}; {did_you_mean(nearest(self.metric, metric_names), 'see the docs')}"
            )
        return self

    @property
    def column(self) -> str | None:
        """Whose values the slices are."""
        return self.every if self.where is None else next(iter(self.where))


class TargetSpec(Grown):
    """The bar: the metric's value that must be cleared, with this (one-sided) confidence; `against`, what the skin is
    compared with on the same rows: `current`, or the name of a candidate. It may be worse than that by less than
    `margin`, or has to be better by more than `better_by`. all_of: what has to hold as well."""

    LATE = ("against", "margin", "better_by", "all_of")

    value: Annotated[float, Field(gt=0)] | None = None
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    against: str | None = None
    margin: Margin | None = None
    better_by: Margin | None = None
    all_of: tuple[RequirementSpec, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> TargetSpec:
        if self.value is None and self.against is None:
            raise ValueError(
                "give a `value` to be cleared, or what the skin is compared with: {against: current, margin: 0.02}"
            )
        if (self.against is None) != (self.margin is None and self.better_by is None):
            raise ValueError(
                "`against` goes with `margin` (by how much less the skin may be worse) or `better_by` (by how much "
                "more it has to be better; 0 will do)"
            )
        if self.margin is not None and self.better_by is not None:
            raise ValueError("give either `margin` or `better_by`")
        if self.margin == 0:
            raise ValueError("a `margin` of 0 would have to be beaten: write `better_by: 0`")
        return self

    @property
    def allowed(self) -> float:
        """How much worse than `against` a skin may be, by less than this; negative where it has to be better."""
        return self.margin if self.margin is not None else -(self.better_by or 0.0)


def check_target(target: TargetSpec, task: Task, rungs: Collection[str]) -> None:
    """ConfigError for a target that the rest of the task file does not allow. rungs: those that are climbed."""
    worst = task.scale.worst_usd

    def wrong(problem: str) -> ConfigError:
        return ConfigError(f"{task.path}: adapt.target: {problem}")

    if target.value is not None and target.value >= 1 and worst is None:
        raise ConfigError(
            f"{task.path}: adapt.target.value: {target.value:g} cannot be cleared; {task.metric_name} lies between 0 "
            "and 1"
        )
    if target.value is not None and worst is not None and target.value >= worst:
        raise wrong(f"a call never costs more than ${worst:g}, so ${target.value:g} is no bar")
    if target.against is not None and abs(target.allowed) >= (worst or 1.0):
        raise wrong(f"a margin of {abs(target.allowed):g} is as wide as the metric, which lies in 0 to {worst or 1:g}")
    if target.against == CURRENT:
        if task.data.current is None:
            raise wrong("`against: current` needs the system's answers: name their column under `data.current`")
        if worst is not None and task.data.current.usd_per_1k_calls is None:
            raise wrong(
                "the expected cost has the price of a call in it: give that of the current system, "
                "data.current: {column: …, usd_per_1k_calls: …}"
            )
    elif target.against is not None and target.against.partition("@")[0] not in rungs:
        raise wrong(
            f"`against` is {target.against!r}, which is neither {CURRENT!r} nor a rung that is climbed "
            f"({', '.join(rungs)})"
        )
    for requirement in target.all_of:
        _check(requirement, task, wrong)


def _check(requirement: RequirementSpec, task: Task, wrong: Callable[[str], ConfigError]) -> None:
    column, output_type = requirement.column, task.output.kind
    if column == LABEL and output_type not in ("label", "labels"):
        raise wrong(f"all_of: outputs of kind {output_type} have no labels to look at one by one")
    if column not in (None, LABEL, *task.data.sliced):
        raise wrong(f"all_of: {column!r} is not among the columns that are kept; add it: data.slices: [{column}]")
    if column == LABEL and requirement.where is not None and requirement.where[LABEL] not in (task.output.labels or ()):
        raise wrong(
            f"all_of: {requirement.where[LABEL]!r} is no label; there are {', '.join(task.output.labels or ())}"
        )
    if requirement.metric == COVERAGE and task.output.abstain is None:
        raise wrong("all_of: without `output.abstain` every row is answered, and coverage says nothing")
    if requirement.metric == CALIBRATION and not task.labels:
        raise wrong(f"all_of: outputs of kind {output_type} carry no probabilities, so they have no calibration error")
    if requirement.metric in METRICS and output_type not in METRICS[requirement.metric].outputs:
        raise wrong(f"all_of: {requirement.metric!r} does not fit an output of kind {output_type}")
    if (
        column == LABEL
        and output_type == "label"
        and requirement.metric in METRICS
        and METRICS[requirement.metric].per_label
    ):
        raise wrong(
            f"all_of: rows of one label cannot show {requirement.metric}, a mean over all labels; use accuracy there"
        )
    is_task_metric, worst = requirement.metric in (None, task.metric_name), task.scale.worst_usd
    ceiling = worst if is_task_metric and worst is not None else 1.0
    bar = requirement.at_least if requirement.at_least is not None else requirement.at_most
    assert bar is not None
    if not 0 < bar < ceiling:
        raise wrong(f"all_of: a bar of {bar:g} lies outside 0 to {ceiling:g}")
    if is_task_metric and worst is not None and requirement.at_most is None:
        raise wrong("all_of: costs are bounded from above: give `at_most`")
