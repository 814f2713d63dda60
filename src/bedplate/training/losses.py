"""The loss of a model on batches that it does not learn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from bedplate.training.batch import MicroBatch
from bedplate.training.objectives import AnyModel, Models, Objective

B = TypeVar("B", bound=MicroBatch)


@torch.no_grad()
def evaluate_loss(models: AnyModel | Models, batches: Iterable[B], objective: Objective[B]) -> dict[str, float]:
    """Each term's loss over all batches, weighted exactly, with the models in evaluation mode."""
    roles: Models = models if isinstance(models, Mapping) else {"policy": models}
    device = next(next(iter(roles.values())).parameters()).device
    modes = [(m, m.training) for model in roles.values() for m in model.modules()]
    totals: dict[str, list[Tensor]] = {}
    weights: dict[str, float] = {}
    try:
        for model in roles.values():
            model.train(False)
        for batch in batches:
            objective.weights(batch)  # which may read the batch, and does so where it is
            for name, term in objective(roles, batch.to(device)).items():
                totals.setdefault(name, []).append(term.total)
                weights[name] = weights.get(name, 0.0) + term.weight
    finally:
        for module, mode in modes:
            module.training = mode
    return {name: sum(torch.stack(term_totals).tolist()) / weights[name] for name, term_totals in totals.items()}
