"""An objective in one file: two terms with denominators of their own, a field of its own in the batch, metrics, and a
second model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bedplate.training.batch import PackedBatch
from bedplate.training.objectives.objective import Models, Scope, Term
from bedplate.training.objectives.token_term import token_losses
from bedplate.training.sources import ExampleSource


@dataclass(frozen=True)
class RatedBatch(PackedBatch):
    """ratings: [S], one number for each example."""

    ratings: Tensor


class RatedSource(ExampleSource):
    """Examples whose rating is the length of their name."""

    def _micro_batches(self, numbers: list[int]) -> Iterable[RatedBatch]:
        for batch in super()._micro_batches(numbers):
            yield RatedBatch(**vars(batch), ratings=torch.tensor([float(len(id)) for id in batch.ids]))


class LikelihoodAndRating:
    """What is said is likely, and the features of an example's last token have its rating as their mean."""

    name: ClassVar[str] = "toy"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference")
    scope: ClassVar[Scope] = "row"

    def weights(self, batch: RatedBatch) -> dict[str, float]:
        return {"likelihood": float(batch.target_count), "rating": float(len(batch.ids))}

    def __call__(self, models: Models, batch: RatedBatch) -> dict[str, Term]:
        policy, attend = models["policy"], batch.inputs.layout(causal=True)
        hidden_TD = policy(batch.inputs, attend).hidden[0]
        targets_N = batch.targets[0, batch.learned]
        policy_losses = token_losses(policy, hidden_TD[batch.learned], targets_N)
        with torch.no_grad():
            before_TD = models["reference"](batch.inputs, attend).hidden[0]
            before = token_losses(models["reference"], before_TD[batch.learned], targets_N)
        ends = torch.tensor(batch.lengths).cumsum(0)[1:] - 1
        error = hidden_TD[ends].mean(-1) - batch.ratings
        return {
            "likelihood": Term(policy_losses, float(batch.target_count), {"reference": before}),
            "rating": Term(error.square().sum(), float(len(batch.ids)), {"error": error.abs().sum()}),
        }
