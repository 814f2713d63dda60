"""Slices, calibration and confusion of an evaluation, and the evaluation of some of its rows or by another metric.

Everything is computed from the evaluation's rows, has its confidence and respects groups.

Expected calibration error: Naeini, Cooper & Hauskrecht (2015), AAAI, with bins of equal width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError
from bedplate.core.statistics.bootstrap import bca_of_sums, mean_of_sums
from bedplate.core.statistics.clusters import effective_n_interval
from bedplate.core.statistics.noninferiority import CalibrationBounds, calibration_bounds
from bedplate.evaluation.evaluated import Evaluation, with_bounds
from bedplate.evaluation.grading import GradedRow
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.task import LABEL
from bedplate.report.schema_parts import Calibration, CalibrationBin, Confusion, Slice


def confidence_of(scores: Mapping[str, float], prediction: str) -> float:
    """Probability of `prediction` when the label log-scores are normalised over the labels."""
    top = max(scores.values())
    return math.exp(scores[prediction] - top) / sum(math.exp(score - top) for score in scores.values())


def calibration(evaluation: Evaluation, bins: int = 10) -> Calibration | None:
    """Confidence against accuracy over rows that carry label scores; None where none does."""
    if bins < 1:
        raise UsageError(f"bins must be at least 1, not {bins}")
    rows = sure(evaluation.rows)
    if not rows:
        return None
    confidence = np.array([confidence_of(r.scores or {}, r.prediction or "") for r in rows])
    right = np.array([r.target == r.prediction for r in rows], dtype=float)
    place = bins_of(confidence, bins)
    weights = np.array([row.weight for row in rows])
    filled: list[CalibrationBin] = []
    error = 0.0
    for index in np.unique(place):
        in_bin = place == index
        mean, accuracy = (float(np.average(values[in_bin], weights=weights[in_bin])) for values in (confidence, right))
        error += abs(mean - accuracy) * float(weights[in_bin].sum() / weights.sum())
        interval = _interval([rows[i] for i in np.flatnonzero(in_bin)], right[in_bin], evaluation, real=False)
        low, high = float(index / bins), float((index + 1) / bins)
        size = int(in_bin.sum())
        filled.append(CalibrationBin(low=low, high=high, n=size, confidence=mean, accuracy=accuracy, interval=interval))
    return Calibration(bins=tuple(filled), of=bins, error=error, n=len(rows))


def bins_of(confidence: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Which of so many bins of equal width each probability is in: (0, 1/bins] is the first."""
    return np.clip(np.ceil(np.round(confidence * bins, 9)).astype(np.int64) - 1, 0, bins - 1)


def confusion(evaluation: Evaluation) -> Confusion | None:
    """Which label is taken for which; None for outputs that are not one of some labels."""
    if evaluation.output != "label":
        return None
    place = {label: number for number, label in enumerate(evaluation.labels)}
    counts = [[0] * (len(place) + 1) for _ in place]
    for row in evaluation.rows:
        counts[place[row.target]][-1 if row.prediction is None else place.get(row.prediction, -1)] += 1
    return Confusion(labels=evaluation.labels, counts=tuple(map(tuple, counts)))


def slices(evaluation: Evaluation) -> tuple[Slice, ...]:
    """Mean row score by target label (where there are labels), by the columns that the task looks at, and by quartile
    of input length in characters."""
    target_labels = [evaluation.labels_of(row.target) for row in evaluation.rows]
    slice_scores = [
        _slice("label", label, rows, evaluation)
        for label in evaluation.labels
        if (rows := [row for row, labels in zip(evaluation.rows, target_labels, strict=True) if label in labels])
    ]
    for column in dict.fromkeys(name for row in evaluation.rows for name in row.slices or ()):
        for value in values_of(evaluation, column):
            rows = [row for row in evaluation.rows if (row.slices or {}).get(column) == value]
            slice_scores.append(_slice(column, value or "(none)", rows, evaluation))
    lengths = np.array([row.length for row in evaluation.rows])
    edges = np.quantile(lengths, [0.25, 0.5, 0.75])
    quarter = np.searchsorted(edges, lengths, side="left")
    for index in np.unique(quarter):
        rows = [row for row, q in zip(evaluation.rows, quarter, strict=True) if q == index]
        low, high = min(row.length for row in rows), max(row.length for row in rows)
        slice_scores.append(_slice("length", f"{low}-{high} characters", rows, evaluation))
    return tuple(slice_scores)


def values_of(evaluation: Evaluation, column: str) -> list[str]:
    """The values of a column that the task looks at, in alphabetical order."""
    return sorted({row.slices[column] for row in evaluation.rows if row.slices and column in row.slices})


def _slice(by: str, value: str, rows: Sequence[GradedRow], evaluation: Evaluation) -> Slice:
    scores = np.array([row.score for row in rows])
    interval = _interval(rows, scores, evaluation, real=evaluation.scoring == "real")
    groups, mean = len({row.group for row in rows}), float(np.average(scores, weights=[row.weight for row in rows]))
    return Slice(by=by, value=value, n=len(rows), groups=groups, estimate=mean, interval=interval)


def _interval(
    rows: Sequence[GradedRow], scores: NDArray[np.float64], evaluation: Evaluation, *, real: bool
) -> tuple[float, float]:
    """Interval of the mean of `scores` [n], one for each row; one group alone says nothing about others."""
    groups = [row.group for row in rows]
    count = len(set(groups))
    weights = None if evaluation.weights is None else np.array([row.weight for row in rows])
    if real and count > 1:
        w = np.ones(len(scores)) if weights is None else weights
        parts, confidence = np.stack([w * scores, w], axis=1), evaluation.confidence
        return bca_of_sums(
            parts, mean_of_sums, groups, confidence, seed=evaluation.seed, minimum_groups=2, weights=weights
        ).interval
    if not real and (count > 1 or len(rows) == 1):
        return effective_n_interval(scores, groups, evaluation.confidence, minimum_groups=2, weights=weights)
    return 0.0, 1.0


Floats = NDArray[np.float64]
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


def on_shared_rows(a: Evaluation, b: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Both on the rows that both answered: of valid, some candidates are asked a part alone."""
    shared = {row.row_hash for row in a.rows} & {row.row_hash for row in b.rows}
    if a.split_hash == b.split_hash or a.split != b.split or not shared:
        return a, b
    ours, theirs = (by_metric(e, [row for row in e.rows if row.row_hash in shared], e.metric) for e in (a, b))
    return replace(ours, split_hash=a.split_hash), replace(theirs, split_hash=a.split_hash)


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


def _calibration_gaps(rows: Sequence[GradedRow]) -> tuple[Floats, Floats, Floats]:
    """The probabilities of the answers, how much they are too high, and the rows' weights, [n] each."""
    confidences = np.array([confidence_of(row.scores or {}, row.prediction or "") for row in rows])
    right = np.array([float(row.target == row.prediction) for row in rows])
    return confidences, confidences - right, np.array([row.weight for row in rows])


def sure(rows: Sequence[GradedRow]) -> list[GradedRow]:
    """The rows whose answers carry probabilities."""
    return [row for row in rows if row.scores and row.prediction in row.scores]
