"""The layout of a pass that keeps nothing: one entry for training and for reading, whatever the device.

Every implementation does what layers ask for (`How`) or refuses it by name. On a CUDA device torch's varlen kernel does
what it can, flex attention the rest; each is tried once there, forwards and backwards, against the blocks, and where
one fails the next stands in for it. Anywhere else it is the blocks, which do everything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from bedplate.models.layers.attention import Attend
from bedplate.models.layers.documents import Recurrence
from bedplate.models.layers.how import PLAIN, How
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.packed.flex import FlexAttention
from bedplate.models.packed.placement import Placement
from bedplate.models.packed.varlen import HEAD, VarlenAttention

Way = Literal["varlen", "flex", "blocks"]
WAYS: dict[Way, Callable[[Placement, bool], Attend]] = {
    "varlen": VarlenAttention,
    "flex": FlexAttention,
    "blocks": BlockAttention,
}
_FAR = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""How far two ways of a dtype may be apart; others 1e-3, since kernels may multiply in TF32."""


class PackedAttention:
    """Each token of packed rows sees its own document, behind what its row shares."""

    keeps = False

    def __init__(self, placement: Placement, causal: bool = True) -> None:
        self._placement, self._causal = placement, causal
        self._shared = any(document.shared for document in placement.documents)
        self._made: dict[Way, Attend] = {}

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, how: How = PLAIN) -> Tensor:
        way = way_of(q_BTHD, v_BTGV, how, self._shared)
        return self._by(way)(layer, q_BTHD, k_BTGD, v_BTGV, how)

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._by("blocks").recur(layer, run, x_BTC)

    def _by(self, way: Way) -> Attend:
        if way not in self._made:
            self._made[way] = WAYS[way](self._placement, self._causal)
        return self._made[way]


def way_of(q_BTHD: Tensor, v_BTGV: Tensor, how: How, shared: bool) -> Way:
    """By which way these are attended to. shared: whether documents stand behind a prefix."""
    device, dtype, (D, V) = q_BTHD.device, q_BTHD.dtype, (q_BTHD.shape[-1], v_BTGV.shape[-1])
    if device.type != "cuda":
        return "blocks"
    if how.fused and not shared and D == V <= HEAD and works("varlen", device, dtype, D):
        return "varlen"
    return "flex" if works("flex", device, dtype, D) else "blocks"


@cache
def works(way: Way, device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether a way gives what the blocks give there for heads of this size, forwards and backwards."""
    generator, placement = torch.Generator().manual_seed(0), Placement.of_lengths([0, 5, 130, 9])
    shapes = ((1, 144, heads, size) for heads in (4, 2, 2, 4))
    q, k, v, weight = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    found: list[list[Tensor]] = []
    try:
        for one in (WAYS[way], BlockAttention):
            given = [x.detach().requires_grad_() for x in (q, k, v)]
            q_BTHD, k_BTGD, v_BTGV = given
            out = one(placement, True)(0, q_BTHD, k_BTGD, v_BTGV, PLAIN)
            found.append([out, *torch.autograd.grad((out * weight).sum(), given)])
    except (RuntimeError, NotImplementedError, ValueError):  # how torch says that a kernel is not for this device
        return False
    far = _FAR.get(dtype, 1e-3)
    return all(bool(torch.allclose(a, b, rtol=far, atol=far)) for a, b in zip(*found, strict=True))


def packed_attention(placement: Placement, causal: bool = True) -> Attend:
    """Each token of packed rows sees its own document, behind what its row shares."""
    return PackedAttention(placement, causal)
