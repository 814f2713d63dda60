"""Bounds of macro-F1, in which a rare label weighs as much as a common one and so may hang on a handful of groups.

A resample without the label drops it from the mean, and one in which the label is always right hides what it would
lose. Hence a least number of groups with the label, and ends from groups of it that were not seen, label by label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.statistics import InsufficientGroups
from bedplate.evaluation.metrics import Counts

MINIMUM_LABEL_GROUPS = 10
"""Seen without it, on 300 rows with a label that is found six times in ten: 95% lower bounds are above the truth in 34%
of samples where 1% of the rows have the label, in 8% where 2% have it."""


class RareLabel(InsufficientGroups):
    """Too few groups with one of the labels for a bound of a mean over labels."""

    def __init__(self, label: str, groups: int, needed: int) -> None:
        super().__init__(groups, needed)
        self.label = label
        self.args = (
            f"the label {label!r} is a target in {groups} groups, too few for a bound in which every label weighs "
            f"alike; at least {needed} are needed: label more rows of it, or take it off the list",
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
    """The least and the most that macro-F1 of counts [3, L] would be if, of one label's groups (`group_counts` of them [L]),
    the share 1 - a^(1/seen) that may be of a kind that was not seen were wrong throughout, or right throughout.

    What is wrong is given to the label that this harms most, or to none.
    """
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
