"""How much of a forward pass is made again for the backward pass, instead of being kept."""

from __future__ import annotations

from typing import Literal

Recompute = Literal["none", "selective", "full"]
"""none: what the operations keep by themselves. selective: what costs no product is made again. full: of each block its
input is kept, and the block runs again (https://arxiv.org/abs/1604.06174, https://arxiv.org/abs/2205.05198)."""
