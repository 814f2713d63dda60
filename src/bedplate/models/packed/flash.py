"""FlashAttention where its own package is installed: the second edition (`flash_attn`, https://arxiv.org/abs/2307.08691)
or, for Hopper's devices, the third (`flash_attn_interface`, https://arxiv.org/abs/2407.08608).

It caps scores, which torch's own kernel does not; a bias and sinks it refuses. None of our installations brings it:
where it is there, it is one way more, tried and timed like the others.

Shapes: N tokens of the flattened rows, H query heads, G key-value heads, D features of one head, V of its value.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, Literal

from torch import Tensor

from bedplate.models.layers.attention_options import AttentionOptions
from bedplate.models.packed.placement import Placement
from bedplate.models.packed.varlen import UnequalLengths

Edition = Literal["flash3", "flash2"]
MODULES: dict[Edition, str] = {"flash3": "flash_attn_interface", "flash2": "flash_attn"}
ABLE = ("scale", "cap", "window")
"""Of `How`."""


@cache
def package(edition: Edition) -> Any | None:
    """The module, where it is installed."""
    try:
        return importlib.import_module(MODULES[edition])
    except (ImportError, OSError):  # the latter where its library is for another torch
        return None


class FlashAttention(UnequalLengths):
    """One edition's `flash_attn_varlen_func`. module: that has it."""

    able = ABLE

    def __init__(
        self, placement: Placement, causal: bool = True, edition: Edition = "flash2", module: Any | None = None
    ) -> None:
        self.name = MODULES[edition]
        super().__init__(placement, causal)
        self._module = package(edition) if module is None else module

    def missing(self) -> str | None:
        return f"{self.name} is not installed" if self._module is None else None

    def run(self, q_NHD: Tensor, k_NGD: Tensor, v_NGV: Tensor, edges_S: Tensor, how: AttentionOptions) -> Tensor:
        assert self._module is not None
        result = self._module.flash_attn_varlen_func(
            q_NHD,
            k_NGD,
            v_NGV,
            edges_S,
            edges_S,
            self.placement.longest,
            self.placement.longest,
            softmax_scale=how.scale,
            causal=self.causal,
            window_size=self.window(how) if how.window is not None else (-1, -1),
            softcap=how.cap or 0.0,
        )
        # Some versions of the third give the sums beside it.
        return result[0] if isinstance(result, tuple) else result
