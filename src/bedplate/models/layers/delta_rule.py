"""Gated delta networks (https://arxiv.org/abs/2412.06464), as Qwen3-Next and Qwen3.5 have them: linear attention whose
state forgets by a gate and corrects what it would have answered.

Shapes: S sequences, L tokens, H value heads, K features of a key, V of a value.
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
from bedplate.models.specs.state_mixers import DeltaRule
from bedplate.models.specs.transformer import TransformerSpec

L2_EPS = 1e-6
"""Added to a query's and a key's squared length."""


class DeltaRuleMixer(nn.Module):
    """Queries, keys and values pass a short convolution; queries and keys are of length 1; each value head has a rate
    `sigmoid(rate x)` and a decay `−exp(log_decay) · softplus(step x + step_bias)`. What is read is normalised over
    each head and gated."""

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        part, D = spec.state.mixer, spec.hidden_size
        assert isinstance(part, DeltaRule)
        self.layer, self.part = layer, part
        self.qkv = Linear(D, part.channels, False, device, dtype)
        self.gate = Linear(D, part.heads * part.value_dim, False, device, dtype)
        self.rate = Linear(D, part.heads, False, device, dtype)
        self.step = Linear(D, part.heads, False, device, dtype)
        self.convolution = CausalConvolution(part.channels, part.width, False, device, dtype)
        self.step_bias = nn.Parameter(torch.ones(part.heads, device=device, dtype=dtype))
        self.log_decay = nn.Parameter(torch.zeros(part.heads, device=device, dtype=dtype))
        self.norm = GatedNorm(part.value_dim, spec.norm.eps, device, dtype)
        self.output = Linear(part.heads * part.value_dim, D, False, device, dtype)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        x = torch.cat((self.qkv(x_BTD), self.rate(x_BTD), self.step(x_BTD)), dim=-1)
        read, gate = attend.recur(self.layer, self._run, x), self.gate(x_BTD)
        shape = (*x_BTD.shape[:2], self.part.heads, self.part.value_dim)
        return self.output(self.norm(read.view(shape), gate.view(shape)).flatten(2))

    def _run(self, x_SLC: Tensor, lengths_S: Tensor | None, before: State | None) -> tuple[Tensor, State]:
        (S, L, _), part = x_SLC.shape, self.part
        compute_dtype = torch.promote_types(x_SLC.dtype, torch.float32)
        qkv, rate, step = x_SLC.split((part.channels, part.heads, part.heads), dim=-1)
        qkv, last = self.convolution(qkv, lengths_S, None if before is None else before[0])
        key = part.key_heads * part.key_dim
        q, k, v = F.silu(qkv).to(compute_dtype).split((key, key, part.heads * part.value_dim), dim=-1)
        q, k = (self._unit(tensor.view(S, L, part.key_heads, part.key_dim)) for tensor in (q, k))
        beta = rate.sigmoid().to(compute_dtype)
        g = -self.log_decay.to(compute_dtype).exp() * F.softplus(step.to(compute_dtype) + self.step_bias)
        if lengths_S is not None:
            inside = (torch.arange(L, device=x_SLC.device) < lengths_S[:, None])[..., None]
            beta, g = beta * inside, g * inside
        state = x_SLC.new_zeros(S, *part.state_shape, dtype=compute_dtype) if before is None else before[1]
        y, state = recurrence.run(q * part.key_dim**-0.5, k, v.view(S, L, part.heads, -1), g, beta, state)
        return y.flatten(2).to(x_SLC.dtype), (last, state)

    def _unit(self, x: Tensor) -> Tensor:
        """Normalises to length 1 and repeats for each of the value heads that share it."""
        x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)
        return x.repeat_interleave(self.part.heads // self.part.key_heads, dim=2)
