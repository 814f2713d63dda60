"""The one path from samples to grades, for suites, guards and the rows of a task (`TaskRow`, graded as a `GradedRow`).

1. Samples are drawn one by one until a window holds enough requests; only one window is in memory.
2. The requests of the whole window are answered together, and each sample receives its own answers.
3. A sample returns its grade, or asks again (the next turn, a tool's result): step 2 for those that do.
4. Grades come out in the order of the samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from bedplate.core.errors import RequestError
from bedplate.core.values import Values
from bedplate.evaluation.examples import Example
from bedplate.evaluation.task import Task

M = TypeVar("M")
Q = TypeVar("Q")
A = TypeVar("A")
G = TypeVar("G")
M_contra = TypeVar("M_contra", contravariant=True)
Q_co = TypeVar("Q_co", covariant=True)
A_contra = TypeVar("A_contra", contravariant=True)
G_co = TypeVar("G_co", covariant=True)

Turns: TypeAlias = Generator[Sequence[Q], Sequence[A], G]
"""Yields the requests of a turn, is sent their answers in the same order, and returns the grade."""


class Gradable(Protocol[M_contra, Q_co, A_contra, G_co]):
    """A sample: something to ask a model about in one turn or several, and the grade of its answers.

    def turns(self, model):
        (draft,) = yield [first_request]
        (final,) = yield [request_about(draft)]
        return grade_of(final)
    """

    def turns(self, model: M_contra, /) -> Turns[Q_co, A_contra, G_co]:
        """Asks the model and returns the grade."""
        ...


class SingleTurn(ABC, Generic[M, Q, A, G]):
    """A sample that asks once: none of its requests depends on an answer."""

    @abstractmethod
    def requests(self, model: M, /) -> Sequence[Q]:
        """Requests to ask: none, one or several."""

    @abstractmethod
    def grade(self, answers: Sequence[A], /) -> G:
        """Grade of the answers, which are in the order of the requests."""

    def turns(self, model: M, /) -> Turns[Q, A, G]:
        """Asks all requests in one turn."""
        answers = yield self.requests(model)
        return self.grade(answers)


def graded(
    samples: Iterable[Gradable[M, Q, A, G]],
    model: M,
    answer_requests: Callable[[list[Q]], Iterable[tuple[int, A]]],
    at_once: int,
) -> Iterator[G]:
    """Grades of the samples, in their order. answer_requests: answers a list of requests in any order, each answer with
    its request's place in the list. at_once: how many requests (or samples without any) are answered together; those of
    one sample are never split."""
    window: list[_OpenSample[Q, A, G]] = []
    pending = 0
    for sample in samples:
        window.append(_OpenSample(sample.turns(model)))
        pending += len(window[-1].requests)
        if max(len(window), pending) >= at_once:
            yield from _grades(window, answer_requests)
            window, pending = [], 0
    yield from _grades(window, answer_requests)


class _OpenSample(Generic[Q, A, G]):
    """A sample under way: the requests it waits for, or its grade once it has ended."""

    grade: G

    def __init__(self, turns: Turns[Q, A, G]) -> None:
        self._turns = turns
        self.requests: Sequence[Q] = ()
        self.is_graded = False
        self.advance(None)

    def advance(self, answers: Sequence[A] | None) -> None:
        """Sends the answers of the last turn (None before the first): the sample asks again or is graded."""
        try:
            self.requests = next(self._turns) if answers is None else self._turns.send(answers)
        except StopIteration as end:
            self.grade, self.requests, self.is_graded = end.value, (), True


def _grades(
    window: Sequence[_OpenSample[Q, A, G]], answer_requests: Callable[[list[Q]], Iterable[tuple[int, A]]]
) -> Iterator[G]:
    while waiting := [sample for sample in window if not sample.is_graded]:
        answers = dict(answer_requests([request for sample in waiting for request in sample.requests]))
        start = 0
        for sample in waiting:
            places = range(start, start + len(sample.requests))
            start = places.stop
            sample.advance([answers[place] for place in places])
    yield from (sample.grade for sample in window)


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
