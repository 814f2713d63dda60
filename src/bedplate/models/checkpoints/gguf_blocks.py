"""The quantised blocks of GGUF files as they lie: bytes that keep their type's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


def read_raw(kind: str, data: NDArray[Any], shape: Sequence[int]) -> RawBlocks | None:
    """A copy of a tensor's bytes as RawBlocks, or None for a type that is not made of blocks.

    shape: rows first, then values of a row.
    """
    values, size = block_size(kind)
    if values == 1:
        return None
    *rows, width = shape
    raw = np.array(data, copy=True).view(np.uint8).reshape(*rows, width // values, size)
    return RawBlocks(kind, torch.from_numpy(raw))
