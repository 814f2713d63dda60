"""`Evaluation`: a metric on a split with its interval and bound, groups and weights respected, and every row; and
the paired comparison of two on the same rows: difference, interval, p-value and non-inferiority."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core import display
from bedplate.core.errors import UsageError
from bedplate.core.statistics.bootstrap import Bootstrap, bca_of_sums, influence, mean_of_sums
from bedplate.core.statistics.clusters import (
    design_effect,
    effective_n_bound,
    effective_n_interval,
    intraclass_correlation,
)
from bedplate.core.statistics.noninferiority import Drop, hidden, mean_drop
from bedplate.core.statistics.paired import agreeing, paired_difference, swap_test
from bedplate.core.statistics.proportions import Side
from bedplate.core.statistics.unequal import MINIMUM_GROUPS, InsufficientGroups, enough_groups, worth
from bedplate.evaluation.costs import Scale
from bedplate.evaluation.examples import Example
from bedplate.evaluation.grading import GradedRow
from bedplate.evaluation.metrics import METRICS, Counts, Scoring

# Macro-F1 weighs a rare label like a common one, so its bounds may hang on a handful of groups: a resample without the
# label drops it from the mean, and one in which the label is always right hides what it would lose. Hence a least
# number of groups with each label, and ends from groups of it that were not seen, label by label.
MINIMUM_LABEL_GROUPS = 10
"""Seen without it, on 300 rows with a label that is found six times in ten: 95% lower bounds are above the truth in 34%
of samples where 1% of the rows have the label, in 8% where 2% have it."""


class RareLabel(InsufficientGroups):
    """Too few groups with one of the labels for a bound of a mean over labels."""

    def __init__(self, label: str, groups: int, needed: int) -> None:
        super().__init__(groups, needed)
        self.label = label
        self.args = (
            f"the label {label!r} is a target in {groups} groups, too few for a bound of a mean over labels; at "
            f"least {needed} are needed. Label more rows of it, or remove it from the labels",
        )


def label_groups(targets: NDArray[np.float64], groups: Sequence[str]) -> NDArray[np.int64]:
    """In how many groups each label is a target [L], from 0/1 rows [n, L]."""
    rows, labels = np.nonzero(targets)
    group_labels = {(groups[row], label) for row, label in zip(rows.tolist(), labels.tolist(), strict=True)}
    return np.bincount([label for _, label in group_labels], minlength=targets.shape[1])


def check_labels(labels: Sequence[str], group_counts: NDArray[np.int64]) -> None:
    """Raises RareLabel for the rarest label with under `MINIMUM_LABEL_GROUPS` groups [L]."""
    rarest = int(np.argmin(group_counts))
    if group_counts[rarest] < MINIMUM_LABEL_GROUPS:
        raise RareLabel(labels[rarest], int(group_counts[rarest]), MINIMUM_LABEL_GROUPS)


def unseen_macro_f1(counts: Counts, group_counts: NDArray[np.int64], a: float) -> tuple[float, float]:
    """The least and the most that macro-F1 of counts [3, L] would be if, of one label's groups (`group_counts` of them
    [L]), the share 1 - a^(1/seen) that may be of a kind that was not seen were wrong throughout, or right throughout.
    What is wrong is given to the label that this harms most, or to none."""
    right, target_counts, predicted_counts = counts
    share = 1 - a ** (1 / np.maximum(group_counts, 1))
    current_f1 = _f1(right, target_counts + predicted_counts)
    occurs = target_counts + predicted_counts > 0

    def end(moved: NDArray[np.float64], pick: Callable[..., Any]) -> float:
        """Where so many rows of a label become right (or, below 0, cease to be), for the one that `pick` takes."""
        label_delta = _f1(right + moved, target_counts + predicted_counts + moved) - current_f1
        to = np.maximum(predicted_counts - moved[:, None], right)  # [label, other]: how often the other is then given
        confusion_delta = np.where(
            np.eye(len(current_f1), dtype=bool) | ~occurs, 0.0, _f1(right, target_counts + to) - current_f1
        )
        return float(current_f1.sum() + pick(label_delta + pick(confusion_delta, axis=1))) / max(int(occurs.sum()), 1)

    return end(-right * share, np.min), end((target_counts - right) * share, np.max)


def _f1(right: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
    """2tp / (2tp + fp + fn), 0 where a label does not occur."""
    return np.divide(2 * right, total, out=np.zeros(np.broadcast(right, total).shape), where=total > 0)


@dataclass(frozen=True, repr=False)
class Evaluation(display.Brief):
    """A metric on a split. `interval` is two-sided, `lower_bound` one-sided, both at `confidence`.

    `lower_bound` is None, with the `reason`, where rows come in too few groups for a bound; the interval is then shown
    for orientation only. `unparsed` rows had no usable prediction and count as wrong. `output` is the kind of output,
    and `scoring` what the metric declares its number to be made of, which decides how it is bounded. `worst_usd`: what
    a score of 0 costs, where scores stand for costs. `seen`: of all rows of the split, how many the skin's run had in
    train, valid and test (None: nobody knows); `left_out` of them, which it was trained on or chosen by, are not among
    `rows`.
    """

    task: str
    task_hash: str
    split: str
    split_hash: str
    metric: str
    labels: tuple[str, ...]
    estimate: float
    interval: tuple[float, float]
    confidence: float
    lower_bound: float | None
    reason: str | None
    n: int
    groups: int
    icc: float | None
    design_effect: float
    unparsed: int
    seed: int
    rows: tuple[GradedRow, ...]
    output: str
    scoring: Scoring
    worst_usd: float | None = None
    seen: Mapping[str, int] | None = None
    left_out: int = 0

    @property
    def scale(self) -> Scale:
        return Scale(self.worst_usd)

    @property
    def scored_as(self) -> str:
        """What its scores are called where they are shown as they are."""
        return self.metric if self.worst_usd is None else f"1 - {self.metric} / {self.worst_usd:g}"

    def bound(self, confidence: float, side: Side = "lower") -> float:
        """One-sided bound of the metric at another confidence (Holm, repeated verdicts). Raises InsufficientGroups, and
        of a mean over labels RareLabel."""
        if self.scoring in ("binary", "answered"):
            scores, groups, weights = self.judged
            if not groups:  # nothing was answered: anything may be true
                return float(side == "upper")
            return effective_n_bound(scores, groups, confidence, side, weights=weights).value
        if self._label_groups is not None:
            check_labels(self.labels, self._label_groups)
        boot = self.bootstrap(confidence)
        return boot.lower if side == "lower" else boot.upper

    def bootstrap(self, confidence: float, minimum_groups: int = MINIMUM_GROUPS) -> Bootstrap:
        """Bounds of a metric that is no proportion. Raises InsufficientGroups."""
        group_counts = self._label_groups

        def ends(a: float) -> tuple[float, float]:
            assert group_counts is not None
            counts = self.parts.sum(0).reshape(3, len(self.labels))
            return unseen_macro_f1(counts, group_counts, a)

        return bca_of_sums(
            self.parts,
            self.of_sums,
            self._groups,
            confidence,
            seed=self.seed,
            unseen=True if group_counts is None else ends,
            minimum_groups=minimum_groups,
            weights=self.weights,
        )

    @property
    def judged(self) -> tuple[NDArray[np.float64], list[str], NDArray[np.float64] | None]:
        """Scores, groups and weights of the rows that the metric is a mean of: all, or those that were answered."""
        if self.scoring != "answered":
            return self._scores, self._groups, self.weights
        row_indices = self.judged_rows
        weights = None if self.weights is None else self.weights[row_indices]
        return self._scores[row_indices], [self._groups[row] for row in row_indices.tolist()], weights

    @property
    def judged_rows(self) -> NDArray[np.int64]:
        """The numbers of those rows."""
        return np.arange(self.n) if self.scoring != "answered" else np.flatnonzero(self.abstained == 0)

    @cached_property
    def weights(self) -> NDArray[np.float64] | None:
        """How much of the traffic each row stands for [n]; None where all weigh alike."""
        row_weights = np.array([row.weight for row in self.rows])
        return row_weights if row_weights.size and float(np.ptp(row_weights)) > 0 else None

    def statistic(self, rows: NDArray[np.int64]) -> float:
        """The metric over some of the rows, given by number (repeats allowed)."""
        return float(self.of_sums(self.parts[rows].sum(0)))

    @property
    def row_variance(self) -> float | None:
        """Variance of what one row adds to the metric, to first order (delta method): the metric of n independent rows
        has this variance over n. None for a share, whose variance its value says."""
        if self.scoring in ("binary", "answered"):
            return None
        if self.n < 2:
            return 0.0
        return float(np.var(influence(self.parts, self.of_sums), ddof=1))

    @cached_property
    def parts(self) -> NDArray[np.float64]:
        """What each row adds to the sums that the metric is made of [n, d], its weight in it."""
        unweighted = self._unweighted
        return unweighted if self.weights is None else unweighted * self.weights[:, None]

    @property
    def _unweighted(self) -> NDArray[np.float64]:
        if self.scoring == "answered":
            return np.stack([self._scores, 1.0 - self.abstained], axis=1)
        if self.scoring != "counts":
            return np.stack([self._scores, np.ones(self.n)], axis=1)
        targets = self._marks([row.target for row in self.rows])
        predictions = self._marks([row.prediction for row in self.rows])
        return np.concatenate([targets * predictions, targets, predictions], axis=1)

    def of_sums(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The metric from sums of `parts` [..., d] → [...]."""
        if self.scoring == "answered":  # nothing answered is nothing right
            right, total = sums[..., 0], sums[..., 1]
            return np.divide(right, total, out=np.zeros_like(right), where=total > 0)
        if self.scoring != "counts":
            return mean_of_sums(sums)
        whole = METRICS[self.metric].statistic
        assert whole is not None
        return whole(sums.reshape(*sums.shape[:-1], 3, len(self.labels)))

    def labels_of(self, answer: str | None) -> tuple[str, ...]:
        """The labels in a row's target or prediction: one, some or none of `labels`."""
        if answer is None or not self.labels:
            return ()
        if self.output == "labels":
            return tuple(json.loads(answer))
        return (answer,) if answer in self.labels else ()

    @property
    def coverage(self) -> float:
        """The share of rows that were answered: on which the skin did not abstain."""
        return 1.0 - float(np.average(self.abstained, weights=self.weights))

    @property
    def answered(self) -> float | None:
        """Mean row score among the answered rows; None where there is none."""
        answered_rows = np.flatnonzero(self.abstained == 0)
        weights = None if self.weights is None else self.weights[answered_rows]
        return float(np.average(self._scores[answered_rows], weights=weights)) if len(answered_rows) else None

    def __repr__(self) -> str:
        low, high = sorted(self.interval, key=self.scale.value)
        groups = f" in {self.groups:,} groups" if self.groups < self.n else ""
        format_score = self.scale.format_score
        estimate_text = f"{self.metric} {format_score(self.estimate)} ({format_score(low)} to {format_score(high)})"
        return display.line("evaluation", self.task, estimate_text, f"{self.n:,} rows of {self.split}{groups}")

    def to_json(self) -> dict[str, Any]:
        """Plain values for report.json; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], examples: Sequence[Example] = ()) -> Evaluation:
        """The evaluation that `to_json` wrote, also after a trip through a JSON file. examples: the same rows as they
        are called today; one without an id is named by its place, which changes with the rows around it."""
        plain: dict[str, Any] = dict(values)
        plain["interval"] = tuple(values["interval"])
        plain["labels"] = tuple(values["labels"])
        ids = {example.row_hash: example.id for example in examples}
        rows = [GradedRow(**row) for row in values["rows"]]
        plain["rows"] = tuple(replace(row, id=ids.get(row.row_hash, row.id)) for row in rows)
        return cls(**plain)

    @cached_property
    def _scores(self) -> np.ndarray:
        return np.array([row.score for row in self.rows])

    @cached_property
    def abstained(self) -> NDArray[np.float64]:
        """1 where the skin gave no label on purpose, which is the only answer that is kept and is no label."""
        if self.output != "label":
            return np.zeros(self.n)
        return np.array([float(row.prediction is not None and row.prediction not in self.labels) for row in self.rows])

    @cached_property
    def _label_groups(self) -> NDArray[np.int64] | None:
        """In how many groups each label is a target [L]; None where labels do not weigh alike."""
        if self.scoring != "counts" or not METRICS[self.metric].per_label:
            return None
        return label_groups(self._marks([row.target for row in self.rows]), self._groups)

    @cached_property
    def _groups(self) -> list[str]:
        return [row.group for row in self.rows]

    def _marks(self, answers: Sequence[str | None]) -> NDArray[np.float64]:
        """Labels of answers as 0/1 [n, L]."""
        number = {label: code for code, label in enumerate(self.labels)}
        marks = np.zeros((len(answers), len(self.labels)))
        for row, answer in enumerate(answers):
            marks[row, [number[label] for label in self.labels_of(answer)]] = 1.0
        return marks


def with_bounds(draft: Evaluation) -> Evaluation:
    """The evaluation of the draft's rows by its metric: estimate, interval and bound."""
    whole = replace(draft, estimate=draft.statistic(np.arange(draft.n)), interval=_interval(draft))
    scores, groups, weights = draft.judged
    if groups:
        icc = intraclass_correlation(scores, groups)
        # of `n` rows only the judged ones count: a row that is not answered is worth nothing
        effect = design_effect(scores, groups, weights) * draft.n / len(groups)
        whole = replace(whole, icc=None if math.isnan(icc) else icc, design_effect=effect)
    try:
        return replace(whole, lower_bound=whole.bound(whole.confidence))
    except InsufficientGroups as error:
        return replace(whole, reason=error.message)


def _interval(draft: Evaluation) -> tuple[float, float]:
    try:
        if draft.scoring not in ("binary", "answered"):
            return draft.bootstrap(draft.confidence, 2).interval
        scores, groups, weights = draft.judged
        if groups:
            return effective_n_interval(scores, groups, draft.confidence, minimum_groups=2, weights=weights)
    except InsufficientGroups:  # one group says nothing about others
        pass
    return 0.0, 1.0


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
    """Paired comparison of two evaluations of one metric on the same rows (matched by hash, in any order). Means of
    rows: exact McNemar where rows are independent and 0/1, otherwise the clustered sign-flip. Statistics of all rows: a
    swap test and the cluster bootstrap of the difference. Raises UsageError where metric, split or rows differ."""
    rows = _paired(a, b)
    groups = [row.group for row in a.rows]
    if a.scoring not in ("counts", "answered"):
        paired = paired_difference(
            [row.score for row in a.rows],
            [row.score for row in rows],
            groups,
            confidence,
            seed=seed,
            binary=a.scoring == "binary",
            weights=a.weights,
        )
        difference, interval, p_value, test = paired.difference, paired.interval, paired.p_value, paired.test
    else:
        difference, interval, p_value = _compare_statistic(a, replace(b, rows=tuple(rows)), groups, seed, confidence)
        interval = agreeing(interval, p_value, confidence)
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
    """How much worse `after` is than `before` on the same rows, with one-sided bounds: for non-inferiority. Rows that
    do not change say little of those that were not seen: the bounds are never nearer than what `independent_rows` could
    hide. scattered: as for `mean_drop`. A statistic of all rows has the bootstrap's bounds. Raises UsageError as
    `compare`."""
    from scipy.special import ndtri

    rows = _paired(before, after)
    units = min(independent_rows(before), independent_rows(after))
    if before.scoring in ("binary", "real"):
        scores, groups = [row.score for row in before.rows], [row.group for row in before.rows]
        later = [row.score for row in rows]
        return mean_drop(scores, later, groups, confidence, units=units, weights=before.weights, scattered=scattered)
    groups, after = [row.group for row in before.rows], replace(after, rows=tuple(rows))
    drop, (low, high), _ = _compare_statistic(before, after, groups, seed, 2 * confidence - 1)
    se = (high - low) / 2 / float(ndtri(confidence))
    if not enough_groups(groups):
        return Drop(drop, None, None, se, confidence, before.n, before.groups)
    unseen = hidden(units, confidence)
    return Drop(drop, min(low, drop - unseen), max(high, drop + unseen), se, confidence, before.n, before.groups)


def independent_rows(evaluation: Evaluation) -> float:
    """What an evaluation's rows are worth as independent ones, by the design effect of its own scores (as in
    `effective_n_bound`) and no more than their weights leave; of a mean over labels, what those of the rarest label are
    worth."""
    rows = float(evaluation.n)
    if evaluation.scoring == "counts" and METRICS[evaluation.metric].per_label:
        target_labels = [label for row in evaluation.rows for label in evaluation.labels_of(row.target)]
        rows = float(max(min(target_labels.count(label) for label in evaluation.labels), 1))
    by_weight = rows if evaluation.weights is None else worth(evaluation.weights)
    return max(min(rows / max(evaluation.design_effect, 1.0), by_weight), 1.0)


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

    p_value = swap_test(swapped, groups, seed=seed)
    difference = a.estimate - b.estimate
    try:
        boot = bca_of_sums(
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
