"""Grouped matrix products: tokens sorted by expert times the weights of their experts.

On accelerators torch's grouped product is used, which reads the token counts on the device; whether it works there for
a dtype is tested once, forward and backward. Elsewhere, and on the CPU, where reading counts costs nothing, it is a
loop of matrix products that write into one result.

Shapes: M tokens sorted by expert, E experts, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.core.errors import UsageError

ALIGNED = 16
"""Alignment of rows, in bytes, that torch's grouped product requires."""


class Segments:
    """The number of sorted tokens of each expert, int64 [E].

    tokens_M: the index, among `tokens` tokens, of which each sorted token is a copy; None where unknown.
    """

    def __init__(self, counts_E: Tensor, tokens_M: Tensor | None = None, tokens: int = 0) -> None:
        self.counts_E, self.tokens_M, self.tokens = counts_E, tokens_M, tokens
        self._ends: Tensor | None = None
        self._spans: list[tuple[int, int, int]] | None = None

    @property
    def ends_E(self) -> Tensor:
        """The end of each expert's tokens, int32, on the tokens' device."""
        if self._ends is None:
            self._ends = self.counts_E.cumsum(0).to(torch.int32)
        return self._ends

    def rows_of(self, rows: int) -> Tensor:
        """The row of each sorted token, int64 [M], where the tokens are `rows` rows of one length."""
        assert self.tokens_M is not None
        if not rows or self.tokens % rows:
            raise UsageError(f"{self.tokens} tokens cannot be {rows} rows of one length")
        return self.tokens_M // (self.tokens // rows)

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """(expert, begin, end) of each expert with tokens. Synchronizes with the device."""
        if self._spans is None:
            self._spans, begin = [], 0
            for expert, count in enumerate(self.counts_E.tolist()):
                if count:
                    self._spans.append((expert, begin, begin + count))
                begin += count
        return self._spans


def grouped_product(x_MI: Tensor, weight_EOI: Tensor, segments: Segments) -> Tensor:
    """x_m Wᵀ with the weight of each token's expert, [M, O], by the fastest product that works on this device."""
    product: Any = _Grouped.apply(x_MI, weight_EOI, segments)
    return product


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI: Tensor, weight_EOI: Tensor, segments: Segments) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x_MI, weight_EOI)
        ctx.segments = segments
        if grouped_mm_supports(x_MI, weight_EOI):
            return _torch_grouped()(x_MI, weight_EOI.transpose(1, 2), offs=segments.ends_E)
        out_MO = x_MI.new_empty(len(x_MI), weight_EOI.shape[1])
        for expert, begin, end in segments.spans:
            torch.mm(x_MI[begin:end], weight_EOI[expert].t(), out=out_MO[begin:end])
        return out_MO

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        x_MI, weight_EOI = ctx.saved_tensors
        grad_MO, segments = grad.contiguous(), ctx.segments
        to_x: Tensor | None = None
        to_weight: Tensor | None = None
        if grouped_mm_supports(x_MI, weight_EOI):
            product, ends = _torch_grouped(), segments.ends_E
            if ctx.needs_input_grad[0]:
                to_x = product(grad_MO, weight_EOI, offs=ends)
            if ctx.needs_input_grad[1]:
                to_weight = product(grad_MO.t(), x_MI, offs=ends)
            return to_x, to_weight, None
        if ctx.needs_input_grad[0]:
            to_x = torch.empty_like(x_MI)
            for expert, begin, end in segments.spans:
                torch.mm(grad_MO[begin:end], weight_EOI[expert], out=to_x[begin:end])
        if ctx.needs_input_grad[1]:
            # Written once: an expert without tokens gets its zeros here, one with tokens its product.
            to_weight = torch.empty_like(weight_EOI)
            filled = {expert for expert, _, _ in segments.spans}
            for expert in set(range(len(weight_EOI))) - filled:
                to_weight[expert].zero_()
            for expert, begin, end in segments.spans:
                torch.mm(grad_MO[begin:end].t(), x_MI[begin:end], out=to_weight[expert])
        return to_x, to_weight, None


def uses_grouped_mm(x: Tensor) -> bool:
    """Whether products with this tensor run without reading the experts' token counts on the host."""
    return not x.is_cpu and torch_product_works(x.device, x.dtype)


def grouped_mm_supports(x_MI: Tensor, weight_EOI: Tensor) -> bool:
    """Whether torch's grouped product takes these tensors, whose rows must be multiples of `ALIGNED` bytes."""
    return uses_grouped_mm(x_MI) and all(size * x_MI.element_size() % ALIGNED == 0 for size in weight_EOI.shape[1:])


def _torch_grouped() -> Callable[..., Tensor]:
    """torch's grouped product: public since 2.10, private before."""
    grouped_mm: Any = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    return grouped_mm


@cache
def torch_product_works(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's grouped product runs on this device, forward and for both gradients."""
    product = _torch_grouped()
    if product is None:
        return False
    x_MI, w_EOI, g_MO = (torch.ones(shape, device=device, dtype=dtype) for shape in ((48, 32), (3, 16, 32), (48, 16)))
    ends = Segments(torch.tensor([16, 0, 32], device=device)).ends_E
    try:
        product(x_MI, w_EOI.transpose(1, 2), offs=ends)
        product(g_MO, w_EOI, offs=ends)
        product(g_MO.t(), x_MI, offs=ends)
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return False
    return True
