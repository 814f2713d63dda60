"""The parts of a suite: samples that ask a model and grade its answers, and the measures that grades count for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

from bedplate.core.progress import progress
from bedplate.evaluation.grading import Gradable, SingleTurn, graded
from bedplate.inference.engine.answers import Answers
from bedplate.inference.engine.requests import Request, Result

AT_ONCE = 64
"""Requests that the engine is given together."""

G = TypeVar("G")
SuiteItem: TypeAlias = Gradable[Answers, Request, Result, G]
SingleTurnItem: TypeAlias = SingleTurn[Answers, Request, Result, G]
I_co = TypeVar("I_co", bound=SuiteItem[Any], covariant=True)


Measure = Callable[[Any, Any], Mapping[str, tuple[float, float]]]
"""What an item and its grade count for each measure, and by which weight."""


def score(_: object, grade: float) -> Mapping[str, tuple[float, float]]:
    """A grade that is a number from 0 to 1."""
    return {"score": (float(grade), 1.0)}


@dataclass(frozen=True)
class SampleSet(Generic[I_co]):
    """Items to ask, where they come from, how many rows of the source could not be used, and what grades count for."""

    samples: tuple[I_co, ...]
    source: str
    sha256: str
    unusable: int = 0
    measure: Measure = score


def together(parts: Sequence[SampleSet[I_co]]) -> SampleSet[I_co]:
    """The items of several suites of one source, one suite after the other."""
    samples = tuple(sample for part in parts for sample in part.samples)
    return replace(parts[0], samples=samples, unusable=sum(part.unusable for part in parts))


def grades(model: Answers, samples: Sequence[SuiteItem[G]], description: str) -> Iterator[G]:
    """Grades of the model's answers to each sample, in order. The first turns of all samples are checked before any is
    asked, so that one that does not fit the context raises at once."""
    for sample in samples:
        next(sample.turns(model))
    sample_grades = graded(samples, model, lambda requests: enumerate(model.run(requests)), AT_ONCE)
    yield from progress(sample_grades, description, len(samples), "items")
