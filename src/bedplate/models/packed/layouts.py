"""The layout of a pass that keeps nothing: one entry for training and for reading, whatever the device.

Every implementation does what layers ask for (`How`) or refuses it by name. On a CUDA device torch's varlen kernel does
what it can, flex attention the rest; each is tried once there, forwards and backwards, against the blocks, and where
one fails the next stands in for it. FlashAttention's own package, where it is installed and works, takes the place of
what it was measured to be faster than. Anywhere else it is the blocks, which do everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from bedplate.models.layers.attention import Attend
from bedplate.models.layers.documents import Recurrence
from bedplate.models.layers.how import PLAIN, How
from bedplate.models.packed.attempts import REFUSALS, clearly_less, least_seconds
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.packed.flash import ABLE, FlashAttention, package
from bedplate.models.packed.flex import FlexAttention
from bedplate.models.packed.placement import Placement
from bedplate.models.packed.varlen import HEAD, VarlenAttention

Way = Literal["flash3", "flash2", "varlen", "flex", "blocks"]
WAYS: dict[Way, Callable[[Placement, bool], Attend]] = {
    "flash3": partial(FlashAttention, edition="flash3"),
    "flash2": partial(FlashAttention, edition="flash2"),
    "varlen": VarlenAttention,
    "flex": FlexAttention,
    "blocks": BlockAttention,
}
_FLASH: tuple[Literal["flash3", "flash2"], ...] = ("flash3", "flash2")
_FAR = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""How far two ways of a dtype may be apart; others 1e-3, since kernels may multiply in TF32."""
_LENGTHS, _HEADS, _TURNS = (0, 1024, 300, 700, 2072), (16, 4, 4), 5
"""What ways are timed on: documents, and heads of queries, keys and values."""


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
    plain = not shared and D == V <= HEAD
    usual: Way = "flex"
    if plain and how.fused and works("varlen", device, dtype, D):
        usual = "varlen"
    elif not works("flex", device, dtype, D):
        usual = "blocks"
    if not plain or not how.within_reach(*ABLE):
        return usual
    found = tuple(way for way in _FLASH if package(way) is not None and works(way, device, dtype, D, how.cap))
    return fastest((usual, *found), device, dtype, D, how.cap) if found else usual


@cache
def works(way: Way, device: torch.device, dtype: torch.dtype, size: int, cap: float | None = None) -> bool:
    """Whether a way gives what the blocks give there for heads of this size, forwards and backwards."""
    generator, placement = torch.Generator().manual_seed(0), Placement.of_lengths([0, 5, 130, 9])
    shapes = ((1, 144, heads, size) for heads in (4, 2, 2, 4))
    found: list[list[Tensor]] = []
    with torch.inference_mode(False), torch.enable_grad():
        q, k, v, weight = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
        try:
            for one in (WAYS[way], BlockAttention):
                given = [x.detach().requires_grad_() for x in (q, k, v)]
                q_BTHD, k_BTGD, v_BTGV = given
                out = one(placement, True)(0, q_BTHD, k_BTGD, v_BTGV, How(cap=cap))
                found.append([out, *torch.autograd.grad((out * weight).sum(), given)])
        except REFUSALS:
            return False
    far = _FAR.get(dtype, 1e-3)
    return all(bool(torch.allclose(a, b, rtol=far, atol=far)) for a, b in zip(*found, strict=True))


@cache
def fastest(ways: tuple[Way, ...], device: torch.device, dtype: torch.dtype, size: int, cap: float | None) -> Way:
    """The one that takes least there, forwards and backwards, of heads of this size; the first but for clearly less."""
    with torch.inference_mode(False), torch.enable_grad():
        seconds = {way: _seconds(way, device, dtype, size, cap) for way in ways}
    best = min(ways, key=lambda way: seconds[way])
    return best if clearly_less(seconds[best], seconds[ways[0]]) else ways[0]


def _seconds(way: Way, device: torch.device, dtype: torch.dtype, size: int, cap: float | None) -> float:
    """The least of some turns over documents of unequal lengths; infinity where it fails."""
    placement = Placement.of_lengths(_LENGTHS)
    shapes = ((1, sum(_LENGTHS), heads, size) for heads in _HEADS)
    given = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
    q_BTHD, k_BTGD, v_BTGV = given
    attend = WAYS[way](placement, True)

    def turn() -> None:
        out = attend(0, q_BTHD, k_BTGD, v_BTGV, How(cap=cap))
        torch.autograd.grad(out.sum(), given)

    try:
        return least_seconds(turn, device, _TURNS)
    except REFUSALS:
        return math.inf


def packed_attention(placement: Placement, causal: bool = True) -> Attend:
    """Each token of packed rows sees its own document, behind what its row shares."""
    return PackedAttention(placement, causal)
