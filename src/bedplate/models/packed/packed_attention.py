"""Attention of packed rows in a pass without a cache: one entry point for training and for reading, on any device.

On a CUDA device torch's varlen kernel does what it can, and flex attention the rest. Each is tried once there, forwards
and backwards, against the dense blocks; where one fails the next stands in for it. Anywhere else it is the blocks,
which support every option.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from bedplate.core.errors import BedplateError
from bedplate.models.layers.attention import Attend
from bedplate.models.layers.attention_options import PLAIN, AttentionOptions, Recurrence
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.packed.flex import FlexAttention
from bedplate.models.packed.placement import Placement
from bedplate.models.packed.varlen import MAX_HEAD_DIM, VarlenAttention

Backend = Literal["varlen", "flex", "blocks"]
BACKENDS: dict[Backend, Callable[[Placement, bool], Attend]] = {
    "varlen": VarlenAttention,
    "flex": FlexAttention,
    "blocks": BlockAttention,
}
_TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""How far two backends may differ, by dtype; 1e-3 for others, since kernels may multiply in TF32."""


class PackedAttention:
    """Each token of packed rows sees its own document, behind the prefix that its row shares."""

    is_cached = False

    def __init__(self, placement: Placement, causal: bool = True) -> None:
        self._placement, self._causal = placement, causal
        self._shared = any(document.shared for document in placement.documents)
        self._layouts: dict[Backend, Attend] = {}

    def __call__(
        self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, options: AttentionOptions = PLAIN
    ) -> Tensor:
        backend = choose_backend(q_BTHD, v_BTGV, options, self._shared)
        return self._layout(backend)(layer, q_BTHD, k_BTGD, v_BTGV, options)

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._layout("blocks").recur(layer, run, x_BTC)

    def _layout(self, backend: Backend) -> Attend:
        if backend not in self._layouts:
            self._layouts[backend] = BACKENDS[backend](self._placement, self._causal)
        return self._layouts[backend]


def choose_backend(q_BTHD: Tensor, v_BTGV: Tensor, options: AttentionOptions, shared: bool) -> Backend:
    """The backend for these tensors. shared: whether documents stand behind a prefix."""
    device, dtype, (D, V) = q_BTHD.device, q_BTHD.dtype, (q_BTHD.shape[-1], v_BTGV.shape[-1])
    if device.type != "cuda":
        return "blocks"
    if not shared and D == V <= MAX_HEAD_DIM and options.fits_sdpa and works("varlen", device, dtype, D):
        return "varlen"
    return "flex" if works("flex", device, dtype, D) else "blocks"


@cache
def works(backend: Backend, device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether a backend gives what the blocks give there for heads of this size, forwards and backwards."""
    generator, placement = torch.Generator().manual_seed(0), Placement.of_lengths([0, 5, 130, 9])
    shapes = ((1, 144, heads, size) for heads in (4, 2, 2, 4))
    outcomes: list[list[Tensor]] = []
    with torch.inference_mode(False), torch.enable_grad():
        q, k, v, weight = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
        try:
            for layout in (BACKENDS[backend], BlockAttention):
                leaves = [x.detach().requires_grad_() for x in (q, k, v)]
                out = layout(placement, True)(0, leaves[0], leaves[1], leaves[2])
                outcomes.append([out, *torch.autograd.grad((out * weight).sum(), leaves)])
        except (RuntimeError, NotImplementedError, TypeError, ValueError, BedplateError):  # not for this device
            return False
    tolerance = _TOLERANCES.get(dtype, 1e-3)
    return all(bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance)) for a, b in zip(*outcomes, strict=True))
