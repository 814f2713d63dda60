"""`TaskRow`, a task's example as a gradable sample, and `GradedRow`, its answer as the metric reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bedplate.core.errors import RequestError
from bedplate.core.values import Values
from bedplate.evaluation.examples import Example
from bedplate.evaluation.grading import SingleTurn
from bedplate.evaluation.task import Task


class PredictionLike(Protocol):
    """What a model answers for one row: the parsed output (None: could not be parsed), label log-scores, seconds."""

    @property
    def output(self) -> Any: ...
    @property
    def scores(self) -> Mapping[str, float] | None: ...
    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class GradedRow:
    """One row of an evaluation. `score` is the metric's score of the row, in 0 to 1; `scores` are label log-scores.
    Several labels, and JSON, stand in `target` and `prediction` as canonical JSON. `weight`: how much of the traffic it
    stands for, 1 on average. `slices`: column → value, of the columns that the task looks at."""

    id: str
    row_hash: str
    group: str
    target: str
    prediction: str | None
    score: float
    length: int
    scores: dict[str, float] | None = None
    seconds: float | None = None
    weight: float = 1.0
    slices: dict[str, str] | None = None


@dataclass(frozen=True)
class TaskRow(SingleTurn[object, Values, PredictionLike | str | None, GradedRow]):
    """An example of a task, to be asked."""

    task: Task
    example: Example

    def requests(self, _: object, /) -> list[Values]:
        """Its inputs."""
        return [self.example.inputs]

    def grade(self, answers: Sequence[PredictionLike | str | None], /) -> GradedRow:
        """The answer in canonical form, None where it is none; its score is set when all rows are there."""
        (answer,), task, example = answers, self.task, self.example
        scores = seconds = None
        if answer is None or isinstance(answer, str):
            output: Any = answer
        else:
            output, seconds = answer.output, answer.seconds
            scores = None if answer.scores is None else dict(answer.scores)
        prediction = None if output is None else str(output)
        abstained = task.output.abstain is not None and prediction == task.output.abstain.answer
        if task.labels and prediction not in task.labels and not abstained:
            prediction = None
        if prediction is not None:
            try:
                prediction = task.output.canonical(prediction)
            except RequestError:  # cut off, or not of the schema
                prediction = None
        length = sum(len(text) for text in example.texts.values())
        return GradedRow(
            example.id,
            example.row_hash,
            example.group,
            example.target,
            prediction,
            0.0,
            length,
            scores,
            seconds,
            example.weight,
            dict(example.slices) or None,
        )
