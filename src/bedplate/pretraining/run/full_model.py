"""The whole model of a run whose parts several processes hold, for the one that judges and writes it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from bedplate.models.build import build
from bedplate.models.checkpoints.base import Base
from bedplate.training.ranks import Ranks


def gathered(base: Base, ranks: Ranks, dtype: torch.dtype | None = None) -> Base:
    """On the main rank the base with a model of its own that has all of the weights as they are now, which is freed
    with it; on the others, who must ask as well, and in a single process, the base itself. dtype: of the copy's
    parameters; None: as they are held."""
    if ranks.world == 1:
        return base
    from bedplate.training.parallel.apply import whole_state

    state: dict[str, Tensor] = {}
    parameters = {name for name, _ in base.model.named_parameters()}
    for name, tensor in whole_state(base.model):
        if ranks.main:
            target_dtype = dtype if name in parameters and dtype is not None else tensor.dtype
            state[name] = tensor.to(base.device, target_dtype, copy=True)
    if not ranks.main:
        return base
    model = build(base.spec, dtype or base.dtype, "meta")
    model.load_state_dict(state, assign=True)
    model.requires_grad_(False)
    return replace(base, raw_model=model, dtype=dtype or base.dtype, lineage=dict(base.lineage))
