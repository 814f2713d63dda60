"""Attention to an encoder's states (https://arxiv.org/abs/1706.03762, section 3.2.3).

Shapes: B rows, T tokens of the decoder, S of the encoder, H query heads, G key-value heads, D features of one head, E
of the encoder's states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bedplate.core.errors import UnsupportedModelError, UsageError
from bedplate.models.layers.attention import Attend
from bedplate.models.layers.attention_options import AttentionOptions
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.positions import Rotation
from bedplate.models.precision import Device
from bedplate.models.specs.transformer import Scales, TransformerSpec

KeysOf = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A layer's keys and values [B, S, G, D] of the encoder's states [B, S, E]."""


@runtime_checkable
class CrossAttend(Protocol):
    """A layout that supports cross-attention: it knows which of the encoder's tokens each token sees."""

    def cross_attend(self, layer: int, q_BTHD: Tensor, options: AttentionOptions, keys_of: KeysOf) -> Tensor:
        """Mixes the encoder's values for the queries: → [B, T, H, D]. `keys_of` is asked where they are not kept."""
        ...


class CrossAttention(nn.Module):
    """Queries of the decoder's tokens, keys and values of the encoder's states, without positions."""

    def __init__(self, spec: TransformerSpec, layer: int, device: Device, dtype: torch.dtype) -> None:
        super().__init__()
        if spec.attention.cross_size is None:
            raise UsageError("cross-attention needs the size of the encoder's states: cross_size")
        self.layer, self.head_dim = layer, spec.attention.head_dim
        scales = spec.scales or Scales()
        self.options = AttentionOptions(scales.attention, scales.attention_cap)
        q_size, kv_size = (
            spec.attention.heads * spec.attention.head_dim,
            spec.attention.kv_heads * spec.attention.head_dim,
        )
        self.q = Linear(spec.hidden_size, q_size, spec.attention.bias, device, dtype)
        self.k = Linear(spec.attention.cross_size, kv_size, spec.has_key_bias, device, dtype)
        self.v = Linear(spec.attention.cross_size, kv_size, spec.attention.bias, device, dtype)
        self.o = Linear(q_size, spec.hidden_size, spec.has_output_bias, device, dtype)

    def keys(self, states_BSE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, G, D] of the encoder's states."""
        B, S, _ = states_BSE.shape
        k, v = (layer(states_BSE).view(B, S, -1, self.head_dim) for layer in (self.k, self.v))
        return k, v

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        if not isinstance(attend, CrossAttend):
            raise UnsupportedModelError(f"attention to an encoder's states is not supported by {type(attend).__name__}")
        B, T, _ = x_BTD.shape
        q_BTHD = self.q(x_BTD).view(B, T, -1, self.head_dim)
        return self.o(attend.cross_attend(self.layer, q_BTHD, self.options, self.keys).reshape(B, T, -1))
