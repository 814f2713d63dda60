"""Fuses linears that read the same input (q, k, v; gate, up) into one product, by placing their weights consecutively
in memory.

The linears remain separate modules by name, in the state dict and for adapters; only their storage is shared.
"""

# Shape suffixes: B rows, T tokens, I in_features, O out_features of all parts together.

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.models.layers.linear import Linear


class FusedLinears(nn.Module):
    """Several linears of one input, computed as one product. It has no parameters of its own."""

    def __init__(self, *parts: Linear) -> None:
        super().__init__()
        self._parts = parts  # a tuple, so that they are not registered twice
        self._whole: tuple[Tensor, Tensor | None] | None = None

    @property
    def parts(self) -> tuple[Linear, ...]:
        """The linears, in the order of their outputs."""
        return self._parts

    def exchange(self, replacements: Mapping[Linear, Linear]) -> None:
        """Replaces linears; they run separately until the next `pack`."""
        self._parts = tuple(replacements.get(part, part) for part in self._parts)
        self._whole = None

    @torch.no_grad()
    def pack(self) -> None:
        """Moves the linears' weights and biases into one tensor. Does nothing where they differ in dtype, device or
        bias, or share their storage already."""
        if self._is_packed() or not self._is_uniform():
            return
        # Not inference tensors, as the parameters may be trained later.
        with torch.inference_mode(False):
            weight_OI = torch.cat(tuple(part.weight for part in self._parts))
            biases: list[torch.Tensor] = [part.bias for part in self._parts if part.bias is not None]
            bias_O = torch.cat(tuple(biases)) if biases else None
            begin = 0
            for part in self._parts:
                rows = slice(begin, begin + part.out_features)
                part.weight.data = weight_OI[rows]
                if part.bias is not None and bias_O is not None:
                    part.bias.data = bias_O[rows]
                begin += part.out_features
        self._whole = weight_OI, bias_O

    def _is_uniform(self) -> bool:
        first = self._parts[0]
        layout = (first.weight.dtype, first.weight.device, first.bias is None)
        return not first.weight.is_meta and all(
            (part.weight.dtype, part.weight.device, part.bias is None) == layout and type(part) is Linear
            for part in self._parts
        )

    def _is_packed(self) -> bool:
        """Whether the weights are still views of the shared tensor: a parameter may have been replaced since."""
        if self._whole is None:
            return False
        weight_OI, bias_O = self._whole
        at, row = weight_OI.data_ptr(), weight_OI.stride(0) * weight_OI.element_size()
        for part in self._parts:
            if part.weight.data_ptr() != at or part.weight.dtype != weight_OI.dtype:
                return False
            at += part.out_features * row
        first = self._parts[0].bias
        return bias_O is None or (first is not None and first.data_ptr() == bias_O.data_ptr())

    def product(self, x_BTI: Tensor) -> Tensor | None:
        """Outputs [B, T, O] of all linears, concatenated; None where they must run separately, because gradients are
        recorded or the weights do not share storage."""
        if self._whole is None or torch.is_grad_enabled() or not self._is_packed():
            return None
        y_BTO = F.linear(x_BTI, *self._whole)
        outputs = y_BTO.split([part.out_features for part in self._parts], dim=-1)
        adding = [(part.low_rank, y) for part, y in zip(self._parts, outputs, strict=True) if part.low_rank is not None]
        if adding:
            adding[0][0].add_together(adding, x_BTI)
        return y_BTO


def fuse_linears(model: nn.Module) -> None:
    """Fuses a model's linears that read the same input, for passes without gradients. Needs memory for one layer's
    weights at a time."""
    for module in model.modules():
        if isinstance(module, FusedLinears):
            module.pack()
