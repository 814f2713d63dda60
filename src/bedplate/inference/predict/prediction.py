"""One row's answer, as every skin gives it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bedplate.core import display


@dataclass(frozen=True, repr=False)
class Prediction:
    """One row's answer.

    output: the parsed output (a label, a text). scores: each label's log-probability among the labels, or of being one
    of the right ones where there may be several. text: what was generated, or the label. seconds: wall time of the
    row's own call, or its share of its batch. usd: what a remote model charged for it, None where machine time is the
    whole cost, or no price is known. passed_on: a cascade's second skin was asked. passages: what the prompt held of
    documents (`citations`). finish_reason: why a generated text ended ("length": it was cut off), as the engine or the
    server says; None where none was generated.
    """

    output: str
    text: str
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    usd: float | None = None
    passed_on: bool = False
    passages: tuple[Mapping[str, Any], ...] = ()
    finish_reason: str | None = None

    def __repr__(self) -> str:
        sure = self.probabilities.get(self.output)
        confidence = None if sure is None else f"probability {sure:.3f}"
        return display.line(
            "prediction", repr(display.shortened(self.output, 80)), confidence, f"{1000 * self.seconds:.1f} ms"
        )

    @property
    def probabilities(self) -> dict[str, float]:
        """Each label's probability: `scores`, from logarithms."""
        return {label: math.exp(score) for label, score in self.scores.items()}
