"""Attention to an encoder's states (https://arxiv.org/abs/1706.03762, section 3.2.3).

Shapes: B rows, T tokens of the decoder, S of the encoder, P documents, L tokens of the longest, H query heads, G
key-value heads, D features of one head, E of the encoder's states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bedplate.core.errors import UnsupportedModelError, UsageError
from bedplate.models.layers.attention import Attend, masked_attention
from bedplate.models.layers.documents import Recurrence
from bedplate.models.layers.how import PLAIN, How
from bedplate.models.layers.linear import Linear
from bedplate.models.layers.padded import PaddedDocuments
from bedplate.models.layers.positions import Rotation
from bedplate.models.specs.transformer import Scales, TransformerSpec

KeysOf = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A layer's keys and values [B, S, G, D] of the encoder's states [B, S, E]."""


@runtime_checkable
class Across(Protocol):
    """A layout that also knows which of the encoder's tokens each token sees."""

    def across(self, layer: int, q_BTHD: Tensor, how: How, keys_of: KeysOf) -> Tensor:
        """Mixes the encoder's values for the queries: → [B, T, H, D]. `keys_of` is asked where they are not kept."""
        ...


class CrossAttention(nn.Module):
    """Queries of the decoder's tokens, keys and values of the encoder's states, without positions."""

    def __init__(
        self, spec: TransformerSpec, layer: int, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        if spec.cross_size is None:
            raise UsageError("cross-attention needs the size of the encoder's states: cross_size")
        self.layer, self.head_dim = layer, spec.head_dim
        scales = spec.scales or Scales()
        self.how = How(scales.attention, scales.attention_cap)
        q_size, kv_size = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.q = Linear(spec.hidden_size, q_size, spec.attention_bias, device, dtype)
        self.k = Linear(spec.cross_size, kv_size, spec.has_key_bias, device, dtype)
        self.v = Linear(spec.cross_size, kv_size, spec.attention_bias, device, dtype)
        self.o = Linear(q_size, spec.hidden_size, spec.has_output_bias, device, dtype)

    def keys(self, states_BSE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, S, G, D] of the encoder's states."""
        B, S, _ = states_BSE.shape
        k, v = (layer(states_BSE).view(B, S, -1, self.head_dim) for layer in (self.k, self.v))
        return k, v

    def forward(self, x_BTD: Tensor, by: Rotation | None, attend: Attend) -> Tensor:
        if not isinstance(attend, Across):
            raise UnsupportedModelError(f"attention to an encoder's states is not supported by {type(attend).__name__}")
        B, T, _ = x_BTD.shape
        q_BTHD = self.q(x_BTD).view(B, T, -1, self.head_dim)
        return self.o(attend.across(self.layer, q_BTHD, self.how, self.keys).reshape(B, T, -1))


class FromStates:
    """A decoder's own layout, beside the encoder's states of this pass.

    Where neither side has segments, each row is one document. Otherwise a token sees the encoder's tokens of its own
    row and segment.
    """

    keeps = False

    def __init__(
        self, own: Attend, states_BSE: Tensor, segments_BT: Tensor | None = None, sources_BS: Tensor | None = None
    ) -> None:
        self._own, self._states = own, states_BSE
        self._documents: tuple[PaddedDocuments, PaddedDocuments] | None = None
        if segments_BT is not None or sources_BS is not None:
            if segments_BT is None or sources_BS is None:
                raise UsageError("segments are given for one side of an encoder–decoder and not for the other")
            ours, theirs = PaddedDocuments(segments_BT), PaddedDocuments(sources_BS)
            self._pick(ours, theirs)

    def _pick(self, ours: PaddedDocuments, theirs: PaddedDocuments) -> None:
        """Of each document of the decoder, the one of the encoder that has its row and number."""
        number = {name: at for at, name in enumerate(theirs.names)}
        missing = next((name for name in ours.names if name not in number or name[1] == 0), None)
        if missing is not None:
            raise UsageError(f"row {missing[0]}: document {missing[1]} has no text for the encoder of its own")
        order = torch.tensor([number[name] for name in ours.names], device=theirs.gather_PL.device)
        self._gather_PL, self._inside_PL = theirs.gather_PL[order], theirs.inside_PL[order]
        self._documents = ours, theirs

    def __call__(self, layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGV: Tensor, how: How = PLAIN) -> Tensor:
        return self._own(layer, q_BTHD, k_BTGD, v_BTGV, how)

    def recur(self, layer: int, run: Recurrence, x_BTC: Tensor) -> Tensor:
        return self._own.recur(layer, run, x_BTC)

    def across(self, layer: int, q_BTHD: Tensor, how: How, keys_of: KeysOf) -> Tensor:
        k_BSGD, v_BSGD = keys_of(self._states)
        if self._documents is None:
            if how.plain:
                gqa = q_BTHD.shape[2] != k_BSGD.shape[2]
                q, k, v = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGD))
                return F.scaled_dot_product_attention(q, k, v, scale=how.scale, enable_gqa=gqa).transpose(1, 2)
            seen_BTS = torch.ones(1, q_BTHD.shape[1], k_BSGD.shape[1], dtype=torch.bool, device=q_BTHD.device)
            return masked_attention(q_BTHD, k_BSGD, v_BSGD, seen_BTS, how)
        ours, theirs = self._documents
        q_PLHD = ours.rows(q_BTHD, ours.gather_PL)
        k_PLGD, v_PLGD = (theirs.rows(x, self._gather_PL) for x in (k_BSGD, v_BSGD))
        seen_PTS = self._inside_PL[:, None].expand(-1, q_PLHD.shape[1], -1)
        return ours.back(masked_attention(q_PLHD, k_PLGD, v_PLGD, seen_PTS, how))
