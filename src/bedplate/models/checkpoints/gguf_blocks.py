"""The quantised blocks of GGUF files as they lie: bytes that keep their type's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from bedplate.models.checkpoints.gguf_values import dequantise

BLOCK = 32
"""Values of one block of the types that are not k-quants."""


@dataclass(frozen=True, eq=False)
class RawBlocks:
    """A matrix [out, in] as a GGUF file holds it, in blocks along `in`, not dequantised.

    kind: the type's name in the gguf package, as in "Q4_K". data: uint8 [out, blocks of a row, bytes of a block],
    contiguous; a stack of matrices has one more dimension in front.
    """

    kind: str
    data: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix that the blocks stand for."""
        *rows, blocks, _ = self.data.shape
        return (*rows, blocks * block_size(self.kind)[0])

    @property
    def bits(self) -> int:
        """Bits of a value, its share of the scales left out."""
        return int(next(letter for letter in self.kind if letter.isdigit()))

    def rows(self, order: Tensor) -> RawBlocks:
        """The same matrix with its rows in another order."""
        return RawBlocks(self.kind, self.data[order].contiguous())

    def dequantised(self) -> Tensor:
        """The matrix that the blocks stand for, float32."""
        return dequantise(self.kind, self.data.flatten(-2).flatten(0, -2)).view(self.shape)


def block_size(kind: str) -> tuple[int, int]:
    """Values and bytes of one block of a type; (1, …) where it has none."""
    return gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]


def raw_blocks(kind: str, data: NDArray[np.uint8], shape: Sequence[int]) -> RawBlocks:
    """A tensor's bytes as blocks. shape: rows first, then values of a row."""
    values, size = block_size(kind)
    *rows, width = shape
    return RawBlocks(kind, torch.from_numpy(data.reshape(*rows, width // values, size)))
