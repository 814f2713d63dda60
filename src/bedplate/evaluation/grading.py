"""The one path from items to grades, for suites, guards and the rows of a task.

Items are drawn as they are needed, what they ask is asked together, and each is graded when its answers are there: one
window of them is in memory, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

Model_contra = TypeVar("Model_contra", contravariant=True)
Asked_co = TypeVar("Asked_co", covariant=True)
Answer_contra = TypeVar("Answer_contra", contravariant=True)
Grade_co = TypeVar("Grade_co", covariant=True)
M = TypeVar("M")
Q = TypeVar("Q")
A = TypeVar("A")
G = TypeVar("G")


class Gradable(Protocol[Model_contra, Asked_co, Answer_contra, Grade_co]):
    """One thing to ask of a model, and what its answers are worth."""

    def requests(self, model: Model_contra, /) -> Sequence[Asked_co]:
        """What is asked: nothing, one request, or several."""
        ...

    def grade(self, answers: Sequence[Answer_contra], /) -> Grade_co:
        """The grade of the answers to these requests, in their order."""
        ...


def graded(
    gradables: Iterable[Gradable[M, Q, A, G]],
    model: M,
    answer_requests: Callable[[list[Q]], Iterable[tuple[int, A]]],
    at_once: int,
) -> Iterator[G]:
    """The items' grades, in the items' order. answer_requests: the answers to some requests, each with its request's place among
    them, in whatever order they come. at_once: how many requests (or items without any) are asked together; those of
    one item are never parted."""
    window: list[tuple[Gradable[M, Q, A, G], int]] = []
    requests: list[Q] = []
    for gradable in gradables:
        new_requests = gradable.requests(model)
        window.append((gradable, len(new_requests)))
        requests += new_requests
        if max(len(window), len(requests)) >= at_once:
            yield from _of_window(window, dict(answer_requests(requests)))
            window, requests = [], []
    if window:
        yield from _of_window(window, dict(answer_requests(requests)))


def _of_window(window: Sequence[tuple[Gradable[M, Q, A, G], int]], answers: dict[int, A]) -> Iterator[G]:
    first = 0
    for gradable, count in window:
        yield gradable.grade([answers[place] for place in range(first, first + count)])
        first += count
