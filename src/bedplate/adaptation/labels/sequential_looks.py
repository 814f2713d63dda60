"""A verdict on test rows that get their labels one batch after another: what is judged at one look, and at what level.

The error of the verdict is spent over the looks by the share of the planned rows that have labels (`core.statistics.
looks`); the bounds shown are repeated confidence bounds, so they hold together at the level that stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from bedplate.adaptation.context.outcome import BoundedEstimate, Resting
from bedplate.core.statistics.proportions import Side
from bedplate.core.statistics.repeated_looks import look_levels
from bedplate.data.rows import SourceRows
from bedplate.data.splits import Assigned
from bedplate.evaluation.examples import TaskData, TestHandle, load_examples, sources_of
from bedplate.evaluation.leaks.hidden_groups import grouping_of
from bedplate.evaluation.task import Task
from bedplate.report.schema_parts import LabelBudget


@dataclass(frozen=True)
class SequentialVerdict(Resting):
    """An evaluation as confirmation asks for it, whose bounds hold at all looks together. shares: of the planned rows,
    at each look, the last of which is this one."""

    shares: tuple[float, ...]

    @property
    def estimate(self) -> float:
        return self.evaluation.estimate

    def bound(self, confidence: float, side: Side = "lower") -> float:
        """At the level that this look has of an error of 1 - confidence. Raises InsufficientGroups."""
        return self.evaluation.bound(1 - look_levels(1 - confidence, self.shares)[-1], side)


class SingleLook:
    """A verdict on rows that all have their labels: nothing is shared among looks."""

    def looked(self, evaluation: BoundedEstimate) -> BoundedEstimate:
        """The evaluation as confirmation takes it."""
        return evaluation

    def level(self, confidence: float) -> float:
        """What something beside the bar is to be shown at, where it may be taken for shown at this confidence."""
        return confidence

    def passes(self, check: Callable[[float], bool], confidence: float) -> bool:
        """Whether what else is asked is shown at a confidence."""
        return check(self.level(confidence))


SINGLE_LOOK = SingleLook()


@dataclass(frozen=True)
class Looking(SingleLook):
    """The rows as far as they have labels, and what the verdict rests on. whole: all test rows that may come, which the
    ledger has from the first look on; first: whether test was closed so far, so that nominees are chosen."""

    data: TaskData
    record: LabelBudget
    whole: TestHandle
    first: bool

    def looked(self, evaluation: BoundedEstimate) -> BoundedEstimate:
        return SequentialVerdict(evaluation, self._shares)

    def level(self, confidence: float) -> float:
        return 1 - look_levels(1 - confidence, self._shares)[-1]

    def record_at(self, alpha: float) -> LabelBudget:
        """The record with the level of each look, of the error that this verdict may spend."""
        levels = look_levels(alpha, self._shares)
        looks = [
            look.model_copy(update={"level": level}) for look, level in zip(self.record.looks, levels, strict=True)
        ]
        return self.record.model_copy(update={"looks": tuple(looks)})

    @property
    def _shares(self) -> tuple[float, ...]:
        return tuple(look.share for look in self.record.looks)


def rows_of(
    task: Task, looking: Looking | None, assigned: Assigned | None, memory_rows: Mapping[str, SourceRows]
) -> TaskData:
    """A task's rows, once it has said which of them belong together. memory_rows: those that are in memory, by
    prefix."""
    sources = memory_rows or sources_of(task)
    grouping = grouping_of(task, sources)
    data = load_examples(task, assigned, sources) if looking is None else looking.data
    return replace(data, grouping=grouping)
