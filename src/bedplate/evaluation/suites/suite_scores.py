"""Runs a suite: each of its measures with an interval that respects groups of items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from typing import Any

from bedplate.core.statistics.noninferiority import mean_drop, rate_rise
from bedplate.evaluation.suites import SUITES, need_suite
from bedplate.evaluation.suites.suite import grades
from bedplate.inference.engine.answers import Answers

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
    """A suite's measures by name, and where its items come from. unusable: rows of the source that are no items."""

    measures: dict[str, SuiteScore]
    source: str
    sha256: str
    unusable: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_suite(model: Answers, name: str, limit: int | None = None) -> SuiteResult:
    """Asks a base a suite's items, at most so many. HubError where they cannot be pulled."""
    need_suite(name)
    sample_set = SUITES[name](limit)
    columns: defaultdict[str, list[tuple[float, float, Hashable]]] = defaultdict(list)
    for place, (sample, grade) in enumerate(
        zip(sample_set.samples, grades(model, sample_set.samples, name), strict=True)
    ):
        for measure, (value, weight) in sample_set.measure(sample, grade).items():
            columns[measure].append((value, weight, getattr(sample, "group", place)))
    measures = {measure: _scored(rows) for measure, rows in columns.items()}
    return SuiteResult(measures, sample_set.source, sample_set.sha256, sample_set.unusable)


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
