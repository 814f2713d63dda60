"""Paired comparison of two evaluations on the same rows: difference, interval, p-value and non-inferiority."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError
from bedplate.core.statistics import bootstrap, paired
from bedplate.core.statistics.noninferiority import Drop, hidden, mean_drop
from bedplate.core.statistics.unequal import InsufficientGroups, enough_groups
from bedplate.evaluation.harness import Evaluation
from bedplate.evaluation.metrics import METRICS
from bedplate.evaluation.task_row import GradedRow


@dataclass(frozen=True)
class PairedComparison:
    """`a` minus `b` on the same rows: two-sided interval at `confidence`, and a two-sided p-value by `test`, which has
    to exclude 0 for the interval to leave it out."""

    metric: str
    split: str
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    confidence: float
    p_value: float
    test: str
    n: int
    groups: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for report.json."""
        return asdict(self)


def compare(a: Evaluation, b: Evaluation, seed: int = 0, confidence: float = 0.95) -> PairedComparison:
    """Paired comparison of two evaluations of one metric on the same rows (matched by hash, in any order).

    Means of rows: exact McNemar where rows are independent and 0/1, otherwise the clustered sign-flip. Statistics of
    all rows: a swap test and the cluster bootstrap of the difference. Raises UsageError where metric, split or rows
    differ.
    """
    rows = _paired(a, b)
    groups = [row.group for row in a.rows]
    if a.scoring not in ("counts", "answered"):
        test_result = paired.paired_difference(
            [row.score for row in a.rows],
            [row.score for row in rows],
            groups,
            confidence,
            seed=seed,
            binary=a.scoring == "binary",
            weights=a.weights,
        )
        difference, interval, p_value = test_result.difference, test_result.interval, test_result.p_value
        test = test_result.test
    else:
        difference, interval, p_value = _compare_statistic(a, replace(b, rows=tuple(rows)), groups, seed, confidence)
        interval = paired.agreeing(interval, p_value, confidence)
        test = "clustered_swap" if a.groups < a.n else "swap"
    return PairedComparison(
        a.metric, a.split, a.estimate, b.estimate, difference, interval, confidence, p_value, test, a.n, a.groups
    )


def _paired(a: Evaluation, b: Evaluation) -> list[GradedRow]:
    """The rows of `b` in the order of those of `a`."""
    if (a.metric, a.split_hash) != (b.metric, b.split_hash):
        raise UsageError(
            f"only evaluations of one metric on the same rows compare: {a.metric} on {a.split} ({a.n} rows, "
            f"{a.split_hash[:8]}) and {b.metric} on {b.split} ({b.n} rows, {b.split_hash[:8]})"
        )
    place = {row.row_hash: row for row in b.rows}
    return [place[row.row_hash] for row in a.rows]


def drop_between(
    before: Evaluation, after: Evaluation, confidence: float, seed: int = 0, *, scattered: bool = False
) -> Drop:
    """How much worse `after` is than `before` on the same rows, with one-sided bounds: for non-inferiority.

    Rows that do not change say little of those that were not seen: the bounds are never nearer than what
    `independent_rows` could hide. scattered: as for `mean_drop`. A statistic of all rows has the bootstrap's bounds.
    Raises UsageError as `compare`.
    """
    rows = _paired(before, after)
    units = min(independent_rows(before), independent_rows(after))
    if before.scoring in ("binary", "real"):
        scores, groups = [row.score for row in before.rows], [row.group for row in before.rows]
        later = [row.score for row in rows]
        return mean_drop(scores, later, groups, confidence, units=units, weights=before.weights, scattered=scattered)
    groups, after = [row.group for row in before.rows], replace(after, rows=tuple(rows))
    drop, (low, high), _ = _compare_statistic(before, after, groups, seed, 2 * confidence - 1)
    se = (high - low) / 2 / _normal_quantile(confidence)
    if not enough_groups(groups):
        return Drop(drop, None, None, se, confidence, before.n, before.groups)
    unseen = hidden(units, confidence)
    return Drop(drop, min(low, drop - unseen), max(high, drop + unseen), se, confidence, before.n, before.groups)


def independent_rows(evaluation: Evaluation) -> float:
    """What an evaluation's rows are worth as independent ones, by the design effect of its own scores (as in
    `effective_n_bound`); of a mean over labels, what those of the rarest label are worth."""
    rows = float(evaluation.n)
    if evaluation.scoring == "counts" and METRICS[evaluation.metric].per_label:
        target_labels = [label for row in evaluation.rows for label in evaluation.labels_of(row.target)]
        rows = float(max(min(target_labels.count(label) for label in evaluation.labels), 1))
    return max(rows / max(evaluation.design_effect, 1.0), 1.0)


def _normal_quantile(confidence: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(confidence))


def _compare_statistic(
    a: Evaluation, b: Evaluation, groups: list[str], seed: int, confidence: float
) -> tuple[float, tuple[float, float], float]:
    ours, theirs = a.parts, b.parts
    differences = theirs - ours

    def swapped(swap: NDArray[np.bool_]) -> float:
        moved = swap.astype(float) @ differences
        return float(a.of_sums(ours.sum(0) + moved) - a.of_sums(theirs.sum(0) - moved))

    def difference_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        first, second = np.split(sums, 2, axis=-1)
        return a.of_sums(first) - a.of_sums(second)

    p_value = paired.swap_test(swapped, groups, seed=seed)
    difference = a.estimate - b.estimate
    try:
        boot = bootstrap.bca_of_sums(
            np.concatenate([ours, theirs], axis=1),
            difference_of,
            groups,
            confidence,
            seed=seed,
            support=(-1.0, 1.0),
            unseen=False,
            minimum_groups=2,
            weights=a.weights,
        )
    except InsufficientGroups:  # one group says nothing about others, nor do rows that neither answered
        return difference, (-1.0, 1.0), p_value
    return difference, boot.interval, p_value
