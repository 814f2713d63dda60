"""Values of GGUF blocks in float32, by torch for the types that most files are made of, else by the gguf package.

The arithmetic is the package's, step by step, so that both give the same bits. Shapes: N blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from bedplate.models.checkpoints.gguf_types import TYPES


def _half(data_N: Tensor, begin: int) -> Tensor:
    """The float16 at this byte of each block, [N, 1] in float32."""
    return data_N[:, begin : begin + 2].contiguous().view(torch.float16).float()


def _nibbles(data_N: Tensor) -> Tensor:
    """16 bytes → 32 values: the low halves, then the high ones."""
    return torch.cat((data_N & 15, data_N >> 4), 1)


def _fifth_bits(data_N: Tensor) -> Tensor:
    """4 bytes → 32 bits, the lowest first."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((data_N[:, :, None] >> shifts) & 1).flatten(1)


def _f32(data_N: Tensor) -> Tensor:
    return data_N.view(torch.float32)


def _bf16(data_N: Tensor) -> Tensor:
    return data_N.view(torch.bfloat16).float()


def _q4_0(data_N: Tensor) -> Tensor:
    return _half(data_N, 0) * (_nibbles(data_N[:, 2:]).float() - 8)


def _q4_1(data_N: Tensor) -> Tensor:
    return (_half(data_N, 0) * _nibbles(data_N[:, 4:]).float()).add_(_half(data_N, 2))


def _q5_0(data_N: Tensor) -> Tensor:
    values = _nibbles(data_N[:, 6:]) | (_fifth_bits(data_N[:, 2:6]) << 4)
    return _half(data_N, 0) * (values.float() - 16)


def _q8_0(data_N: Tensor) -> Tensor:
    return _half(data_N, 0) * data_N[:, 2:].contiguous().view(torch.int8).float()


_BY_TORCH: Mapping[str, Callable[[Tensor], Tensor]] = {
    "F32": _f32,
    "F16": lambda data_N: _half(data_N, 0),
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
}


def dequantise(ggml_type: str, data: Tensor) -> Tensor:
    """The values of rows of bytes [R, bytes of a row], float32 [R, values of a row]; float32 rows are not copied.

    NotImplementedError for a type that the package cannot dequantise either.
    """
    if ggml_type in _BY_TORCH:
        return _BY_TORCH[ggml_type](data.reshape(-1, TYPES[ggml_type].size)).view(len(data), -1)
    import gguf

    values = gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType[ggml_type])
    return torch.from_numpy(values.astype(np.float32, copy=False))
