"""The interface between layers and layouts: per-layer attention settings, a reference implementation of all of them,
and the protocols of recurrent layers and of layouts with cross-attention.

Shapes: B rows, T queries, S keys, H query heads, G key-value heads, R = H/G, D features of a query and a key, V of a
value; for recurrent layers S sequences of at most L tokens, C input features, E output features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError


@dataclass(frozen=True, eq=False)
class AttentionOptions:
    """Per-layer attention settings: scale, soft-cap, window, bias, sinks. The layout (`Attend`) determines which tokens
    exist and see each other.

    scale: factor of the scores; None: 1/√D. softcap: c · tanh(x / c) of the scaled scores (Gemma-2, arXiv 2408.00118).
    window: how many tokens a query sees: in a causal layout itself and the ones before it, otherwise half of them on
    each side. bias: a function from distances (key position − query position, int64 [B, T, S]) to the term added to the
    scores, [B or 1, H, T, S] (T5, arXiv 1910.10683). sinks: [H], per head one extra logit without a value (gpt-oss).
    """

    scale: float | None = None
    softcap: float | None = None
    window: int | None = None
    bias: Callable[[Tensor], Tensor] | None = None
    sinks: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether scores are only scaled and normalised, over all keys that the layout makes visible."""
        return self.fits_sdpa and self.window is None

    @property
    def fits_sdpa(self) -> bool:
        """Whether torch's `scaled_dot_product_attention` supports the options, given a mask."""
        return self.softcap is None and self.bias is None and self.sinks is None

    def check_supported(self, implementation: str, *supported: str) -> None:
        """Raises UnsupportedModelError for an option that is set and not among the `supported` ones."""
        for name in (field.name for field in fields(self)):
            if name not in supported and getattr(self, name) is not None:
                feature = name if name == "sinks" else f"a {name}"
                raise UnsupportedModelError(f"attention with {feature} is not supported by {implementation}")

    def apply_window(self, seen_BTS: Tensor, distance_BTS: Tensor | None, causal: bool) -> Tensor:
        """The mask of visible keys, bool [B, T, S], narrowed to the window."""
        if self.window is None or distance_BTS is None:
            return seen_BTS
        return seen_BTS & (distance_BTS.abs() <= (self.window - 1 if causal else self.window // 2))


PLAIN = AttentionOptions()


def plain_attention(
    q_BTHD: Tensor,
    k_BSGD: Tensor,
    v_BSGV: Tensor,
    seen_BTS: Tensor,
    options: AttentionOptions,
    distance_BTS: Tensor | None,
) -> Tensor:
    """Attention written out, [B, T, H, V]: products in the tensors' dtype, softmax in float32 or wider.

    seen: mask of visible keys, bool [B or 1, T, S]; every query must see at least one. distance: key position − query
    position, int64 of the same shape, for a bias.
    """
    B, T, H, D = q_BTHD.shape
    S, G, V = *k_BSGD.shape[1:3], v_BSGV.shape[-1]
    q_BTGRD = q_BTHD.reshape(B, T, G, H // G, D)
    scores_BHTS = torch.einsum("btgrd,bsgd->bgrts", q_BTGRD, k_BSGD).reshape(B, H, T, S)
    scores_BHTS = scores_BHTS.to(torch.promote_types(q_BTHD.dtype, torch.float32))
    scores_BHTS = scores_BHTS * (D**-0.5 if options.scale is None else options.scale)
    if options.softcap is not None:
        scores_BHTS = options.softcap * torch.tanh(scores_BHTS / options.softcap)
    if options.bias is not None:
        assert distance_BTS is not None
        scores_BHTS = scores_BHTS + options.bias(distance_BTS)
    scores_BHTS = scores_BHTS.masked_fill(~seen_BTS[:, None], -torch.inf)
    if options.sinks is not None:
        sinks = options.sinks.to(scores_BHTS.dtype)[None, :, None, None].expand(B, H, T, 1)
        scores_BHTS = torch.cat((scores_BHTS, sinks), dim=-1)
    p_BHTS = scores_BHTS.softmax(-1)[..., :S].to(v_BSGV.dtype)
    out = torch.einsum("bgrts,bsgv->btgrv", p_BHTS.reshape(B, G, H // G, T, S), v_BSGV)
    return out.reshape(B, T, H, V)


State = tuple[Tensor, ...]
"""The recurrent state of S sequences: tensors [S, ...], as `cache_layout` lists them for the layer."""


class Recurrence(Protocol):
    """A recurrent layer's function over sequences, [S, L, C] → [S, L, E], causal; the layout supplies the sequences and
    their cached state (`Attend.recur`).

    lengths: int64 [S]; tokens beyond a sequence's length are padding, which changes no state; None: no padding. before:
    the states at the first tokens; None: initial states.
    """

    def __call__(self, x_SLC: Tensor, lengths_S: Tensor | None, before: State | None) -> tuple[Tensor, State]: ...


KeysOf = Callable[[Tensor], tuple[Tensor, Tensor]]
"""A layer's keys and values [B, S, G, D] of the encoder's states [B, S, E]."""


@runtime_checkable
class CrossAttend(Protocol):
    """A layout that supports cross-attention: it determines which of the encoder's tokens each token sees."""

    def cross_attend(self, layer: int, q_BTHD: Tensor, options: AttentionOptions, keys_of: KeysOf) -> Tensor:
        """Attends to the encoder's keys and values: → [B, T, H, D]. `keys_of` computes them where they are not
        cached."""
        ...
