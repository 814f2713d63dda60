"""Writing a flat batch's keys and values to their places, as one operation.

Shapes: N tokens, X rows or blocks with Y places each, G key-value heads, D features of a key, V of a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from bedplate.models.layers.attention import Attend
from bedplate.models.layers.attention_options import CrossAttend
from bedplate.models.layers.fused.operation import operation


class CachedAttend(Attend, CrossAttend, Protocol):
    """Attention of a flat batch over a cache."""

    def write(self, layer: int, k_NGD: Tensor, v_NGV: Tensor) -> None:
        """Keeps keys and values of the batch's tokens: of what an encoder has read (a decoder's own are kept when it
        attends)."""
        ...


def write_kv_reference(
    keys_XYGD: Tensor, values_XYGV: Tensor, at_N: Tensor, place_N: Tensor, k_NGD: Tensor, v_NGV: Tensor
) -> None:
    """The plain implementation of `write_kv`."""
    keys_XYGD[at_N, place_N] = k_NGD
    values_XYGV[at_N, place_N] = v_NGV


def _kernel() -> Callable[..., None]:
    from bedplate.inference.forward.kernels import write_kv

    return write_kv


write_kv = operation(
    "keep(Tensor(a!) keys, Tensor(b!) values, Tensor at, Tensor place, Tensor k, Tensor v) -> ()",
    write_kv_reference,
    _kernel,
)
"""keep(keys [X, Y, G, D], values [X, Y, G, V], at [N], place [N], k [N, G, D], v [N, G, V])"""
