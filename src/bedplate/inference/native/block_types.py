"""Types of quantised GGUF blocks that the kernel reads as they are stored."""

from __future__ import annotations

from bedplate.models.checkpoints.gguf_blocks import block_bits

SOURCES = frozenset(
    (
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    )
)
"""Their types, by the gguf package's names (`Source` in pack.h)."""


def accepts_blocks(block_type: str, weights: str) -> bool:
    """Whether the kernel holds blocks of this type as they are where weights of so many bits are asked for."""
    return block_type in SOURCES and (weights == "int4" or (weights == "int8" and block_bits(block_type) >= 8))
