"""The parts of a suite: samples that ask a model and grade its answers, and the measures that grades count for,
each with an interval that respects groups of items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, TypeAlias, TypeVar

from bedplate.core.errors import ContextLengthExceeded
from bedplate.core.progress import progress
from bedplate.core.statistics.noninferiority import mean_drop, rate_rise
from bedplate.evaluation.grading import Gradable, SingleTurn, graded
from bedplate.evaluation.suites import SUITES, need_suite
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


CONFIDENCE = 0.95


@dataclass(frozen=True)
class SuiteScore:
    """A mean, or a rate by the items' weights. interval: at 95%; None where the groups are too few for one."""

    value: float
    interval: tuple[float, float] | None
    n: int
    groups: int


@dataclass(frozen=True)
class SuiteResult:
    """A suite's measures by name (none where no item fits the context), and where its items come from. unusable: rows
    of the source that are no items. too_long: items left out because the model's context is shorter."""

    measures: dict[str, SuiteScore]
    source: str
    sha256: str
    unusable: int
    too_long: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_suite(model: Answers, name: str, limit: int | None = None) -> SuiteResult:
    """Asks a base a suite's items, at most so many; those that its context cannot hold are left out and counted.
    HubError where they cannot be pulled."""
    need_suite(name)
    sample_set: SampleSet[Any] = SUITES[name](limit)
    samples = [sample for sample in sample_set.samples if _fits(sample, model)]
    columns: defaultdict[str, list[tuple[float, float, Hashable]]] = defaultdict(list)
    for place, (sample, grade) in enumerate(zip(samples, grades(model, samples, name), strict=True)):
        for measure, (value, weight) in sample_set.measure(sample, grade).items():
            columns[measure].append((value, weight, getattr(sample, "group", place)))
    measures = {measure: _scored(rows) for measure, rows in columns.items()}
    too_long = len(sample_set.samples) - len(samples)
    return SuiteResult(measures, sample_set.source, sample_set.sha256, sample_set.unusable, too_long)


def _fits(sample: SuiteItem[Any], model: Answers) -> bool:
    try:
        next(sample.turns(model))
    except ContextLengthExceeded:
        return False
    return True


def _scored(rows: list[tuple[float, float, Hashable]]) -> SuiteScore:
    values, weights, groups = map(list, zip(*rows, strict=True))
    zeros, sided = [0.0] * len(rows), (1 + CONFIDENCE) / 2
    if any(weight != 1 for weight in weights):  # a rate, such as nats per token
        estimate = rate_rise(zeros, values, weights, groups, sided)
        return SuiteScore(estimate.value, _ends(estimate.lower, estimate.upper), estimate.n, estimate.groups)
    estimate = mean_drop(values, zeros, groups, sided)
    ends = _ends(estimate.lower, estimate.upper)
    return SuiteScore(estimate.value, ends and (max(0.0, ends[0]), min(1.0, ends[1])), estimate.n, estimate.groups)


def _ends(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)
