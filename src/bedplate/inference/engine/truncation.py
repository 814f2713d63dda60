"""What a row may draw, and the draw: top-k, top-p and min-p as the least probability that stays, and one number's place
among what stays, in the vocabulary's order, so that nothing needs to be sorted where nothing is cut.

Shapes: B rows, V vocabulary, K likeliest tokens, N columns of either, n blocks of b columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bedplate.inference.engine.sampling import Sampling

BLOCK = 256
"""Columns whose sum is looked at before they are: a number's place is found among sums, then in one block."""


class TruncationLimits(NamedTuple):
    """Each row keeps what is likelier than `least`, and the first so many that are exactly as likely."""

    least_B: Tensor
    ties_B: Tensor


def truncate(sorted_BK: Tensor, settings: Sequence[Sampling], whole_B: Tensor | None = None) -> Tensor:
    """Zeroes what top-k, then top-p (https://arxiv.org/abs/1904.09751), then min-p (https://arxiv.org/abs/2407.01082)
    cut from each row's descending probabilities; at least the first stays. Each filter acts on what the last one left,
    renormalised, as in transformers. whole_B: the sum of all probabilities where these are only the largest of them."""
    kept_BK, device = sorted_BK, sorted_BK.device
    if any(sampling.top_k for sampling in settings):
        count = torch.tensor([sampling.top_k or kept_BK.shape[-1] for sampling in settings], device=device)
        kept_BK = kept_BK.masked_fill(torch.arange(kept_BK.shape[-1], device=device) >= count[:, None], 0)
    if any(sampling.top_p < 1.0 for sampling in settings):
        shares = [sampling.top_p if sampling.top_p < 1.0 else torch.inf for sampling in settings]
        top_p = torch.tensor(shares, dtype=torch.float64, device=device)
        ends_BK = kept_BK.cumsum(dim=-1, dtype=torch.float64)
        mass_B = ends_BK[:, -1]
        if whole_B is not None:
            cut = torch.tensor([sampling.top_k > 0 for sampling in settings], device=device)
            mass_B = torch.where(cut, mass_B, whole_B)
        # A token stays while the mass before it is below top_p of the whole.
        beyond_BK = ends_BK - kept_BK >= (top_p * mass_B)[:, None]
        beyond_BK[:, 0] = False
        kept_BK = kept_BK.masked_fill(beyond_BK, 0)
    if any(sampling.min_p > 0 for sampling in settings):
        min_p = torch.tensor([sampling.min_p for sampling in settings], device=device)
        kept_BK = kept_BK.masked_fill(kept_BK < min_p[:, None] * kept_BK[:, :1], 0)
    return kept_BK


def limits(sorted_BK: Tensor, settings: Sequence[Sampling], whole_B: Tensor | None = None) -> TruncationLimits:
    """What `truncate` leaves, as a limit."""
    kept_B = (truncate(sorted_BK, settings, whole_B) > 0).sum(dim=-1).clamp(min=1)  # a row of NaN keeps nothing
    least_B = sorted_BK.gather(1, kept_B[:, None] - 1)[:, 0]
    return TruncationLimits(least_B, kept_B - (sorted_BK > least_B[:, None]).sum(dim=-1))


def apply_limits(probabilities_BN: Tensor, row_limits: TruncationLimits) -> Tensor:
    """Zeroes what is beyond each row's limit."""
    least_B1, ties_B1 = row_limits.least_B[:, None], row_limits.ties_B[:, None]
    level_BN = probabilities_BN == least_B1
    stays_BN = level_BN.cumsum(dim=-1, dtype=torch.int32) <= ties_B1
    return torch.where((probabilities_BN > least_B1) | (level_BN & stays_BN), probabilities_BN, 0)


def placed(mass_BN: Tensor, uniform_B: Tensor) -> Tensor:
    """The column in whose share of a row's mass its number falls (0 ≤ number < 1), int64 [B]: one with some mass."""
    missing = -mass_BN.shape[-1] % BLOCK
    blocks_Bnb = (F.pad(mass_BN, (0, missing)) if missing else mass_BN).view(len(mass_BN), -1, BLOCK)
    ends_Bn = blocks_Bnb.sum(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    place_B1 = uniform_B[:, None] * ends_Bn[:, -1:]
    block_B1 = _first_beyond(ends_Bn, place_B1)
    # What lies before the block; of the first, nothing.
    before_B1 = F.pad(ends_Bn, (1, 0)).gather(1, block_B1)
    inside_Bb = blocks_Bnb.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    at_B1 = _first_beyond(inside_Bb.cumsum(dim=-1, dtype=torch.float64), place_B1 - before_B1)
    return (block_B1 * BLOCK + at_B1)[:, 0]


def _first_beyond(ends_BN: Tensor, place_B1: Tensor) -> Tensor:
    """The first column that ends beyond the place; by rounding a place may lie behind all, or before them."""
    last_B1 = (ends_BN < ends_BN[:, -1:]).sum(dim=-1, keepdim=True)
    return torch.minimum(torch.searchsorted(ends_BN, place_B1.clamp(min=0), right=True), last_B1)
