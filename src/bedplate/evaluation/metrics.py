"""How predictions are scored. A metric is a mean of row scores, or a statistic of all rows at once (macro-F1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bedplate.data.splits import normalise

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Metric:
    """`row(target, prediction)` scores one row 0 or 1 (prediction None: nothing could be parsed, always wrong).

    `statistic(targets, predictions, labels)`, where there is one, replaces the mean of rows: label codes [n], -1 for a
    prediction outside the labels, and the number of labels. `outputs` are the kinds of output the metric fits.
    """

    name: str
    outputs: tuple[str, ...]
    row: Callable[[str, str | None], float]
    statistic: Callable[[Codes, Codes, int], float] | None = None


def _same(target: str, prediction: str | None) -> float:
    """Equal as they are: labels, and JSON in its canonical form."""
    return float(target == prediction)


def _same_normalised(target: str, prediction: str | None) -> float:
    """Equal after NFKC, case folding and collapsing whitespace; punctuation and articles count."""
    return float(prediction is not None and normalise(target) == normalise(prediction))


def macro_f1(targets: Codes, predictions: Codes, labels: int) -> float:
    """Mean of the labels' F1 = 2tp / (2tp + fp + fn), over the labels that occur as a target or a prediction."""
    right = np.bincount(targets[targets == predictions], minlength=labels)
    wanted = np.bincount(targets, minlength=labels)
    given = np.bincount(predictions[predictions >= 0], minlength=labels)
    total = wanted + given
    occurs = total > 0
    return float((2 * right[occurs] / total[occurs]).mean()) if occurs.any() else 0.0


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", ("label",), _same),
    "macro_f1": Metric("macro_f1", ("label",), _same, macro_f1),
    "json_match": Metric("json_match", ("json",), _same),
    "exact_match": Metric("exact_match", ("text", "label"), _same_normalised),
}
