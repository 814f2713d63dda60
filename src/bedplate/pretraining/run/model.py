"""First weights of a model that is trained from nothing."""

from __future__ import annotations

import torch

from bedplate.models.build import build
from bedplate.models.model import Model
from bedplate.models.specs import TextSpec

_OUTPUTS = ("attention.o.weight", "feedforward.down.weight")
"""The products whose results are added to the residual."""


def new_model(spec: TextSpec, seed: int) -> Model:
    """First weights, drawn from `seed`: normal, of a standard deviation of 1/√inputs, and 1/√(2·layers) of that where a
    block's parts end in the residual, which so does not grow with depth (GPT-2, section 2.3)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(spec)
    layers = spec.main.layers
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_OUTPUTS):
                parameter.mul_((2 * layers) ** -0.5)
    return model
