"""How predictions are scored. A metric is a mean of row scores, or a statistic of all rows at once (macro-F1).

Targets and predictions are texts: a label, a text, JSON in canonical form, or a JSON list of labels or document ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bedplate.core.values import Values
from bedplate.data.splits import normalise
from bedplate.evaluation.metrics_json import json_fields
from bedplate.evaluation.metrics_ranking import ndcg_at, recall_at, reciprocal_rank_at
from bedplate.evaluation.metrics_text import chrf, rouge_1, rouge_2, rouge_l, squad_exact, token_f1

Counts = NDArray[np.float64]
"""[..., 3, L]: for each label how often it was rightly given, wanted, and given."""

Scoring = Literal["binary", "real", "counts", "answered"]
"""What a metric's number is made of, declared and never guessed from values: the mean of rows that score 0 or 1, of all
or of those that were answered (both: bounds on the effective n), the mean of rows that score in 0 to 1, or a statistic
of label counts (both: cluster bootstrap)."""


@dataclass(frozen=True)
class AnsweredRow:
    """What a row's score may depend on. `prediction` is canonical; None where nothing could be parsed."""

    id: str
    inputs: Values
    target: str
    prediction: str | None


class Scorer(Protocol):
    """Scores rows in 0 to 1, one number for each in order. `name` and `scoring` are kept with the evaluation."""

    @property
    def name(self) -> str: ...
    @property
    def scoring(self) -> Scoring: ...
    def ready(self) -> None:
        """Raises what would otherwise come out after a model was asked for everything: a key that is not set."""
        ...

    def score(self, rows: Sequence[AnsweredRow]) -> list[float]: ...


@dataclass(frozen=True)
class Metric:
    """`row(target, prediction)` scores one row in 0 to 1 (prediction None: nothing could be parsed, always 0).

    `real`: rows may score between 0 and 1. `selective`: rows without an answer, where the skin abstained, do not count.
    `statistic`, where there is one, replaces the mean of rows: it takes counts [..., 3, L] summed over rows, and gives
    [...]. `per_label`: it is a mean over labels. `outputs` are the kinds of output the metric fits.
    """

    name: str
    outputs: tuple[str, ...]
    row: Callable[[str, str | None], float]
    real: bool = False
    selective: bool = False
    statistic: Callable[[Counts], NDArray[np.float64]] | None = None
    per_label: bool = False

    @property
    def scoring(self) -> Scoring:
        if self.statistic is not None:
            return "counts"
        if self.selective:
            return "answered"
        return "real" if self.real else "binary"

    def ready(self) -> None:
        """A metric of the table needs nothing."""

    def score(self, rows: Sequence[AnsweredRow]) -> list[float]:
        return [self.row(row.target, row.prediction) for row in rows]


def _exact_match(target: str, prediction: str | None) -> float:
    """Equal as they are: labels, and JSON in its canonical form."""
    return float(target == prediction)


def _same_normalised(target: str, prediction: str | None) -> float:
    """Equal after NFKC, case folding and collapsing whitespace; punctuation and articles count."""
    return float(prediction is not None and normalise(target) == normalise(prediction))


def macro_f1(counts: Counts) -> NDArray[np.float64]:
    """Mean of the labels' F1 = 2tp / (2tp + fp + fn), over the labels that occur as a target or a prediction."""
    right, total = counts[..., 0, :], counts[..., 1, :] + counts[..., 2, :]
    occurs = total > 0
    label_f1 = np.divide(2 * right, total, out=np.zeros_like(right), where=occurs)
    return label_f1.sum(-1) / np.maximum(occurs.sum(-1), 1)


def micro_f1(counts: Counts) -> NDArray[np.float64]:
    """F1 of all (row, label) pairs together; 1 where no label is wanted and none is given."""
    right, total = counts[..., 0, :].sum(-1), (counts[..., 1, :] + counts[..., 2, :]).sum(-1)
    return np.divide(2 * right, total, out=np.ones_like(right), where=total > 0)


def example_f1(target: str, prediction: str | None) -> float:
    """F1 of one row's set of labels: 1 where none is wanted and none is given."""
    if prediction is None:
        return 0.0
    target_labels, predicted_labels = set(json.loads(target)), set(json.loads(prediction))
    return (
        2 * len(target_labels & predicted_labels) / (len(target_labels) + len(predicted_labels))
        if target_labels or predicted_labels
        else 1.0
    )


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", ("label",), _exact_match),
    "macro_f1": Metric("macro_f1", ("label", "labels"), _exact_match, statistic=macro_f1, per_label=True),
    "selective_accuracy": Metric("selective_accuracy", ("label",), _exact_match, selective=True),
    "micro_f1": Metric("micro_f1", ("labels",), _exact_match, statistic=micro_f1),
    "labels_match": Metric("labels_match", ("labels",), _exact_match),
    "example_f1": Metric("example_f1", ("labels",), example_f1, real=True),
    "json_match": Metric("json_match", ("json",), _exact_match),
    "json_fields": Metric("json_fields", ("json",), json_fields, real=True),
    "exact_match": Metric("exact_match", ("text", "label"), _same_normalised),
    "squad_exact": Metric("squad_exact", ("text",), squad_exact),
    "token_f1": Metric("token_f1", ("text",), token_f1, real=True),
    "rouge_1": Metric("rouge_1", ("text",), rouge_1, real=True),
    "rouge_2": Metric("rouge_2", ("text",), rouge_2, real=True),
    "rouge_l": Metric("rouge_l", ("text",), rouge_l, real=True),
    "chrf": Metric("chrf", ("text",), chrf, real=True),
    "ndcg@10": Metric("ndcg@10", ("embedding",), ndcg_at(10), real=True),
    "mrr@10": Metric("mrr@10", ("embedding",), reciprocal_rank_at(10), real=True),
    "recall@1": Metric("recall@1", ("embedding",), recall_at(1), real=True),
    "recall@10": Metric("recall@10", ("embedding",), recall_at(10), real=True),
    "recall@100": Metric("recall@100", ("embedding",), recall_at(100), real=True),
}
