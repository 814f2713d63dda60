"""Modules after the last block that predict further tokens (DeepSeek-V3, https://arxiv.org/abs/2412.19437).

Module m makes of its predecessor's state of a token and of the token m places on the state from which the one after
that is predicted. They share the model's token table and its head.

Shapes: B rows, T tokens, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bedplate.models.layers.attention import Attend
from bedplate.models.layers.block import Block
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import make_norm
from bedplate.models.layers.positions import Rotation
from bedplate.models.specs.transformer import TransformerSpec


class PredictionModule(nn.Module):
    """Number `number` of them, counted from 0."""

    def __init__(
        self, spec: TransformerSpec, number: int, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        hidden = spec.hidden_size
        self.token_norm, self.state_norm = make_norm(spec, device, dtype), make_norm(spec, device, dtype)
        self.join = Linear(2 * hidden, hidden, False, device, dtype)
        self.block = Block(spec, spec.layers + number, device, dtype)
        self.norm = make_norm(spec, device, dtype)

    def forward(self, state_BTD: Tensor, token_BTD: Tensor, by: Rotation | None, attend: Attend) -> Tensor:
        """From the states before it and the embeddings of the tokens that are known by now."""
        joined = torch.cat((self.token_norm(token_BTD), self.state_norm(state_BTD)), dim=-1)
        return self.norm(self.block(self.join(joined), by, attend))
