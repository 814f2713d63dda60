"""Mamba-2 (https://arxiv.org/abs/2405.21060): a state space whose decay and input are made from the token.

Shapes: S sequences, L tokens, H heads, P features of a head, N of a state, G groups of heads that share b and c.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.layers import recurrence
from bedplate.models.layers.attention import Attend
from bedplate.models.layers.convolution import CausalConvolution
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.norms import GatedNorm
from bedplate.models.layers.positions import Rotation
from bedplate.models.layers.recurrence_inputs import State
from bedplate.models.precision import Device
from bedplate.models.specs.state_mixers import Mamba2
from bedplate.models.specs.transformer import TransformerSpec


class Mamba2Mixer(nn.Module):
    """x, b and c pass a short convolution; with dt = softplus(step + step_bias) a head's state [N, P] becomes
    `exp(−exp(log_decay) dt) · state + dt b xᵀ`, and its output `stateᵀ c + skip · x`, gated and then normalised."""

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        part, D = spec.state.mixer, spec.hidden_size
        assert isinstance(part, Mamba2)
        self.layer, self.part = layer, part
        self.input = Linear(D, part.inner + part.channels + part.heads, part.bias, device, dtype)
        self.convolution = CausalConvolution(part.channels, part.width, part.convolution_bias, device, dtype)
        self.step_bias = nn.Parameter(torch.ones(part.heads, device=device, dtype=dtype))
        self.log_decay = nn.Parameter(torch.zeros(part.heads, device=device, dtype=dtype))
        self.skip = nn.Parameter(torch.ones(part.heads, device=device, dtype=dtype))
        self.norm = GatedNorm(part.inner, spec.norm.eps, device, dtype, groups=part.groups, gate_first=True)
        self.output = Linear(part.inner, D, part.bias, device, dtype)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        gate, x = self.input(x_BTD).tensor_split((self.part.inner,), dim=-1)
        return self.output(self.norm(attend.recur(self.layer, self._run, x), gate))

    def _run(self, x_SLC: Tensor, lengths_S: Tensor | None, before: State | None) -> tuple[Tensor, State]:
        (S, L, _), part = x_SLC.shape, self.part
        compute_dtype = torch.promote_types(x_SLC.dtype, torch.float32)
        xbc, step = x_SLC.split((part.channels, part.heads), dim=-1)
        xbc, last = self.convolution(xbc, lengths_S, None if before is None else before[0])
        shared = part.groups * part.state_dim
        x, b, c = F.silu(xbc).to(compute_dtype).split((part.inner, shared, shared), dim=-1)
        x = x.view(S, L, part.heads, part.head_dim)
        b, c = (self._shared(tensor.view(S, L, part.groups, part.state_dim)) for tensor in (b, c))
        low, high = part.step_limits
        dt = F.softplus(step.to(compute_dtype) + self.step_bias).clamp(low, high)
        if lengths_S is not None:
            dt = dt * (torch.arange(L, device=x_SLC.device) < lengths_S[:, None])[..., None]
        state = x_SLC.new_zeros(S, *part.state_shape, dtype=compute_dtype) if before is None else before[1]
        g = -self.log_decay.to(compute_dtype).exp() * dt
        y, state = recurrence.run(c, b, x * dt[..., None], g, None, state)
        y = y + x * self.skip.to(compute_dtype)[:, None]
        return y.flatten(2).to(x_SLC.dtype), (last, state)

    def _shared(self, x_SLGN: Tensor) -> Tensor:
        """Once for each head of a group."""
        return x_SLGN.repeat_interleave(self.part.heads // self.part.groups, dim=2)
