"""From a linear head's numbers to labels: what the recipes share, which the exporter writes into each of them."""

from __future__ import annotations

from typing import Any

import numpy as np


def log_probabilities(logits: np.ndarray, output: dict[str, Any]) -> np.ndarray:
    """Log-probabilities [N, C] of the labels: among them all, or where several may be right, of each by itself."""
    if output["kind"] == "labels":
        return -np.logaddexp(0.0, -logits)
    highest = logits.max(axis=1, keepdims=True)
    return logits - highest - np.log(np.exp(logits - highest).sum(axis=1, keepdims=True))


def labels_of(log_scores: np.ndarray, output: dict[str, Any]) -> list[Any]:
    """The label of each row of log-probabilities (or what is said where it is too unsure), or its list of labels."""
    if output["kind"] == "labels":
        chosen = log_scores >= np.log(output["threshold"])
        return [[label for label, is_chosen in zip(output["labels"], row, strict=True) if is_chosen] for row in chosen]
    labels = [output["labels"][i] for i in log_scores.argmax(axis=1)]
    unsure = output.get("abstain")
    if unsure is None:
        return labels
    below = log_scores.max(axis=1) < np.log(unsure["below"])
    return [unsure["answer"] if no else label for label, no in zip(labels, below, strict=True)]
