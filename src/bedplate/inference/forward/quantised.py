"""Weights of 8 or 4 bits on torch, for devices: linears whose weight is integers in blocks of 32 along the input.

The formats are the native kernel's (`quantise_int8`, `quantise_int4`). 4-bit products use torch's own kernel for packed
weights where a trial shows that it is correct on this device; otherwise the weight is dequantised for each product,
which saves memory but no time. The embedding, a head tied to it, and experts are not quantised.
"""

# Shape suffixes: T tokens, O out_features, I in_features, N blocks of a row, G the values of one block (32).

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.core.errors import UsageError
from bedplate.inference.native.quantize import quantise_int4, quantise_int8
from bedplate.models.checkpoints.gguf_blocks import BLOCK
from bedplate.models.layers.fused.linears import FusedLinears
from bedplate.models.layers.linear import Linear
from bedplate.models.model import Model

Bits = Literal["int8", "int4"]
_TILES = 8
"""torch's `inner_k_tiles`: so many tiles of 16 inputs lie together."""


class QuantisedLinear(Linear):
    """A `Linear`, with the same low-rank hook, whose weight is dequantised on use. It cannot be trained."""

    quants_ONG: Tensor
    scale_ON: Tensor
    minimum_ON: Tensor | None

    def __init__(self, linear: Linear, bits: Bits) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.low_rank, self.products, self._dtype = None, linear.products, linear.weight.dtype
        with torch.no_grad():
            data_ONb = (quantise_int8 if bits == "int8" else quantise_int4)(linear.weight).data
        scale_ON = data_ONb[..., :2].contiguous().view(torch.float16)[..., 0]
        self._packed: tuple[Tensor, Tensor] | None = None
        if bits == "int8":
            self._set(data_ONb[..., 2:].contiguous().view(torch.int8), scale_ON, None)
            return
        low_ONh = data_ONb[..., 4:]
        quants_ONG = torch.cat((low_ONh & 15, low_ONh >> 4), dim=-1)
        minimum_ON = data_ONb[..., 2:4].contiguous().view(torch.float16)[..., 0]
        self._set(quants_ONG, scale_ON, minimum_ON)
        if packs(linear.weight.device, self._dtype) and self.in_features % (16 * _TILES) == self.out_features % 16 == 0:
            self._packed = packed(quants_ONG, scale_ON, minimum_ON, self._dtype)
            self.quants_ONG = quants_ONG[:0]  # they are in the packed ones

    def _set(self, quants_ONG: Tensor, scale_ON: Tensor, minimum_ON: Tensor | None) -> None:
        self.register_buffer("quants_ONG", quants_ONG, persistent=False)
        self.register_buffer("scale_ON", scale_ON, persistent=False)
        self.register_buffer("minimum_ON", minimum_ON, persistent=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dequantised weight, [O, I]."""
        if self._packed is not None:
            identity = torch.eye(self.in_features, dtype=self._dtype, device=self.scale_ON.device)
            return self._product(identity).t()
        quants_ONG = self.quants_ONG.to(self._dtype) * self.scale_ON.to(self._dtype)[..., None]
        if self.minimum_ON is not None:
            quants_ONG = quants_ONG + self.minimum_ON.to(self._dtype)[..., None]
        return quants_ONG.flatten(1)

    def plain(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return F.linear(x, self.weight, self.bias)
        y = self._product(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def _product(self, x_TI: Tensor) -> Tensor:
        assert self._packed is not None
        return packed_product(x_TI, *self._packed)


def packed(quants_ONG: Tensor, scale_ON: Tensor, minimum_ON: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The weights in the layout of torch's packed product: integers in tiles, and [N, O, 2] of scales and zero
    points."""
    quants_OI = quants_ONG.flatten(1)
    middle_ON = minimum_ON.float() + 8 * scale_ON.float()
    scale_and_zero = torch.stack((scale_ON.float(), middle_ON), dim=-1).transpose(0, 1).contiguous().to(dtype)
    if quants_OI.is_cpu:
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(quants_OI.int(), _TILES), scale_and_zero
    pairs = (quants_OI[:, ::2] << 4 | quants_OI[:, 1::2]).contiguous()
    return torch.ops.aten._convert_weight_to_int4pack(pairs, _TILES), scale_and_zero


def packed_product(x_TI: Tensor, tiles: Tensor, scale_and_zero: Tensor) -> Tensor:
    """x Wᵀ of packed weights, [T, O]."""
    product: Any = torch.ops.aten._weight_int4pack_mm_for_cpu if x_TI.is_cpu else torch.ops.aten._weight_int4pack_mm
    return product(x_TI, tiles, BLOCK, scale_and_zero)


@cache
def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's product of packed weights is correct on this device."""
    generator = torch.Generator().manual_seed(0)
    quants_ONG = torch.randint(0, 16, (32, 4, BLOCK), generator=generator, dtype=torch.uint8).to(device)
    scale_ON, minimum_ON = (torch.rand(32, 4, generator=generator).to(device) for _ in range(2))
    x_TI = torch.randn(3, 4 * BLOCK, generator=generator).to(device, dtype)
    weight_OI = (quants_ONG * scale_ON[..., None] + minimum_ON[..., None]).flatten(1)
    expected = x_TI.float() @ weight_OI.float().t()
    try:
        actual = packed_product(x_TI, *packed(quants_ONG, scale_ON, minimum_ON, dtype)).float()
    except (RuntimeError, NotImplementedError):
        return False
    return bool((actual - expected).abs().max() <= 8 * torch.finfo(dtype).eps * expected.abs().max())


def quantised(model: Model, bits: Bits) -> Model:
    """A copy of the model whose linears in blocks, and untied head, have so many bits; all other tensors are shared.
    UsageError where a row is not a whole number of blocks."""
    shared = {id(p): p for p in (*model.parameters(), *model.buffers())}
    quantized_model = copy.deepcopy(model, shared)
    replacements: dict[Linear, Linear] = {}
    for path, module in list(quantized_model.named_modules()):
        if type(module) is Linear and ("layers" in path.split(".") or path.split(".")[-1] == "lm_head"):
            if module.in_features % BLOCK:
                raise UsageError(
                    f"{path} reads {module.in_features} features, which are not a multiple of {BLOCK}: its weights "
                    f"cannot be {bits}; ask for others"
                )
            parent, _, name = path.rpartition(".")
            replacements[module] = QuantisedLinear(module, bits)
            setattr(quantized_model.get_submodule(parent), name, replacements[module])
    for module in quantized_model.modules():
        if isinstance(module, FusedLinears):
            module.exchange(replacements)
    return quantized_model
