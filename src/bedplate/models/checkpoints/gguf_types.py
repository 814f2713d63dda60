"""The types of tensors in GGUF files: their numbers, and the blocks that rows consist of (docs/gguf.md of ggml).

What the gguf package has as `GGMLQuantizationType` and `GGML_QUANT_SIZES`, without importing it: it makes tables for
every type that it can dequantise, which takes a tenth of the time to a first token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class GgufType(NamedTuple):
    """number: in files. values, size: of one block, whose size is in bytes."""

    number: int
    values: int
    size: int


TYPES: Mapping[str, GgufType] = {
    "F32": GgufType(0, 1, 4),
    "F16": GgufType(1, 1, 2),
    "Q4_0": GgufType(2, 32, 18),
    "Q4_1": GgufType(3, 32, 20),
    "Q5_0": GgufType(6, 32, 22),
    "Q5_1": GgufType(7, 32, 24),
    "Q8_0": GgufType(8, 32, 34),
    "Q8_1": GgufType(9, 32, 40),
    "Q2_K": GgufType(10, 256, 84),
    "Q3_K": GgufType(11, 256, 110),
    "Q4_K": GgufType(12, 256, 144),
    "Q5_K": GgufType(13, 256, 176),
    "Q6_K": GgufType(14, 256, 210),
    "Q8_K": GgufType(15, 256, 292),
    "IQ2_XXS": GgufType(16, 256, 66),
    "IQ2_XS": GgufType(17, 256, 74),
    "IQ3_XXS": GgufType(18, 256, 98),
    "IQ1_S": GgufType(19, 256, 50),
    "IQ4_NL": GgufType(20, 32, 18),
    "IQ3_S": GgufType(21, 256, 110),
    "IQ2_S": GgufType(22, 256, 82),
    "IQ4_XS": GgufType(23, 256, 136),
    "I8": GgufType(24, 1, 1),
    "I16": GgufType(25, 1, 2),
    "I32": GgufType(26, 1, 4),
    "I64": GgufType(27, 1, 8),
    "F64": GgufType(28, 1, 8),
    "IQ1_M": GgufType(29, 256, 56),
    "BF16": GgufType(30, 1, 2),
    "TQ1_0": GgufType(34, 256, 54),
    "TQ2_0": GgufType(35, 256, 66),
    "MXFP4": GgufType(39, 32, 17),
    "NVFP4": GgufType(40, 64, 36),
    "Q1_0": GgufType(41, 128, 18),
}
NAMES: Mapping[int, str] = {ggml_type.number: name for name, ggml_type in TYPES.items()}
