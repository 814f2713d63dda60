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
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions
from bedplate.models.layers.recurrence_inputs import Recurrence
from bedplate.models.packed.attempts import REFUSALS, clearly_less, least_seconds
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.packed.flash import ABLE, FlashAttention, package
from bedplate.models.packed.flex import FlexAttention
from bedplate.models.packed.placement import Placement
from bedplate.models.packed.varlen import HEAD, VarlenAttention

Backend = Literal["flash3", "flash2", "varlen", "flex", "blocks"]
BACKENDS: dict[Backend, Callable[[Placement, bool], Attend]] = {
    "flash3": partial(FlashAttention, edition="flash3"),
    "flash2": partial(FlashAttention, edition="flash2"),
    "varlen": VarlenAttention,
    "flex": FlexAttention,
    "blocks": BlockAttention,
}
_FLASH: tuple[Literal["flash3", "flash2"], ...] = ("flash3", "flash2")
_TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""How far two ways of a dtype may be apart; others 1e-3, since kernels may multiply in TF32."""
_LENGTHS, _HEADS, _TURNS = (0, 1024, 300, 700, 2072), (16, 4, 4), 5
"""What ways are timed on: documents, and heads of queries, keys and values."""


class PackedAttention:
    """Each token of packed rows sees its own document, behind what its row shares."""

    is_cached = False

    def __init__(self, placement: Placement, causal: bool = True) -> None:
        self._placement, self._causal = placement, causal
        self._shared = any(document.shared for document in placement.documents)
        self._layouts: dict[Backend, Attend] = {}

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, how: AttentionOptions = PLAIN
    ) -> Tensor:
        backend = way_of(q_BTHD, v_BTGV, how, self._shared)
        return self._by(backend)(layer, q_BTHD, k_BTGD, v_BTGV, how)

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._by("blocks").recur(layer, run, x_BTC)

    def _by(self, backend: Backend) -> Attend:
        if backend not in self._layouts:
            self._layouts[backend] = BACKENDS[backend](self._placement, self._causal)
        return self._layouts[backend]


def way_of(q_BTHD: Tensor, v_BTGV: Tensor, how: AttentionOptions, shared: bool) -> Backend:
    """By which way these are attended to. shared: whether documents stand behind a prefix."""
    device, dtype, (D, V) = q_BTHD.device, q_BTHD.dtype, (q_BTHD.shape[-1], v_BTGV.shape[-1])
    if device.type != "cuda":
        return "blocks"
    plain = not shared and D == V <= HEAD
    usual: Backend = "flex"
    if plain and how.fused and works("varlen", device, dtype, D):
        usual = "varlen"
    elif not works("flex", device, dtype, D):
        usual = "blocks"
    if not plain or not how.within_reach(*ABLE):
        return usual
    available = tuple(
        backend for backend in _FLASH if package(backend) is not None and works(backend, device, dtype, D, how.cap)
    )
    return fastest((usual, *available), device, dtype, D, how.cap) if available else usual


@cache
def works(backend: Backend, device: torch.device, dtype: torch.dtype, size: int, cap: float | None = None) -> bool:
    """Whether a way gives what the blocks give there for heads of this size, forwards and backwards."""
    generator, placement = torch.Generator().manual_seed(0), Placement.of_lengths([0, 5, 130, 9])
    shapes = ((1, 144, heads, size) for heads in (4, 2, 2, 4))
    outcomes: list[list[Tensor]] = []
    with torch.inference_mode(False), torch.enable_grad():
        q, k, v, weight = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
        try:
            for layout in (BACKENDS[backend], BlockAttention):
                leaves = [x.detach().requires_grad_() for x in (q, k, v)]
                q_BTHD, k_BTGD, v_BTGV = leaves
                out = layout(placement, True)(0, q_BTHD, k_BTGD, v_BTGV, AttentionOptions(cap=cap))
                outcomes.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
        except REFUSALS:
            return False
    tolerance = _TOLERANCES.get(dtype, 1e-3)
    return all(bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance)) for a, b in zip(*outcomes, strict=True))


@cache
def fastest(
    backends: tuple[Backend, ...], device: torch.device, dtype: torch.dtype, size: int, cap: float | None
) -> Backend:
    """The one that takes least there, forwards and backwards, of heads of this size; the first but for clearly less."""
    with torch.inference_mode(False), torch.enable_grad():
        seconds = {backend: _seconds(backend, device, dtype, size, cap) for backend in backends}
    best = min(backends, key=lambda candidate: seconds[candidate])
    return best if clearly_less(seconds[best], seconds[backends[0]]) else backends[0]


def _seconds(backend: Backend, device: torch.device, dtype: torch.dtype, size: int, cap: float | None) -> float:
    """The least of some turns over documents of unequal lengths; infinity where it fails."""
    placement = Placement.of_lengths(_LENGTHS)
    shapes = ((1, sum(_LENGTHS), heads, size) for heads in _HEADS)
    leaves = [torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for shape in shapes]
    q_BTHD, k_BTGD, v_BTGV = leaves
    attend = BACKENDS[backend](placement, True)

    def turn() -> None:
        out = attend(0, q_BTHD, k_BTGD, v_BTGV, AttentionOptions(cap=cap))
        torch.autograd.grad(out.sum(), leaves)

    try:
        return least_seconds(turn, device, _TURNS)
    except REFUSALS:
        return math.inf


def packed_attention(placement: Placement, causal: bool = True) -> Attend:
    """Each token of packed rows sees its own document, behind what its row shares."""
    return PackedAttention(placement, causal)
