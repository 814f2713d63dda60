"""The quantised blocks of GGUF files, one plain form for all of them, without changing a value.

A block type of the format is a packing of integers and of scales on one or two levels (k-quants: a half-precision scale
for 256 values, and a small integer for each 16 or 32 of them). Here the integers lie as nibbles and bit planes, and the
two levels are multiplied, which is exact in float32. `dequantise` gives what gguf.quants.dequantize gives, bit for bit.
"""

# Shape suffixes: N super-blocks, O out_features (rows), S sub-blocks of a row, B blocks of 32 values of a row.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 32
"""Values that are packed together."""

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class RawBlocks:
    """A matrix [out, in] as integers and scales, not dequantised. All tensors are contiguous.

    8 bits: quants int8 [out, in], value = scale · q.
    4, 5, 6 bits: q is unsigned, value = scale · q + minimum, or scale · table[q] where there is a table (int8 [16]).
        quants uint8 [out, in/32, 16]: the low four bits, a block's first 16 values in the low nibbles, its other 16 in
        the high ones. high uint8 [out, in/32, 4 · (bits − 4)]: the fifth bits as a little-endian word of 32 bits, then
        the sixth.
    scales and minima [out, in/size]: one for each `size` values (32 or 16); float16 where the file has them so, float32
    where they are the product of two levels.
    """

    bits: Literal[4, 5, 6, 8]
    quants: Tensor
    scales: Tensor
    minima: Tensor | None
    high: Tensor | None = None
    size: int = BLOCK
    table: Tensor | None = None

    @property
    def simple(self) -> bool:
        """Whether these are 8 or 4 bits with one half-precision scale (and minimum) for each 32 values."""
        return self.bits in (4, 8) and self.scales.dtype == torch.float16 and self.size == BLOCK and self.table is None

    def rows(self, order: Tensor) -> RawBlocks:
        """The same matrix with its rows in another order."""

        def taken(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[order].contiguous()

        quants, scales = self.quants[order].contiguous(), self.scales[order].contiguous()
        return replace(self, quants=quants, scales=scales, minima=taken(self.minima), high=taken(self.high))

    def integers(self) -> Tensor:
        """q as bytes [out, in]."""
        if self.bits == 8:
            return self.quants
        q_OBG = torch.cat((self.quants & 15, self.quants >> 4), dim=2)
        if self.high is not None:
            shifts = torch.arange(8, dtype=torch.uint8)
            planes = ((self.high[..., None] >> shifts) & 1).view(*self.high.shape[:2], self.bits - 4, BLOCK)
            for number in range(self.bits - 4):
                q_OBG = q_OBG | (planes[:, :, number] << (4 + number))
        return q_OBG.reshape(len(q_OBG), -1)


def dequantise(blocks: RawBlocks) -> Tensor:
    """The matrix that the blocks stand for, float32 [out, in]."""
    out, subs = blocks.scales.shape
    q = blocks.integers()
    values = q if blocks.table is None else blocks.table[q.int()]
    scaled = values.reshape(out, subs, blocks.size).float() * blocks.scales.float()[:, :, None]
    if blocks.minima is not None:
        scaled += blocks.minima.float()[:, :, None]
    return scaled.view(out, -1)


def read_raw(kind: str, data: Array, shape: tuple[int, int]) -> RawBlocks | None:
    """A matrix of this GGUF type as RawBlocks, or None for a type that is not made of such blocks.

    data: the tensor's bytes; shape: rows, then values of a row.
    """
    reader = _READERS.get(kind)
    if reader is None:
        return None
    values, read = reader
    out, size = shape
    return read(np.ascontiguousarray(data).view(np.uint8).reshape(out * size // values, -1), out)


# --- one reader for each type: bytes [N, bytes of a super-block] and the number of rows


def _q8_0(raw: Array, out: int) -> RawBlocks:
    return RawBlocks(8, _tensor(raw[:, 2:], out).view(torch.int8), _halves(raw[:, :2], out), None)


def _q4_0(raw: Array, out: int) -> RawBlocks:
    scales = _halves(raw[:, :2], out)
    return RawBlocks(4, _packed(raw[:, 2:], out), scales, scales * -8)


def _q4_1(raw: Array, out: int) -> RawBlocks:
    return RawBlocks(4, _packed(raw[:, 4:], out), _halves(raw[:, :2], out), _halves(raw[:, 2:4], out))


def _q5_0(raw: Array, out: int) -> RawBlocks:
    scales = _halves(raw[:, :2], out)
    return RawBlocks(5, _packed(raw[:, 6:], out), scales, scales * -16, _packed(raw[:, 2:6], out))


def _q5_1(raw: Array, out: int) -> RawBlocks:
    scales, minima = _halves(raw[:, :2], out), _halves(raw[:, 2:4], out)
    return RawBlocks(5, _packed(raw[:, 8:], out), scales, minima, _packed(raw[:, 4:8], out))


def _q4_k(raw: Array, out: int) -> RawBlocks:
    quants = _nibbles(_in_turn(raw[:, 16:], 32, 4))
    return RawBlocks(4, _packed(quants, out), *_two_levels(raw, out))


def _q5_k(raw: Array, out: int) -> RawBlocks:
    quants = _nibbles(_in_turn(raw[:, 48:], 32, 4))
    high = np.packbits(_in_turn(raw[:, 16:48], 32, 1), axis=-1, bitorder="little")
    return RawBlocks(5, _packed(quants, out), *_two_levels(raw, out), high=_packed(high, out, 4))


def _q6_k(raw: Array, out: int) -> RawBlocks:
    low, upper = _in_turn(raw[:, :128], 64, 4), _in_turn(raw[:, 128:192], 32, 2)
    planes = [np.packbits((upper >> bit) & 1, axis=-1, bitorder="little").reshape(-1, 4) for bit in (0, 1)]
    scales = _half(raw[:, 208:210]) * raw[:, 192:208].view(np.int8).astype(np.float32)
    high = _packed(np.concatenate(planes, axis=1), out, 8)
    return RawBlocks(6, _packed(_nibbles(low), out), _floats(scales, out), _floats(scales * -32, out), high, 16)


def _q2_k(raw: Array, out: int) -> RawBlocks:
    quants = _nibbles(_in_turn(raw[:, 16:80], 32, 2))
    scales = _half(raw[:, 80:82]) * (raw[:, :16] & 15).astype(np.float32)
    minima = _half(raw[:, 82:84]) * (raw[:, :16] >> 4).astype(np.float32)
    return RawBlocks(4, _packed(quants, out), _floats(scales, out), _floats(-minima, out), size=16)


def _q3_k(raw: Array, out: int) -> RawBlocks:
    low, third = _in_turn(raw[:, 32:96], 32, 2), _in_turn(raw[:, :32], 32, 1)
    codes = _in_turn(raw[:, 96:104], 8, 4) | (_in_turn(raw[:, 104:108], 4, 2) << 4)
    scales = _half(raw[:, 108:110]) * (codes.view(np.int8) - 32).astype(np.float32)
    quants = _packed(_nibbles(low | (third << 2)), out)
    return RawBlocks(4, quants, _floats(scales, out), _floats(scales * -4, out), size=16)


def _iq4_nl(raw: Array, out: int) -> RawBlocks:
    return RawBlocks(4, _packed(raw[:, 2:], out), _halves(raw[:, :2], out), None, table=torch.tensor(_IQ4_NL))


def _mxfp4(raw: Array, out: int) -> RawBlocks:
    # The table's values are doubled to be whole, so the scale is half of 2^(e − 127) (OCP Microscaling Formats v1.0).
    scales = np.ldexp(np.float32(1), raw[:, :1].astype(np.int32) - 128)
    return RawBlocks(4, _packed(raw[:, 1:], out), _floats(scales, out), None, table=torch.tensor(_MXFP4))


_IQ4_NL = np.array((-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113), np.int8)
_MXFP4 = np.array((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), np.int8)

_READERS: dict[str, tuple[int, Callable[[Array, int], RawBlocks]]] = {
    "Q8_0": (32, _q8_0),
    "Q4_0": (32, _q4_0),
    "Q4_1": (32, _q4_1),
    "Q5_0": (32, _q5_0),
    "Q5_1": (32, _q5_1),
    "IQ4_NL": (32, _iq4_nl),
    "MXFP4": (32, _mxfp4),
    "Q2_K": (256, _q2_k),
    "Q3_K": (256, _q3_k),
    "Q4_K": (256, _q4_k),
    "Q5_K": (256, _q5_k),
    "Q6_K": (256, _q6_k),
}
"""Type → values of a super-block, and its reader."""


def _two_levels(raw: Array, out: int) -> tuple[Tensor, Tensor]:
    """Scales and minima of Q4_K and Q5_K: eight six-bit codes of each in twelve bytes, after the two halves."""
    first, second, last = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scale = np.concatenate((first & 63, (last & 15) | ((first >> 2) & 48)), axis=1).astype(np.float32)
    minimum = np.concatenate((second & 63, (last >> 4) | ((second >> 2) & 48)), axis=1).astype(np.float32)
    return _floats(_half(raw[:, :2]) * scale, out), _floats(-(_half(raw[:, 2:4]) * minimum), out)


def _in_turn(raw: Array, together: int, bits: int) -> Array:
    """Values of `bits` bits: of each `together` bytes first the lowest bits of all of them, then the next bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    parts = raw.reshape(len(raw), -1, 1, together) >> shifts
    return (parts & np.uint8((1 << bits) - 1)).reshape(len(raw), -1)


def _nibbles(values: Array) -> Array:
    """Values under 16 as nibbles, in blocks of 32: the first 16 low, the others high."""
    halves = values.reshape(-1, 2, BLOCK // 2)
    return halves[:, 0] | (halves[:, 1] << 4)


def _half(raw: Array) -> Array:
    """One half-precision number a row, as float32 [N, 1]."""
    return raw.copy().view(np.float16).astype(np.float32)


def _halves(raw: Array, out: int) -> Tensor:
    return torch.from_numpy(raw.copy().view(np.float16).reshape(out, -1))


def _floats(values: Array, out: int) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32).reshape(out, -1))


def _tensor(raw: Array, out: int) -> Tensor:
    return torch.from_numpy(raw.copy().reshape(out, -1))


def _packed(raw: Array, out: int, each: int | None = None) -> Tensor:
    """Packed bytes [out, in/32, bytes of a block]; `each`: how many those are, where a row of `raw` is more."""
    return torch.from_numpy(raw.reshape(out, -1, each or raw.shape[1]).copy())
