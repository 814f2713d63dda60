"""Attention over blocks by FlashAttention's own package, where it is installed: `flash_attn_with_kvcache`, which keeps
the new tokens and reads the rows' blocks where they lie (https://arxiv.org/abs/2307.08691).

It takes as many new tokens of every row, half precision, and keys and values of one size; the second edition reads
blocks of 256 tokens only, the third of any size. What it cannot do it refuses by name, and it stands in for our own
operation only where it was measured to be faster.

Shapes: S rows, T new tokens of each, P blocks of the pool, W blocks of a row's table, b tokens of a block, H query
heads, G key-value heads, D features of one head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bedplate.core.errors import UnsupportedModelError
from bedplate.inference.forward.paged_op import paged_attention, places, tile_tokens
from bedplate.inference.forward.spans import Span
from bedplate.models.layers.attention_options import AttentionOptions
from bedplate.models.packed.attempts import REFUSALS, clearly_less, least_seconds
from bedplate.models.packed.flash import ABLE, MODULES, Edition, package

HEAD = 256
"""The most features of a head that it takes."""
_BLOCKS: dict[Edition, int] = {"flash3": 1, "flash2": 256}
"""What a block's tokens must be a multiple of."""
_TABLE: dict[Edition, str] = {"flash3": "page_table", "flash2": "block_table"}
"""The argument that says where a row's blocks are."""
_CONTEXTS, _TURNS = (40, 1000, 2500, 7), 20
"""What is timed, and how often: steps over rows of so many tokens."""


@dataclass(frozen=True, eq=False)
class FlashPaged:
    """One edition. module: that has its functions."""

    edition: Edition
    module: Any

    def refusal(
        self, q_NHD: Tensor, v_NGV: Tensor, block: int, lengths: Sequence[int], how: AttentionOptions
    ) -> str | None:
        """Why it cannot do this, if so. lengths: new tokens of each row."""
        name, of = MODULES[self.edition], _BLOCKS[self.edition]
        unsupported = next((option for option in ("bias", "sinks") if getattr(how, option) is not None), None)
        if unsupported is not None:
            return f"attention with {'a ' * (unsupported == 'bias')}{unsupported} is not supported by {name}"
        if block % of:
            return f"{name} reads blocks of a multiple of {of} tokens, and these have {block}"
        if q_NHD.dtype not in (torch.float16, torch.bfloat16):
            return f"{name} takes half precision, and these are {q_NHD.dtype}"
        if q_NHD.shape[-1] != v_NGV.shape[-1] or q_NHD.shape[-1] > HEAD:
            return f"{name} takes keys and values of one size up to {HEAD}"
        if len({*lengths}) > 1:
            return f"{name} takes as many new tokens of every row"
        return None

    def __call__(
        self,
        q_NHD: Tensor,
        k_NGD: Tensor,
        v_NGD: Tensor,
        keys_PbGD: Tensor,
        values_PbGD: Tensor,
        table_SW: Tensor,
        start_S: Tensor,
        lengths: Sequence[int],
        how: AttentionOptions,
    ) -> Tensor:
        """→ [N, H, D]; the new keys and values end up in their places. table, start: int32. UnsupportedModelError, by
        name, for what it cannot do."""
        refusal = self.refusal(q_NHD, v_NGD, keys_PbGD.shape[1], lengths, how)
        if refusal is not None:
            raise UnsupportedModelError(refusal)
        q, k, v = (x.unflatten(0, (len(lengths), -1)) for x in (q_NHD, k_NGD, v_NGD))
        output = self.module.flash_attn_with_kvcache(
            q,
            keys_PbGD,
            values_PbGD,
            k=k,
            v=v,
            cache_seqlens=start_S,
            softmax_scale=how.scale,
            causal=True,
            window_size=(-1, -1) if how.window is None else (how.window - 1, 0),
            softcap=how.cap or 0.0,
            **{_TABLE[self.edition]: table_SW},
        )
        return (output[0] if isinstance(output, tuple) else output).flatten(0, 1)


def flash_for(
    q_NHD: Tensor, k_NGD: Tensor, v_NGV: Tensor, block: int, lengths: Sequence[int], how: AttentionOptions
) -> FlashPaged | None:
    """The edition that does this here, and faster than our own operation; None where none does."""
    if q_NHD.is_cpu or not how.within_reach(*ABLE):
        return None
    for edition in MODULES:
        module = package(edition)
        if module is None:
            continue
        flash = FlashPaged(edition, module)
        if flash.refusal(q_NHD, v_NGV, block, lengths, how) is None and lengths[0] == 1:
            heads = q_NHD.shape[1], *k_NGD.shape[1:]
            if faster(edition, q_NHD.device, q_NHD.dtype, heads, block, how.cap, how.window):
                return flash
    return None


@cache
def faster(
    edition: Edition,
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    block: int,
    cap: float | None,
    window: int | None,
) -> bool:
    """Whether a step of single tokens is the same by it as by our own operation there, and takes clearly less time.
    heads: of queries, of keys, and their features."""
    flash = FlashPaged(edition, package(edition))
    (H, G, D), S = heads, len(_CONTEXTS)
    how, generator = AttentionOptions(cap=cap, window=window), torch.Generator().manual_seed(0)
    max_blocks = -(-(max(_CONTEXTS) + 1) // block)
    spans = [Span(row, context, 1) for row, context in enumerate(_CONTEXTS)]
    at, lengths = places(spans), [1] * S
    with torch.inference_mode():
        keys, values = (
            torch.randn(S * max_blocks, block, G, D, generator=generator).to(device, dtype) for _ in ("keys", "values")
        )
        q, k, v = (torch.randn(S, n, D, generator=generator).to(device, dtype) for n in (H, G, G))
        table_SW = torch.arange(S * max_blocks, device=device).view(S, max_blocks)
        row, position, tile = (torch.from_numpy(array).to(device) for array in (at.row_N, at.position_N, at.tile_2U))
        span = torch.stack([torch.from_numpy(array) for array in (at.begin_S, at.start_S, at.length_S)]).to(device)
        table, start = table_SW.to(torch.int32), position.to(torch.int32)
        ours: tuple[Any, ...] = (q, k, v, keys, values, table_SW, row, position, span, tile, tile_tokens(spans))
        try:
            expected = paged_attention(*ours, max(_CONTEXTS) + 1, None, cap, window, None)
            actual = flash(q, k, v, keys, values, table, start, lengths, how)
            tolerance = 16 * torch.finfo(dtype).eps
            if not torch.allclose(actual, expected, tolerance, tolerance):
                return False
            our_seconds = least_seconds(
                lambda: paged_attention(*ours, max(_CONTEXTS) + 1, None, cap, window, None), device, _TURNS
            )
            its = least_seconds(lambda: flash(q, k, v, keys, values, table, start, lengths, how), device, _TURNS)
        except REFUSALS:
            return False
    return clearly_less(its, our_seconds)
