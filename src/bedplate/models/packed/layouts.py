"""The layout of a pass that keeps nothing: one entry for training and for reading, whatever the device.

Every implementation does what layers ask for (`How`) or refuses it by name; what is asked for decides between them, by
what each is able to do here.
"""

from __future__ import annotations

from bedplate.models.layers.attention import Attend
from bedplate.models.packed.block_attention import BlockAttention
from bedplate.models.packed.placement import Placement


def packed_attention(placement: Placement, causal: bool = True) -> Attend:
    """Each token of packed rows sees its own document, behind what its row shares."""
    return BlockAttention(placement, causal)
