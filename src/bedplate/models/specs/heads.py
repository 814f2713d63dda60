"""What an encoder's checkpoint has behind its last block: a classifier, or the head of pretraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.core.errors import UnsupportedModelError
from bedplate.models.specs.feedforward import Activation

Problem = Literal["one", "any", "score"]


@dataclass(frozen=True)
class Classifier:
    """A checkpoint's own head: scores of labels from one vector of a text.

    problem: "one" of the labels is right (softmax), "any" number of them (sigmoid of each), or the scores are numbers
    ("score"). raw: a single label's score is given as it is; otherwise its sigmoid, as cross-encoders do.
    on_pooler: reads the pooler's features of the first token (BERT). Else the states are pooled ("first" token or
    "mean") and, with `dense`, pass a layer of the head's own with this activation, and with `norm` the spec's norm
    after it (RoBERTa, ModernBERT).
    """

    labels: tuple[str, ...]
    problem: Problem = "one"
    raw: bool = False
    pooling: Literal["first", "mean"] = "first"
    on_pooler: bool = False
    dense: bool = False
    dense_bias: bool = True
    activation: Activation | Literal["tanh"] = "tanh"
    norm: bool = False

    def __post_init__(self) -> None:
        if not self.labels:
            raise UnsupportedModelError("a classifier needs at least one label")
        if len(set(self.labels)) < len(self.labels):
            raise UnsupportedModelError(f"a classifier's labels must differ; these are {', '.join(self.labels)}")
        if self.on_pooler and (self.dense or self.pooling != "first"):
            raise UnsupportedModelError("a classifier on the pooler has no dense layer or pooling of its own")


@dataclass(frozen=True)
class MaskedHead:
    """An encoder's head that says which tokens stood where some were hidden (BERT, https://arxiv.org/abs/1810.04805):
    a layer with this activation and the spec's norm, then the token table, and with `bias` one number a token."""

    activation: Activation = "gelu"
    dense_bias: bool = True
    bias: bool = True
