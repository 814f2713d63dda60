"""Short causal convolutions, each feature by itself; and LFM2's mixer, which is one between two gates
(https://arxiv.org/abs/2511.23404).

Shapes: S sequences, L tokens, C features, W weights of a feature, of which the last is the token's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bedplate.models.layers.attention import Attend
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.positions import Rotation
from bedplate.models.layers.recurrence_inputs import State
from bedplate.models.precision import Device
from bedplate.models.specs.state_mixers import ShortConvolution
from bedplate.models.specs.transformer import TransformerSpec


class CausalConvolution(nn.Module):
    """y_t = Σ_w weight[:, w] · x_{t−W+1+w} + bias. What is before a sequence's beginning is zero."""

    bias: nn.Parameter | None

    def __init__(self, features: int, width: int, bias: bool, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(features, width, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(features, device=device, dtype=dtype)) if bias else None
        )
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, x_SLC: Tensor, lengths_S: Tensor | None, before_SwC: Tensor | None) -> tuple[Tensor, Tensor]:
        """Outputs [S, L, C] and the last W − 1 inputs, before which `before` were the last ones (see `Recurrence`)."""
        (S, L, C), w = x_SLC.shape, self.width - 1
        x = torch.cat((x_SLC.new_zeros(S, w, C) if before_SwC is None else before_SwC, x_SLC), dim=1)
        # One sum for each weight: the same for any number of tokens at once, and as fast as a kernel for so few.
        y = x[:, w:] * self.weight[:, w]
        for at in range(w):
            y = y + x[:, at : at + L] * self.weight[:, at]
        if lengths_S is None:
            last = x[:, L:]
        else:
            index = (lengths_S[:, None] + torch.arange(w, device=x.device))[..., None].expand(S, w, C)
            last = x.gather(1, index)
        return (y if self.bias is None else y + self.bias), last


class ConvolutionMixer(nn.Module):
    """`out(c ⊙ convolution(b ⊙ x))`, where b, c and x are projections of the input."""

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        part, D = spec.state.mixer, spec.hidden_size
        assert isinstance(part, ShortConvolution)
        self.layer = layer
        self.input = Linear(D, 3 * D, part.bias, device, dtype)
        self.convolution = CausalConvolution(D, part.width, part.bias, device, dtype)
        self.output = Linear(D, D, part.bias, device, dtype)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        b, c, x = self.input(x_BTD).chunk(3, dim=-1)
        return self.output(c * attend.recur(self.layer, self._run, b * x))

    def _run(self, x_SLC: Tensor, lengths_S: Tensor | None, before: State | None) -> tuple[Tensor, State]:
        y, last = self.convolution(x_SLC, lengths_S, None if before is None else before[0])
        return y, (last,)
