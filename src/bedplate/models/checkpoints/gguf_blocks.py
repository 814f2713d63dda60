"""The quantised blocks of GGUF files as they lie: bytes that keep their type's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bedplate.models.gguf_header import TYPES

BLOCK = 32
"""Values of one block of the types that are not k-quants."""
_HALVES: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
"""Where in a block its scale and its minimum lie, float16: all of it that can be NaN or infinite."""
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ENDLESS = 0x7C00
"""The bits of a float16's exponent, all of them set in what is not finite."""
_OVERFLOWS = 252
"""The first exponent of a block of MXFP4 with which its largest value, 12 halves, is no float32 any more."""


@dataclass(frozen=True, eq=False)
class RawBlocks:
    """A matrix [out, in] as a GGUF file holds it, in blocks along `in`, not dequantised.

    ggml_type: the type's name in the gguf package, as in "Q4_K". data: uint8 [out, blocks of a row, bytes of a block],
    contiguous; a stack of matrices has one more dimension in front.
    """

    ggml_type: str
    data: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix that the blocks stand for."""
        *rows, blocks, _ = self.data.shape
        return (*rows, blocks * block_size(self.ggml_type)[0])

    @property
    def bits(self) -> int:
        """Bits of a value, its share of the scales left out."""
        return block_bits(self.ggml_type)

    def rows(self, order: Tensor) -> RawBlocks:
        """The same matrix with its rows in another order. Moved by numpy, in this thread: for so little at a time
        torch's threads spend longer waking each other, the more so beside other work."""
        return RawBlocks(self.ggml_type, torch.from_numpy(np.ascontiguousarray(self.data.numpy()[order.numpy()])))

    def finite(self) -> bool:
        """Whether all the values are, which the scales tell (of types that are not listed here, nothing does)."""
        bytes_ = self.data.numpy()
        if self.ggml_type == "MXFP4" and int(bytes_[..., 0].max()) >= _OVERFLOWS:
            return bool(self.dequantised().isfinite().all())
        halves = (bytes_[..., at : at + 2].view(np.uint16) for at in _HALVES.get(self.ggml_type, ()))
        return not any(bool(((half & _ENDLESS) == _ENDLESS).any()) for half in halves)

    def dequantised(self) -> Tensor:
        """The matrix that the blocks stand for, float32."""
        return dequantise(self.ggml_type, self.data.flatten(-2).flatten(0, -2)).view(self.shape)


def block_bits(ggml_type: str) -> int:
    """Bits of a value of a type, its share of the scales left out."""
    return int(next(letter for letter in ggml_type if letter.isdigit()))


def block_size(ggml_type: str) -> tuple[int, int]:
    """Values and bytes of one block of a type; (1, …) where it has none."""
    return TYPES[ggml_type][1:]


def raw_blocks(ggml_type: str, data: NDArray[np.uint8], shape: Sequence[int]) -> RawBlocks:
    """A tensor's bytes as blocks. shape: rows first, then values of a row."""
    values, size = block_size(ggml_type)
    *rows, width = shape
    return RawBlocks(ggml_type, torch.from_numpy(data.reshape(*rows, width // values, size)))


def _half(blocks: Tensor, begin: int) -> Tensor:
    """The float16 at this byte of each block, as float32."""
    return blocks[..., begin : begin + 2].contiguous().view(torch.float16).float()


def _nibbles(blocks: Tensor, begin: int) -> Tensor:
    """The bytes from `begin` on as twice as many values: the low halves, then the high ones."""
    return torch.cat((blocks[..., begin:] & 15, blocks[..., begin:] >> 4), -1).float()


_BY_TORCH: Mapping[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": lambda blocks: _half(blocks, 0) * (_nibbles(blocks, 2) - 8),
    "Q4_1": lambda blocks: (_half(blocks, 0) * _nibbles(blocks, 4)).add_(_half(blocks, 2)),
    "Q8_0": lambda blocks: _half(blocks, 0) * blocks[..., 2:].contiguous().view(torch.int8).float(),
}
"""The types that most files are made of, with the package's arithmetic: importing the package takes as long as opening
a small base, and its Q8_0 takes twice as long."""


def dequantise(ggml_type: str, data: Tensor) -> Tensor:
    """Rows of bytes [R, bytes of a row] → values float32 [R, values of a row]: plain floats and the commonest blocks
    by torch, others by the gguf package. NotImplementedError for a type that it cannot read."""
    if ggml_type in _FLOATS:
        return data.contiguous().view(_FLOATS[ggml_type]).float()
    if ggml_type in _BY_TORCH:
        return _BY_TORCH[ggml_type](data.unflatten(-1, (-1, TYPES[ggml_type].size))).flatten(-2)
    import gguf

    values = gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType[ggml_type])
    return torch.from_numpy(values.astype(np.float32, copy=False))
