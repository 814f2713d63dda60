"""Position encodings: rotary (https://arxiv.org/abs/2104.09864), sinusoidal, and T5's relative bias.

Rotary: feature i is paired with feature i + D/2, or 2i with 2i + 1 (interleaved).

Shapes: B rows, T tokens, S keys, H heads, D features of one head, R of them that are rotated.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bedplate.models.layers.fused.custom_ops import operation
from bedplate.models.precision import Device
from bedplate.models.specs.position import LinearScaling, Llama3Scaling, LongRopeScaling, RelativeBias, YarnScaling
from bedplate.models.specs.transformer import Rope, TransformerSpec


class Rotation(NamedTuple):
    """Cosines and sines of tokens' angles, each [B, T, 1, R]. query_scale: factor of tokens' queries, [B, T, 1, 1]."""

    cos: Tensor
    sin: Tensor
    interleaved: bool = False
    query_scale: Tensor | None = None


def rotary_frequencies(rope: Rope, head_dim: int, device: torch.device | None = None, long: bool = False) -> Tensor:
    """Radians per token of each feature pair, float32 [R/2]. long: beyond the original context (LongRoPE)."""
    size = head_dim if rope.proportional else int(head_dim * rope.fraction)
    exponent = torch.arange(0, size, 2, dtype=torch.int64, device=device).float() / size
    scaling = rope.scaling
    if isinstance(scaling, LongRopeScaling):
        factors = scaling.long if long else scaling.short
        return 1.0 / (torch.tensor(factors, dtype=torch.float32, device=device) * rope.theta**exponent)
    frequencies = 1.0 / (rope.theta**exponent)
    if rope.proportional:
        frequencies[int(rope.fraction * head_dim // 2) :] = 0
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _llama3(frequencies, scaling)
    if isinstance(scaling, YarnScaling):
        return _yarn(frequencies, rope.theta, size, scaling)
    return frequencies


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Long wavelengths divided by `factor`, short ones unchanged, linear interpolation between (Llama 3.1's reference
    code)."""
    low_wavelength = scaling.original_context / scaling.low_freq_factor
    high_wavelength = scaling.original_context / scaling.high_freq_factor
    wavelength = 2 * math.pi / frequencies
    scaled = torch.where(wavelength > low_wavelength, frequencies / scaling.factor, frequencies)
    blend = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - blend) * scaled / scaling.factor + blend * scaled
    transition = (wavelength >= high_wavelength) & (wavelength <= low_wavelength)
    return torch.where(transition, blended, scaled)


def _yarn(frequencies: Tensor, theta: float, size: int, scaling: YarnScaling) -> Tensor:
    """YaRN's frequencies: pairs that rotate often in the original context are unchanged, slow ones interpolated, with a
    linear ramp between (section 3.2; bounds are pair indices as in the paper's code)."""

    def pair_of(turns: float) -> float:
        return size * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high if high != low else high + 0.001
    number = torch.arange(size // 2, dtype=torch.float32, device=frequencies.device)
    interpolated = ((number - low) / (high - low)).clamp(0, 1)
    return frequencies / scaling.factor * interpolated + frequencies * (1 - interpolated)


def rotary_factor(rope: Rope) -> float:
    """The factor of cosines and sines (YaRN, LongRoPE)."""
    return rope.scaling.applied_factor if isinstance(rope.scaling, YarnScaling | LongRopeScaling) else 1.0


def rotation(positions_BT: Tensor, frequencies: Tensor, dtype: torch.dtype, rope: Rope) -> Rotation:
    """The rotation of tokens, computed in float32 and rounded once to `dtype`."""
    angles = positions_BT[..., None].float() * frequencies
    angles = angles.repeat_interleave(2, -1) if rope.interleaved else torch.cat((angles, angles), dim=-1)
    factor = rotary_factor(rope)
    cos, sin = angles[..., None, :].cos(), angles[..., None, :].sin()
    if factor != 1:
        cos, sin = cos * factor, sin * factor
    return Rotation(cos.to(dtype), sin.to(dtype), rope.interleaved, _query_scale(positions_BT, rope, dtype))


def _query_scale(positions_BT: Tensor, rope: Rope, dtype: torch.dtype) -> Tensor | None:
    scaling = rope.scaling
    if not isinstance(scaling, YarnScaling) or not scaling.query_growth:
        return None
    contexts = torch.floor(positions_BT / scaling.original_context)
    return (1 + scaling.query_growth * torch.log(1 + contexts))[..., None, None].to(dtype)


def rotate(x_BTHD: Tensor, by: Rotation) -> Tensor:
    """`x` with its first R features rotated by its tokens' angles: one fused operation where no gradients are
    recorded."""
    turn = _rotated if torch.is_grad_enabled() else _ROTATE
    return turn(x_BTHD, by.cos, by.sin, by.interleaved)


def _rotated(x_BTHD: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    size = cos.shape[-1]
    if size < x_BTHD.shape[-1]:
        return torch.cat((_rotated(x_BTHD[..., :size], cos, sin, interleaved), x_BTHD[..., size:]), dim=-1)
    if interleaved:
        turned = torch.stack((-x_BTHD[..., 1::2], x_BTHD[..., ::2]), dim=-1).flatten(-2)
        return x_BTHD * cos + turned * sin
    first, second = x_BTHD.chunk(2, dim=-1)
    return x_BTHD * cos + torch.cat((-second, first), dim=-1) * sin


_ROTATE = operation("rotate(Tensor x, Tensor cos, Tensor sin, bool interleaved) -> Tensor", _rotated)


class Rotations:
    """The rotations of a stack's layers, computed once per pass for each distinct rope."""

    def __init__(self, spec: TransformerSpec) -> None:
        self._ropes = [spec.rope_of(layer) for layer in range(spec.layers)]
        latent = spec.attention.latent
        self._sizes = [spec.head_dim_of(n) if latent is None else latent.rope_dim for n in range(spec.layers)]
        self._frequencies: dict[tuple[Rope, int, bool], Tensor] = {}

    def at(self, positions_BT: Tensor, dtype: torch.dtype, last: int | None = None) -> list[Rotation | None]:
        """The rotation of each layer, for tokens at these positions. last: the largest position, where it is known;
        otherwise what depends on it is selected on the device, without synchronizing."""
        rotations: dict[tuple[Rope | None, int], Rotation | None] = {}
        rope_sizes = list(zip(self._ropes, self._sizes, strict=True))
        for rope, size in rope_sizes:
            if rope is None:
                rotations[rope, size] = None
            elif (rope, size) not in rotations:
                frequencies = self._of(rope, size, positions_BT, last)
                rotations[rope, size] = rotation(positions_BT, frequencies, dtype, rope)
        return [rotations[key] for key in rope_sizes]

    def _of(self, rope: Rope, size: int, positions_BT: Tensor, last: int | None) -> Tensor:
        device, scaling = positions_BT.device, rope.scaling
        if not isinstance(scaling, LongRopeScaling) or not positions_BT.numel():
            return self._rope_frequencies(rope, size, device)
        if last is not None:
            return self._rope_frequencies(rope, size, device, last >= scaling.original_context)
        long = positions_BT.max() >= scaling.original_context
        return torch.where(
            long, self._rope_frequencies(rope, size, device, True), self._rope_frequencies(rope, size, device)
        )

    def _rope_frequencies(self, rope: Rope, size: int, device: torch.device, long: bool = False) -> Tensor:
        frequencies = self._frequencies.get((rope, size, long))
        if frequencies is None or frequencies.device != device:
            frequencies = self._frequencies[rope, size, long] = rotary_frequencies(rope, size, device, long)
        return frequencies


def sinusoids(positions_BT: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Sines, then cosines of the positions, [B, T, size], at wavelengths from 2π to 10,000 · 2π
    (https://arxiv.org/abs/1706.03762, section 3.5; in Marian's order); rounded to float32, as published tables are."""
    frequencies = 10_000.0 ** (torch.arange(0, size, 2, device=positions_BT.device, dtype=torch.float64) / -size)
    angles = positions_BT[..., None].double() * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float().to(dtype)


def buckets(distance: Tensor, spec: RelativeBias, both_ways: bool) -> Tensor:
    """The bucket of each distance (key position − query position), int64 of the same shape.

    The first half of the buckets are single distances, the others widen logarithmically up to `max_distance`; the last
    takes all beyond. both_ways: half of the buckets are for keys after the query; otherwise those count as distance 0.
    The logarithm is float32, as in the published models' training.
    """
    count = spec.buckets // 2 if both_ways else spec.buckets
    magnitude = distance.abs() if both_ways else (-distance).clamp(min=0)
    exact = count // 2
    ratio = torch.log(magnitude.clamp(min=1).float() / exact) / math.log(spec.max_distance / exact)
    log_bucket = (exact + (ratio * (count - exact)).to(torch.int64)).clamp(max=count - 1)
    bucket = torch.where(magnitude < exact, magnitude, log_bucket)
    return bucket + (distance > 0) * count if both_ways else bucket


class RelativePositions(nn.Module):
    """T5's bias of scores by distance (https://arxiv.org/abs/1910.10683, section 2.1): one table per stack, [N buckets,
    H], shared by its layers."""

    def __init__(
        self, spec: RelativeBias, heads: int, both_ways: bool, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self._buckets, self._both_ways = spec, both_ways
        self.weight = nn.Parameter(torch.empty(spec.buckets, heads, device=device, dtype=dtype))
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.5)

    def bias(self, distance_BTS: Tensor) -> Tensor:
        """The term added to the scores, [B, H, T, S]; computed once per pass for each tensor of distances."""
        cached = self._biases.get(id(distance_BTS))
        if cached is None:
            bias_BHTS = self.weight[buckets(distance_BTS, self._buckets, self._both_ways)].permute(0, 3, 1, 2)
            cached = self._biases[id(distance_BTS)] = distance_BTS, bias_BHTS
        return cached[1]

    def forget(self) -> None:
        """Drops the cached biases, at the end of a pass."""
        self._biases.clear()
