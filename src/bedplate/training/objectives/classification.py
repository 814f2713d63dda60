"""Text classification: a linear head on the pooled states of a base, trained together with it.

Shapes: N texts, D features, C labels.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.core.errors import UsageError
from bedplate.models.model import Model
from bedplate.training.batch import TextBatch, pooled
from bedplate.training.objectives.objective import Models, Scope, Term


class ClassificationObjective:
    """Cross-entropy of the right label, or binary cross-entropy of each label where any number may be right
    (`several`).

    weight [C, D], bias [C]: the head, float32, on the states after `depth` blocks, before any norm that follows them;
    `pooling` is "mean" or "first", as in a probe. They are trained if they are among the run's trainable parameters.
    """

    name: ClassVar[str] = "classification"
    roles: ClassVar[tuple[str, ...]] = ("policy",)
    scope: ClassVar[Scope] = "row"

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter, depth: int, pooling: str, several: bool) -> None:
        self.weight, self.bias, self.depth, self.pooling, self.several = weight, bias, depth, pooling, several

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The head's parameters by name."""
        return [("head.weight", self.weight), ("head.bias", self.bias)]

    def weights(self, batch: TextBatch) -> dict[str, float]:
        return {self.name: float(len(batch.ids))}

    def __call__(self, models: Models, batch: TextBatch) -> dict[str, Term]:
        model = models["policy"]
        if not isinstance(model, Model):
            raise UsageError(f"{self.name} needs a base whose states after {self.depth} blocks can be read")
        states_TD = model(batch.inputs, depth=self.depth).hidden[0]
        features_ND = pooled(states_TD, batch.segments[0], len(batch.ids), self.pooling)
        logits_NC = F.linear(features_ND, self.weight.to(features_ND), self.bias.to(features_ND))
        return {self.name: Term(self._loss(logits_NC, batch.targets), float(len(batch.ids)))}

    def _loss(self, logits_NC: Tensor, targets_NC: Tensor) -> Tensor:
        targets_NC = targets_NC.to(logits_NC)
        if self.several:
            return F.binary_cross_entropy_with_logits(logits_NC, targets_NC, reduction="sum")
        return -(targets_NC * torch.log_softmax(logits_NC, dim=-1)).sum()
