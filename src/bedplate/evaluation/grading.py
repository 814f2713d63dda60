"""The one path from samples to grades, for suites, guards and the rows of a task.

1. Samples are drawn one by one until a window holds enough requests; only one window is in memory.
2. The requests of the whole window are answered together, and each sample receives its own answers.
3. A sample returns its grade, or asks again (the next turn, a tool's result): step 2 for those that do.
4. Grades come out in the order of the samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeAlias, TypeVar

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
    """Grades of the samples, in their order.

    answer_requests: answers a list of requests in any order, each answer with its request's place in the list.
    at_once: how many requests (or samples without any) are answered together; those of one sample are never split.
    """
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
