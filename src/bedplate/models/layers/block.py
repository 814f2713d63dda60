"""One transformer block: attention and feed-forward, each with a residual and a norm before or after."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bedplate.models.layers.attention import Attend, Attention
from bedplate.models.layers.feedforward import FeedForward
from bedplate.models.layers.norms import LayerNorm, RMSNorm
from bedplate.models.layers.positions import Rotation
from bedplate.models.specs.transformer import TransformerSpec


def make_norm(spec: TransformerSpec, device: torch.device | str | None, dtype: torch.dtype) -> RMSNorm | LayerNorm:
    """The spec's norm over the hidden size."""
    kind = RMSNorm if spec.norm == "rms" else LayerNorm
    return kind(spec.hidden_size, spec.norm_eps, device, dtype)


class Block(nn.Module):
    """Pre-norm (https://arxiv.org/abs/2002.04745) or post-norm, by the spec."""

    def __init__(
        self, spec: TransformerSpec, layer: int, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.pre = spec.norm_placement == "pre"
        self.attention_norm = make_norm(spec, device, dtype)
        self.attention = Attention(spec, layer, device, dtype)
        self.feedforward_norm = make_norm(spec, device, dtype)
        self.feedforward = FeedForward(spec, device, dtype)

    def forward(self, x_BTD: Tensor, by: Rotation | None, attend: Attend) -> Tensor:
        if self.pre:
            x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), by, attend)
            return x_BTD + self.feedforward(self.feedforward_norm(x_BTD))
        x_BTD = self.attention_norm(x_BTD + self.attention(x_BTD, by, attend))
        return self.feedforward_norm(x_BTD + self.feedforward(x_BTD))
