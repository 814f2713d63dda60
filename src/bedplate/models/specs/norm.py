"""Norms and fixed factors as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bedplate.models.specs.checks import finite, positive

NormPlacement = Literal["pre", "post", "sandwich", "branch"]


@dataclass(frozen=True)
class NormSpec:
    """The norms of a stack.

    placement: "pre" normalises each block's input, "post" its residual sum, "branch" what attention and feed-forward
        give before it is added (OLMo-2), "sandwich" both input and what they give (Gemma-2).
    weight, bias: whether the norms have them (an RMS norm never has a bias).
    offset: added to the norms' weights (Gemma: 1, which its weights are the distance from).
    first: False: the first block's attention takes its input as it is (ModernBERT).
    embedding, final: whether embeddings, and the last block's states, are normalised; None: an encoder's embeddings
        are, and a decoder's states.
    """

    type: Literal["rms", "layer"] = "rms"
    eps: float = 1e-5
    placement: NormPlacement = "pre"
    weight: bool = True
    bias: bool = True
    offset: float = 0.0
    first: bool = True
    embedding: bool | None = None
    final: bool | None = None


@dataclass(frozen=True)
class Scales:
    """Factors and caps that change values but no count.

    embedding: on the token embeddings (Gemma: √hidden). attention: of the scores, where it is not 1/√head_dim.
    attention_cap and logit_cap: x → cap·tanh(x/cap) of scores and logits (Gemma-2). head: on the states before the head
    (T5 v1.0: 1/√hidden; Granite). residual: on what attention and feed-forward give before it is added (Granite).
    """

    embedding: float = 1.0
    attention: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    head: float = 1.0
    residual: float = 1.0

    def __post_init__(self) -> None:
        finite(self, "embedding", "attention", "head", "residual")
        positive(self, "attention_cap", "logit_cap")
