"""Weights in 8 and 4 bits, in blocks of 32 along the input: what the native decoder runs on, in plain torch.

8 bits: w ≈ scale · q, q in −127 … 127 (GGUF's Q8_0). 4 bits: w ≈ scale · q + minimum, q in 0 … 15 (GGUF's Q4_1), the
range narrowed where that lowers the squared error, then scale and minimum refitted to the chosen q by least squares.
Both are laid out as a GGUF file has them.
"""

# Shape suffixes: O out_features, I in_features, N blocks, G the values of one block (32).

from __future__ import annotations

import torch
from torch import Tensor

from bedplate.core.errors import UsageError
from bedplate.models.checkpoints.gguf_blocks import BLOCK, RawBlocks, block_bits

SOURCES = frozenset(["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
"""Types of GGUF blocks that the kernel reads as they are stored, by the gguf package's names (`Source` in pack.h)."""
_RANGES = (1.0, 0.9, 0.8)
"""Shares of a block's range that the 4-bit search tries."""
_CHUNK = 1 << 22
"""Values quantised at once: temporaries stay in the cache."""


def accepts_blocks(block_type: str, weights: str) -> bool:
    """Whether the kernel holds blocks of this type as they are where weights of so many bits are asked for."""
    return block_type in SOURCES and (weights == "int4" or (weights == "int8" and block_bits(block_type) >= 8))


def quantise_int8(weight_OI: Tensor) -> RawBlocks:
    """Symmetric 8-bit blocks of a float matrix."""
    parts: list[Tensor] = []
    for x_NG in _blocks(weight_OI):
        scale = (x_NG.abs().amax(1, keepdim=True) / 127).half()
        quants = (x_NG / _nonzero(scale.float())).round_().clamp_(-127, 127).to(torch.int8)
        parts.append(torch.cat((_bytes(scale), quants.view(torch.uint8)), dim=1))
    return _joined("Q8_0", weight_OI, parts)


def quantise_int4(weight_OI: Tensor) -> RawBlocks:
    """Asymmetric 4-bit blocks of a float matrix."""
    parts: list[Tensor] = []
    for x_NG in _blocks(weight_OI):
        q_NG, scale, minimum = _int4(x_NG)
        packed = q_NG[:, : BLOCK // 2] | (q_NG[:, BLOCK // 2 :] << 4)
        parts.append(torch.cat((_bytes(scale), _bytes(minimum), packed), dim=1))
    return _joined("Q4_1", weight_OI, parts)


def _bytes(x_half: Tensor) -> Tensor:
    return x_half.contiguous().view(torch.uint8)


def _joined(block_type: str, weight_OI: Tensor, parts: list[Tensor]) -> RawBlocks:
    out, size = weight_OI.shape
    return RawBlocks(block_type, torch.cat(parts).view(out, size // BLOCK, -1))


def _blocks(weight_OI: Tensor) -> list[Tensor]:
    if weight_OI.shape[1] % BLOCK:
        raise UsageError(f"rows of {weight_OI.shape[1]} values do not divide into blocks of {BLOCK}")
    return [part.float() for part in weight_OI.reshape(-1, BLOCK).split(_CHUNK // BLOCK)]


def _nonzero(scale: Tensor) -> Tensor:
    """Blocks of one value have no range; anything but zero serves as their scale."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _int4(x_NG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q uint8 [N, 32], and scale and minimum float16 [N, 1]."""
    low, high = x_NG.amin(1, keepdim=True), x_NG.amax(1, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2
    best_error = torch.full_like(low, torch.inf)
    best_q = torch.zeros_like(x_NG)
    best_scale, best_minimum = torch.zeros_like(low), low.clone()
    for share in _RANGES:
        scale = _nonzero(half * (2 * share / 15))
        q = ((x_NG - (middle - half * share)) / scale).round_().clamp_(0, 15)
        # Least squares of x on q, in the precision that is stored.
        q_mean, x_mean = q.mean(1, keepdim=True), x_NG.mean(1, keepdim=True)
        spread = ((q - q_mean) ** 2).sum(1, keepdim=True)
        slope = ((q - q_mean) * x_NG).sum(1, keepdim=True) / _nonzero(spread)
        slope = slope.half().float()
        minimum = (x_mean - slope * q_mean).half().float()
        error = ((q * slope + minimum - x_NG) ** 2).sum(1, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_q = torch.where(better, q, best_q)
        best_scale, best_minimum = torch.where(better, slope, best_scale), torch.where(better, minimum, best_minimum)
    return best_q.to(torch.uint8), best_scale.half(), best_minimum.half()
