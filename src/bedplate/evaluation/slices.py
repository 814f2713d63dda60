"""Where an evaluation is wrong and whether its confidence can be trusted, from its rows alone.

Expected calibration error: Naeini, Cooper & Hauskrecht (2015), AAAI, with bins of equal width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bedplate.core.errors import UsageError
from bedplate.core.statistics import effective_n_interval
from bedplate.evaluation.harness import Evaluation, RowResult


@dataclass(frozen=True)
class CalibrationBin:
    """Rows whose confidence lies in (low, high]: how many, their mean confidence and the share that was right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """`bins` without the empty ones, their expected calibration error, and how many rows had scores."""

    bins: tuple[CalibrationBin, ...]
    error: float
    n: int


@dataclass(frozen=True)
class Slice:
    """The mean row score of part of the rows, with a clustered interval: `by` label or length, at `value`."""

    by: str
    value: str
    n: int
    groups: int
    estimate: float
    interval: tuple[float, float]


def confidence_of(scores: Mapping[str, float], prediction: str) -> float:
    """Probability of `prediction` when the label log-scores are normalised over the labels."""
    top = max(scores.values())
    return math.exp(scores[prediction] - top) / sum(math.exp(score - top) for score in scores.values())


def calibration(evaluation: Evaluation, bins: int = 10) -> Calibration | None:
    """Confidence against accuracy over rows that carry label scores; None where none does."""
    if bins < 1:
        raise UsageError(f"bins must be at least 1, not {bins}")
    rows = [r for r in evaluation.rows if r.scores and r.prediction in r.scores]
    if not rows:
        return None
    confidence = np.array([confidence_of(r.scores or {}, r.prediction or "") for r in rows])
    right = np.array([r.target == r.prediction for r in rows], dtype=float)
    place = np.clip(np.ceil(np.round(confidence * bins, 9)).astype(int) - 1, 0, bins - 1)
    found: list[CalibrationBin] = []
    error = 0.0
    for index in np.unique(place):
        here = place == index
        mean, accuracy = float(confidence[here].mean()), float(right[here].mean())
        error += abs(mean - accuracy) * float(here.mean())
        found.append(CalibrationBin(index / bins, (index + 1) / bins, int(here.sum()), mean, accuracy))
    return Calibration(tuple(found), error, len(rows))


def slices(evaluation: Evaluation) -> tuple[Slice, ...]:
    """Mean row score by target label (where there are labels) and by quartile of input length in characters."""
    found = [
        _slice("label", label, rows, evaluation.confidence)
        for label in evaluation.labels
        if (rows := [row for row in evaluation.rows if row.target == label])
    ]
    lengths = np.array([row.length for row in evaluation.rows])
    edges = np.quantile(lengths, [0.25, 0.5, 0.75])
    quarter = np.searchsorted(edges, lengths, side="left")
    for index in np.unique(quarter):
        rows = [row for row, q in zip(evaluation.rows, quarter, strict=True) if q == index]
        low, high = min(row.length for row in rows), max(row.length for row in rows)
        found.append(_slice("length", f"{low}-{high} characters", rows, evaluation.confidence))
    return tuple(found)


def _slice(by: str, value: str, rows: Sequence[RowResult], confidence: float) -> Slice:
    scores, groups = [row.score for row in rows], [row.group for row in rows]
    count = len(set(groups))
    interval = (0.0, 1.0)
    if count > 1 or len(rows) == 1:
        interval = effective_n_interval(scores, groups, confidence, minimum_groups=2)
    return Slice(by, value, len(rows), count, float(np.mean(scores)), interval)
