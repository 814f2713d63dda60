"""Rotary positions, half-split form: feature i turns with feature i + D/2 (https://arxiv.org/abs/2104.09864).

Shapes: B rows, T tokens, H heads, D features of one head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bedplate.models.layers.gradients import rotate_halves
from bedplate.models.specs.transformer import LinearScaling, Llama3Scaling, Rope

Rotation = tuple[Tensor, Tensor]


def rotary_frequencies(rope: Rope, head_dim: int, device: torch.device | None = None) -> Tensor:
    """Radians per token of each feature pair, float32 [D/2]."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponent)
    if isinstance(rope.scaling, LinearScaling):
        return frequencies / rope.scaling.factor
    if isinstance(rope.scaling, Llama3Scaling):
        return _llama3(frequencies, rope.scaling)
    return frequencies


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Long wavelengths divided by `factor`, short ones kept, a linear blend between (Llama 3.1's reference code)."""
    low_wavelength = scaling.original_context / scaling.low_freq_factor
    high_wavelength = scaling.original_context / scaling.high_freq_factor
    wavelength = 2 * math.pi / frequencies
    scaled = torch.where(wavelength > low_wavelength, frequencies / scaling.factor, frequencies)
    blend = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - blend) * scaled / scaling.factor + blend * scaled
    between = (wavelength >= high_wavelength) & (wavelength <= low_wavelength)
    return torch.where(between, blended, scaled)


def rotation(positions_BT: Tensor, frequencies: Tensor, dtype: torch.dtype) -> Rotation:
    """(cos, sin), each [B, T, 1, D], computed in float32 and rounded once to `dtype`."""
    angles = positions_BT[..., None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)[..., None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BTHD: Tensor, by: Rotation) -> Tensor:
    """`x` turned by its tokens' angles."""
    cos, sin = by
    if x_BTHD.is_cpu and x_BTHD.requires_grad and torch.is_grad_enabled():
        return rotate_halves(x_BTHD, cos, sin)
    first, second = x_BTHD.chunk(2, dim=-1)
    return x_BTHD * cos + torch.cat((-second, first), dim=-1) * sin
