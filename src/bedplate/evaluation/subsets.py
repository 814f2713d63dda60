"""An evaluation looked at by another metric, or on the rows of one slice only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bedplate.core.statistics.calibration import CalibrationBounds, calibration_bounds
from bedplate.evaluation.evaluated import Evaluation, with_bounds
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.slices import bins_of, confidence_of
from bedplate.evaluation.task import LABEL
from bedplate.evaluation.task_row import GradedRow

BINS = 10
ROW_SCORE = "row score"
"""The mean of row scores, for slices of what is no mean of rows: few hold each label as often as macro-F1 needs."""


def rows_of(evaluation: Evaluation, column: str, value: str) -> tuple[GradedRow, ...]:
    """The rows of one slice: those whose right answer is (or has among it) a label, or whose column has a value."""
    if column == LABEL:
        return tuple(row for row in evaluation.rows if value in evaluation.labels_of(row.target))
    return tuple(row for row in evaluation.rows if (row.slices or {}).get(column) == value)


def by_metric(evaluation: Evaluation, rows: Sequence[GradedRow], metric: str) -> Evaluation:
    """The evaluation of these rows (one at least) by its own metric, by another of the table, or by `ROW_SCORE`."""
    scoring = evaluation.scoring
    if metric == ROW_SCORE:
        scoring = "binary"
    elif metric != evaluation.metric:
        scorer = METRICS[metric]
        rows = [replace(row, score=scorer.row(row.target, row.prediction)) for row in rows]
        scoring = scorer.scoring
    return _of(evaluation, rows, metric, scoring)


def coverage_of(evaluation: Evaluation, rows: Sequence[GradedRow]) -> Evaluation:
    """The share of these rows that is answered, as an evaluation."""
    abstained_ids = {row.id for row, out in zip(evaluation.rows, evaluation.abstained.tolist(), strict=True) if out}
    marked = [replace(row, score=float(row.id not in abstained_ids)) for row in rows]
    return _of(evaluation, marked, "coverage", "binary")


def _of(evaluation: Evaluation, rows: Sequence[GradedRow], metric: str, scoring: str) -> Evaluation:
    draft = replace(
        evaluation,
        rows=tuple(rows),
        metric=metric,
        scoring=scoring,  # pyright: ignore[reportArgumentType]
        n=len(rows),
        groups=len({row.group for row in rows}),
        unparsed=sum(row.prediction is None for row in rows),
        icc=None,
        design_effect=1.0,
        lower_bound=None,
        reason=None,
        worst_usd=evaluation.worst_usd if metric == evaluation.metric else None,
    )
    return with_bounds(draft)


def calibration_of(rows: Sequence[GradedRow], confidence: float) -> CalibrationBounds:
    """The calibration error of answers that carry probabilities (`sure`), with bounds. Raises InsufficientGroups."""
    confidences, gaps, weights = _calibration_gaps(rows)
    groups = [row.group for row in rows]
    return calibration_bounds(gaps, bins_of(confidences, BINS), groups, confidence, weights=weights)


def calibration_error(rows: Sequence[GradedRow]) -> float:
    """The same without bounds."""
    confidences, gaps, weights = _calibration_gaps(rows)
    sums = np.bincount(bins_of(confidences, BINS), weights=gaps * weights)
    return float(np.abs(sums).sum() / weights.sum())


def _calibration_gaps(
    rows: Sequence[GradedRow],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The probabilities of the answers, how much they are too high, and the rows' weights, [n] each."""
    confidences = np.array([confidence_of(row.scores or {}, row.prediction or "") for row in rows])
    right = np.array([float(row.target == row.prediction) for row in rows])
    return confidences, confidences - right, np.array([row.weight for row in rows])


def sure(rows: Sequence[GradedRow]) -> list[GradedRow]:
    """The rows whose answers carry probabilities."""
    return [row for row in rows if row.scores and row.prediction in row.scores]
