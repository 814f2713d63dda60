"""T5's bias of scores by distance (https://arxiv.org/abs/1910.10683, section 2.1).

Shapes: B rows, T queries, S keys, H heads, N buckets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bedplate.models.precision import Device
from bedplate.models.specs.position import RelativeBias


def buckets(distance: Tensor, spec: RelativeBias, both_ways: bool) -> Tensor:
    """The bucket of each distance (the key's position less the query's), int64 of its shape.

    One for each near distance, and from half of them on wider ones, on a logarithmic scale up to `max_distance`; what
    is farther is in the last. both_ways: one half of the buckets for keys after the query; otherwise those count as 0.
    The logarithm is taken in float32, as the published models were trained.
    """
    count = spec.buckets // 2 if both_ways else spec.buckets
    magnitude = distance.abs() if both_ways else (-distance).clamp(min=0)
    exact = count // 2
    ratio = torch.log(magnitude.clamp(min=1).float() / exact) / math.log(spec.max_distance / exact)
    log_bucket = (exact + (ratio * (count - exact)).to(torch.int64)).clamp(max=count - 1)
    bucket = torch.where(magnitude < exact, magnitude, log_bucket)
    return bucket + (distance > 0) * count if both_ways else bucket


class RelativePositions(nn.Module):
    """One table of a stack, [N, H], that all of its layers use."""

    def __init__(
        self,
        spec: RelativeBias,
        heads: int,
        both_ways: bool,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._buckets, self._both_ways = spec, both_ways
        self.weight = nn.Parameter(torch.empty(spec.buckets, heads, device=device, dtype=dtype))
        self._biases: dict[int, tuple[Tensor, Tensor]] = {}
        if not self.weight.is_meta:
            nn.init.normal_(self.weight, std=0.5)

    def bias(self, distance_BTS: Tensor) -> Tensor:
        """What is added to the scores, [B, H, T, S]; made once a pass for each tensor of distances."""
        cached = self._biases.get(id(distance_BTS))
        if cached is None:
            bias_BHTS = self.weight[buckets(distance_BTS, self._buckets, self._both_ways)].permute(0, 3, 1, 2)
            cached = self._biases[id(distance_BTS)] = distance_BTS, bias_BHTS
        return cached[1]

    def forget(self) -> None:
        """The pass is over."""
        self._biases.clear()
