"""What a layer wants of its attention, and the plain way to do all of it.

Shapes: B rows, T queries, S keys, H query heads, G key-value heads, R = H/G, D features of a query and a key, V of a
value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError


@dataclass(frozen=True, eq=False)
class AttentionOptions:
    """What one layer wants, beside who sees whom, which the layout knows.

    scale: of the scores; None: 1/√D. cap: x → cap · tanh(x / cap) of the scaled scores (Gemma-2, arXiv 2408.00118).
    window: how many tokens a query sees: in a causal layout the last ones with itself, otherwise half of them on each
    side of it. bias: added then; from distances (the key's position less the query's, int64 [B, T, S]) to numbers
    [B or 1, H, T, S] (T5, arXiv 1910.10683). sinks: [H], one score a head that no value belongs to (gpt-oss).
    """

    scale: float | None = None
    cap: float | None = None
    window: int | None = None
    bias: Callable[[Tensor], Tensor] | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether scores are only scaled and normalised, over all that the layout lets a query see."""
        return self.fused and self.window is None

    @property
    def fused(self) -> bool:
        """Whether torch's own kernel does it, under a mask."""
        return self.cap is None and self.bias is None and self.sinks is None

    def only(self, by: str, *able: str) -> None:
        """UnsupportedModelError naming what is wanted and not among what `by` is able to do."""
        for name in (field.name for field in fields(self)):
            if name not in able and getattr(self, name) is not None:
                feature = name if name == "sinks" else f"a {name}"
                raise UnsupportedModelError(f"attention with {feature} is not supported by {by}")

    def within_reach(self, *able: str) -> bool:
        """Whether nothing else is wanted."""
        return all(field.name in able or getattr(self, field.name) is None for field in fields(self))

    def apply_window(self, seen_BTS: Tensor, distance_BTS: Tensor | None, causal: bool) -> Tensor:
        """What of the seen keys lies in the window, bool [B, T, S]. The distance may be left out where all is plain."""
        if self.window is None or distance_BTS is None:
            return seen_BTS
        return seen_BTS & (distance_BTS.abs() <= (self.window - 1 if causal else self.window // 2))


PLAIN = AttentionOptions()


def plain_attention(
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGV: Tensor, seen_BTS: Tensor, how: AttentionOptions, distance_BTS: Tensor | None
) -> Tensor:
    """Attention written out, [B, T, H, V]: products in the tensors' dtype, softmax in float32 or wider.

    seen: bool [B or 1, T, S], what lies in the window; every query must see something. distance: of keys from queries,
    int64, of its shape; what a bias is made of.
    """
    B, T, H, D = q_BTHD.shape
    S, G, V = *k_BSGD.shape[1:3], v_BSGV.shape[-1]
    q_BTGRD = q_BTHD.reshape(B, T, G, H // G, D)
    scores_BHTS = torch.einsum("btgrd,bsgd->bgrts", q_BTGRD, k_BSGD).reshape(B, H, T, S)
    scores_BHTS = scores_BHTS.to(torch.promote_types(q_BTHD.dtype, torch.float32))
    scores_BHTS = scores_BHTS * (D**-0.5 if how.scale is None else how.scale)
    if how.cap is not None:
        scores_BHTS = how.cap * torch.tanh(scores_BHTS / how.cap)
    if how.bias is not None:
        assert distance_BTS is not None
        scores_BHTS = scores_BHTS + how.bias(distance_BTS)
    scores_BHTS = scores_BHTS.masked_fill(~seen_BTS[:, None], -torch.inf)
    if how.sinks is not None:
        sinks = how.sinks.to(scores_BHTS.dtype)[None, :, None, None].expand(B, H, T, 1)
        scores_BHTS = torch.cat((scores_BHTS, sinks), dim=-1)
    p_BHTS = scores_BHTS.softmax(-1)[..., :S].to(v_BSGV.dtype)
    out = torch.einsum("bgrts,bsgv->btgrv", p_BHTS.reshape(B, G, H // G, T, S), v_BSGV)
    return out.reshape(B, T, H, V)
