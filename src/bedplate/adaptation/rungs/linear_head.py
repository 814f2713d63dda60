"""Linear heads on features: logistic regression of one label out of some, or of each label by itself.

Scale is taken out of the features and folded into the head; C is chosen by cross-validation over whole groups. How sure
a head is, is brought to what other rows show (temperature scaling, Guo et al., arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bedplate.adapters.head import Head

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
SURE = 20.0
"""The log-odds of what every row has, or none."""

Floats = NDArray[np.float64]
Regression = Callable[[Any, NDArray[Any], float], tuple[Floats, Floats]]
"""Features [N, D], dense or sparse, classes [N], and C → coefficients and intercepts, as scikit-learn has them."""


@dataclass(frozen=True)
class OneOf:
    """The right answers of some rows, as a head learns them, where each has one label. codes: which, int [N]."""

    codes: NDArray[np.int64]
    labels: tuple[str, ...]

    @classmethod
    def of(cls, targets: Sequence[str], labels: Sequence[str]) -> OneOf:
        return cls(np.array([labels.index(target) for target in targets]), tuple(labels))

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def marks(self) -> Floats:
        """1 for each label that is right, else 0: [N, C]."""
        return np.eye(len(self.labels))[self.codes]

    def rows(self, chosen: NDArray[np.intp]) -> OneOf:
        return OneOf(self.codes[chosen], self.labels)

    def regression(self, x_ND: Any, strength: float, by: Regression | None = None) -> tuple[Floats, Floats]:
        """Weights [C, D] and biases [C] of logistic regression with C = strength. by: what fits it, where that is not
        what suits dense features. A label without a row keeps a weight of zero and a bias of -20."""
        weight, bias = np.zeros((len(self.labels), x_ND.shape[1])), np.full(len(self.labels), -SURE)
        present = np.unique(self.codes)
        if len(present) == 1:
            bias[present[0]] = 0.0
            return weight, bias
        coefficients, intercepts = (by or _logistic)(x_ND, self.codes, strength)
        if len(present) == 2:  # scikit-learn keeps one row for two classes: the second's log-odds
            weight[present[0]], weight[present[1]] = -coefficients[0] / 2, coefficients[0] / 2
            bias[present[0]], bias[present[1]] = -intercepts[0] / 2, intercepts[0] / 2
        else:
            weight[present], bias[present] = coefficients, intercepts
        return weight, bias

    def loss(self, logits_NC: Floats) -> float:
        """Minus the log-likelihood of all rows."""
        from scipy.special import log_softmax

        return -float(log_softmax(logits_NC, axis=1)[np.arange(len(self)), self.codes].sum())


@dataclass(frozen=True)
class AnyOf:
    """The same where each row has any of the labels, each by itself. marks: which, 0/1 [N, C]."""

    marks: Floats
    labels: tuple[str, ...]

    @classmethod
    def of(cls, chosen: Sequence[Sequence[str]], labels: Sequence[str]) -> AnyOf:
        marks = [[float(label in row_labels) for label in labels] for row_labels in chosen]
        return cls(np.array(marks).reshape(len(chosen), len(labels)), tuple(labels))

    def __len__(self) -> int:
        return len(self.marks)

    def rows(self, chosen: NDArray[np.intp]) -> AnyOf:
        return AnyOf(self.marks[chosen], self.labels)

    def regression(self, x_ND: Any, strength: float, by: Regression | None = None) -> tuple[Floats, Floats]:
        """A label that every row has, or none, keeps a weight of zero and a bias of ±20."""
        weight, bias = np.zeros((len(self.labels), x_ND.shape[1])), np.zeros(len(self.labels))
        for code, marks in enumerate(self.marks.T):
            if marks.min() == marks.max():
                bias[code] = SURE if marks[0] else -SURE
            else:
                coefficients, intercepts = (by or _logistic)(x_ND, marks, strength)
                weight[code], bias[code] = coefficients[0], intercepts[0]
        return weight, bias

    def loss(self, logits_NC: Floats) -> float:
        return float((np.logaddexp(0.0, logits_NC) - self.marks * logits_NC).sum())


HeadTargets = OneOf | AnyOf


def fit_head(
    features_ND: NDArray[np.float32], targets: HeadTargets, groups: Sequence[str], folds: int
) -> tuple[Head, float]:
    """The head on the features as they are (mean and scale folded in), and its C."""
    from sklearn.model_selection import GroupKFold

    mean, scale = features_ND.mean(axis=0, dtype=np.float64), features_ND.std(axis=0, dtype=np.float64)
    scale[scale < 1e-6] = 1.0
    x = (features_ND - mean) / scale
    folds = min(folds, len(set(groups)))
    losses: dict[float, float] = {}
    if folds >= 2:
        for strength in STRENGTHS:
            losses[strength] = 0.0
            for fit, holdout in GroupKFold(folds).split(x, groups=groups):
                weight, bias = targets.rows(fit).regression(x[fit], strength)
                losses[strength] += targets.rows(holdout).loss(x[holdout] @ weight.T + bias)
    strength = min(losses, key=lambda c: losses[c]) if losses else 1e-2
    weight, bias = targets.regression(x, strength)
    folded = weight / scale
    rows, shift = torch.tensor(folded, dtype=torch.float32), torch.tensor(bias - folded @ mean, dtype=torch.float32)
    return Head(rows, shift, targets.labels), strength


def tempered(head: Head, features_ND: NDArray[np.float32], targets: HeadTargets) -> tuple[Head, float]:
    """The head with its logits divided by the temperature under which these rows are likeliest; no ranking changes."""
    from scipy.optimize import minimize_scalar

    logits = head(torch.from_numpy(features_ND)).double().numpy()

    def loss(log_t: float) -> float:
        # a slight pull towards 1, so that rows which are all right do not make the head certain of everything
        return targets.loss(logits / np.exp(log_t)) / len(targets) + 1e-2 * log_t**2

    best: Any = minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded")
    temperature = float(np.exp(float(best.x)))
    return Head(head.weight / temperature, head.bias / temperature, head.labels), temperature


def _logistic(x_ND: Floats, codes: NDArray[Any], strength: float) -> tuple[Floats, Floats]:
    from sklearn.linear_model import LogisticRegression

    with one_thread():
        model = LogisticRegression(C=strength, max_iter=400, tol=1e-3).fit(x_ND, codes)
    return model.coef_, model.intercept_


def one_thread() -> AbstractContextManager[object]:
    """One thread for scikit-learn's products: so small a problem gains nothing from threads, and on a busy machine they
    wait for each other."""
    return _pools().limit(limits=1)


@cache
def _pools() -> Any:
    """The thread pools of this process. They are looked for once: that reads all that the process has mapped, which
    takes longer than a small fit."""
    from threadpoolctl import ThreadpoolController

    import_module("sklearn.linear_model")  # whose libraries are to be among them
    return ThreadpoolController()
