"""Normalisation layers over the last dimension: RMS, layer and gated norms, and the fused add-and-norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.layers.fused.custom_ops import operation
from bedplate.models.layers.recomputation import rms_norm
from bedplate.models.precision import Device
from bedplate.models.specs.transformer import TransformerSpec


class RMSNorm(nn.Module):
    """Root-mean-square norm (https://arxiv.org/abs/1910.07467), computed in float32 and scaled by `weight` [D].

    weighted: whether it has a weight. offset: added to the weight; with an offset, the scaling is in float32 as well
    (Gemma's 1 + w).
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        size: int,
        eps: float,
        device: Device = None,
        dtype: torch.dtype | None = None,
        weighted: bool = True,
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        if weighted:
            self.weight = nn.Parameter(torch.full((size,), 1.0 - offset, device=device, dtype=dtype))
        else:
            self.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        return _rms_normed(x, self.weight, self.eps, self.offset)


def _rms_normed(x: Tensor, weight: Tensor | None, eps: float, offset: float) -> Tensor:
    shape = (x.shape[-1],)
    if weight is None:
        return F.rms_norm(x, shape, None, eps)
    if offset:
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32)) + offset
    if x.is_cpu and x.requires_grad and torch.is_grad_enabled():
        return rms_norm(x, weight, eps)
    if weight.dtype != x.dtype:
        return F.rms_norm(x.to(weight.dtype), shape, weight, eps).to(x.dtype)
    if x.is_cpu and x.dtype in (torch.bfloat16, torch.float16):
        # The same arithmetic with explicit casts: torch's CPU kernel takes ten times as long on half precision as on
        # float32 (1.2 against 0.1 ms for 512 × 576).
        return F.rms_norm(x.float(), shape, None, eps).to(x.dtype) * weight
    return F.rms_norm(x, shape, weight, eps)


class LayerNorm(nn.Module):
    """Layer norm (https://arxiv.org/abs/1607.06450), with optional scale and shift [D]."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        size: int,
        eps: float,
        device: Device = None,
        dtype: torch.dtype | None = None,
        weighted: bool = True,
        biased: bool = True,
    ) -> None:
        super().__init__()
        self.eps, self._shape = eps, (size,)
        for name, enabled, fill in (("weight", weighted, torch.ones), ("bias", biased, torch.zeros)):
            value = nn.Parameter(fill(size, device=device, dtype=dtype)) if enabled else None
            self.register_parameter(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self._shape, self.weight, self.bias, self.eps)


class GatedNorm(nn.Module):
    """RMS norm over groups of features, with a gate: `norm(x) · silu(gate)`, or `norm(x · silu(gate))` where the gate
    comes first (Mamba-2, https://arxiv.org/abs/2405.21060). Computed in float32 or wider."""

    def __init__(
        self,
        size: int,
        eps: float,
        device: Device = None,
        dtype: torch.dtype | None = None,
        groups: int = 1,
        gate_first: bool = False,
    ) -> None:
        super().__init__()
        self.eps, self.groups, self.gate_first = eps, groups, gate_first
        self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        compute_dtype = torch.promote_types(x.dtype, torch.float32)
        y, gate_act = x.to(compute_dtype), F.silu(gate.to(compute_dtype))
        if self.gate_first:
            y = y * gate_act
        y = F.rms_norm(y.unflatten(-1, (self.groups, -1)), (y.shape[-1] // self.groups,), None, self.eps).flatten(-2)
        y = self.weight * y.to(x.dtype)
        return y if self.gate_first else (y * gate_act).to(x.dtype)


def _added(x: Tensor, y: Tensor, weight: Tensor | None, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    total = x + y
    return total, _rms_normed(total, weight, eps, offset)


_ADD_NORM = operation(
    "add_norm(Tensor x, Tensor y, Tensor? weight, float eps, float offset) -> (Tensor, Tensor)", _added
)

Norm = RMSNorm | LayerNorm


def add_norm(x: Tensor, y: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """x + y (x alone for None), and its norm: one fused operation where no gradients are recorded."""
    if y is None:
        return x, norm(x)
    if isinstance(norm, RMSNorm) and not torch.is_grad_enabled():
        return _ADD_NORM(x, y, norm.weight, norm.eps, norm.offset)
    total = x + y
    return total, norm(total)


def make_norm(spec: TransformerSpec, device: Device, dtype: torch.dtype, size: int | None = None) -> Norm:
    """The spec's norm; size: features, by default the hidden size."""
    size = size or spec.hidden_size
    if spec.norm.type == "rms":
        return RMSNorm(size, spec.norm.eps, device, dtype, spec.norm.weight, spec.norm.offset)
    return LayerNorm(size, spec.norm.eps, device, dtype, spec.norm.weight, spec.norm.bias)
