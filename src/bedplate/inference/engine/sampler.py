"""Chooses the next tokens of a batch of rows, each with its own settings, as one operation over the logits.

1. `sample`: the masks of grammars and withheld tokens are fetched (`_allowed`), while a device still computes logits.
2. Bias and penalties are applied (`penalise`).
3. Greedy rows take the likeliest allowed token (`_greedy`); the others draw (`_draw`).
4. A draw divides by the temperature, applies the mask and takes one uniform number from the row's own generator.
5. Top-k, top-p and min-p become one limit per row, the least probability that stays (`limits`, `apply_limits`), read
   from the likeliest tokens where they suffice (`_from_head`), so that the vocabulary is rarely sorted.
6. The token is where the number falls in the cumulative sum of what stays, in the vocabulary's order (`placed`).

A draw depends only on the row's own logits, settings and generator. On an accelerator nothing is read back here.
Shapes: B rows, C of them with a mask of W words, V vocabulary, K likeliest tokens, N columns, n blocks of b columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from bedplate.inference.engine.grammar import allowed_ids, mask_words, unpack, withhold
from bedplate.inference.engine.row_state import Occurrences, RowState
from bedplate.inference.engine.sampling import Sampling

HEAD = 256
"""Number of likeliest tokens examined first: on a CPU, a whole row is sorted only where they do not determine its
limit."""
MANY_WORDS = 64
"""Number of nonzero mask words above which scanning all logits is faster than reading the allowed ones."""
MIN_TEMPERATURE = 1e-30
"""Lower bound of temperatures: smaller ones would overflow logits, and choose no other tokens."""
_NEVER = np.float32(-np.inf)


def sample(logits_BV: Tensor, rows: Sequence[RowState]) -> Tensor:
    """Chooses the next token ids, int64 [B], from logits [B, V], which are left unchanged."""
    allowed = _allowed(rows, logits_BV.shape[-1])  # first: a device may still compute the logits
    logits_BV = penalise(logits_BV.float(), rows)
    drawing = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if not drawing:
        return _greedy(logits_BV, allowed, range(len(rows)))
    drawn = _draw(logits_BV, allowed, drawing, rows)
    if len(drawing) == len(rows):
        return drawn
    greedy = sorted(set(range(len(rows))).difference(drawing))
    order = torch.tensor([*drawing, *greedy], device=logits_BV.device)
    return torch.cat([drawn, _greedy(logits_BV, allowed, greedy)])[order.argsort()]


def _greedy(logits_BV: Tensor, allowed: Mapping[int, NDArray[np.int32]], rows: Sequence[int]) -> Tensor:
    """The likeliest allowed token of each of these rows."""
    if logits_BV.is_cpu:
        logits = logits_BV.numpy()
        return torch.tensor([_likeliest(logits[i], allowed.get(i)) for i in rows])
    if len(rows) == len(logits_BV) and not allowed:
        return logits_BV.argmax(dim=-1)
    picked = logits_BV[list(rows)]
    _mask_disallowed(picked, [allowed.get(i) for i in rows])
    return picked.argmax(dim=-1)


def _likeliest(logits_V: NDArray[np.float32], allowed_W: NDArray[np.int32] | None) -> int:
    """The first of the largest allowed logits; under a mask of few tokens only those are read."""
    if allowed_W is None:
        return int(logits_V.argmax())
    if np.count_nonzero(allowed_W) > MANY_WORDS:
        allowed_V = unpack(allowed_W[None], len(logits_V))[0]
        first = int(np.where(allowed_V, logits_V, _NEVER).argmax())
        if logits_V[first] > _NEVER:
            return first
    ids = allowed_ids(allowed_W)
    return int(ids[logits_V[ids].argmax()])


def _allowed(rows: Sequence[RowState], vocab_size: int) -> dict[int, NDArray[np.int32]]:
    """The mask [W] of each row that has one, by row index."""
    allowed: dict[int, NDArray[np.int32]] = {}
    for i, row in enumerate(rows):
        withheld = row.withheld
        if row.matcher is None and not withheld:
            continue
        words_W = np.full(mask_words(vocab_size), -1, dtype=np.int32)
        if row.matcher is not None:
            row.matcher.fill(words_W)
        if vocab_size % 32:
            words_W.view(np.uint32)[-1] &= np.uint32((1 << vocab_size % 32) - 1)
        withhold(words_W, withheld)  # a grammar that is at its end wins over `min_tokens`
        allowed[i] = words_W
    return allowed


def _mask_disallowed(logits_BV: Tensor, allowed: Sequence[NDArray[np.int32] | None]) -> None:
    """Sets disallowed logits to minus infinity, in place; rows without a mask are not touched."""
    masked_rows = [i for i, words_W in enumerate(allowed) if words_W is not None]
    if masked_rows:
        masks_CW = np.stack([words_W for words_W in allowed if words_W is not None])
        index, V = torch.tensor(masked_rows, device=logits_BV.device), logits_BV.shape[-1]
        if logits_BV.is_cpu:
            mask_CV = torch.from_numpy(unpack(masks_CW, V))
        else:
            mask_CV = unpack_on(torch.from_numpy(masks_CW).to(logits_BV.device), V)
        logits_BV[index] = logits_BV[index].masked_fill_(~mask_CV, -torch.inf)


def unpack_on(masks_CW: Tensor, vocab_size: int) -> Tensor:
    """`unpack` on the masks' own device, so that an eighth of the booleans' bytes is transferred."""
    bits = torch.arange(32, dtype=torch.int32, device=masks_CW.device)
    return ((masks_CW[:, :, None] >> bits) & 1).flatten(1)[:, :vocab_size].bool()


def penalise(logits_BV: Tensor, rows: Sequence[RowState]) -> Tensor:
    """The logits with each row's bias and then its penalties applied; a copy where any row has one."""
    settings = [row.sampling for row in rows]
    biased = any(sampling.logit_bias for sampling in settings)
    penalised = [
        sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        for sampling in settings
    ]
    if not biased and not any(penalised):
        return logits_BV
    logits_BV, device = logits_BV.clone(), logits_BV.device
    numbers = partial(torch.tensor, dtype=torch.float32, device=device)
    if biased:
        at = _places([np.array([token for token, _ in s.logit_bias], dtype=np.int64) for s in settings], device)
        logits_BV.index_put_(at, numbers([bias for s in settings for _, bias in s.logit_bias]), accumulate=True)
    if any(penalised):
        none = Occurrences(())
        occurrences = [row.occurrences() if changed else none for row, changed in zip(rows, penalised, strict=True)]
        at = _places([row_occurrences.ids for row_occurrences in occurrences], device)
        times = torch.from_numpy(np.concatenate([row_occurrences.times for row_occurrences in occurrences])).to(device)
        penalties = [
            (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty)
            for sampling in settings
        ]
        rate, presence, frequency = numbers(penalties)[at[0]].unbind(-1)
        scores = logits_BV[at]
        scores = torch.where(scores < 0, scores * rate, scores / rate)
        logits_BV.index_put_(at, scores - (presence * (times > 0) + frequency * times))
    return logits_BV


def _places(tokens: Sequence[NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The indices of each row's tokens in the logits: row numbers and token ids."""
    rows = np.repeat(np.arange(len(tokens)), [len(ids) for ids in tokens])
    indices = torch.from_numpy(np.stack([rows, np.concatenate(tokens)])).to(device)
    return indices[0], indices[1]


def _draw(
    logits_BV: Tensor, allowed: Mapping[int, NDArray[np.int32]], drawing: Sequence[int], rows: Sequence[RowState]
) -> Tensor:
    """Draws one token for each sampled row, int64 [B], with one uniform number of the row's own generator."""
    device, settings = logits_BV.device, [rows[i].sampling for i in drawing]
    uniform_B = torch.tensor([rows[i].uniform() for i in drawing], dtype=torch.float64, device=device)
    temperature_B = torch.tensor([max(sampling.temperature, MIN_TEMPERATURE) for sampling in settings], device=device)
    picked_BV = logits_BV if len(drawing) == len(rows) else logits_BV[list(drawing)]
    scaled_BV = picked_BV / temperature_B[:, None]
    _mask_disallowed(scaled_BV, [allowed.get(i) for i in drawing])
    chosen_B = drawn(scaled_BV.softmax(dim=-1), settings, uniform_B)
    for i in drawing:
        rows[i].number = None
    return chosen_B


def drawn(probabilities_BV: Tensor, settings: Sequence[Sampling], uniform_B: Tensor) -> Tensor:
    """The tokens at which the uniform numbers fall in each row's truncated distribution, int64 [B]."""
    cut = [i for i, sampling in enumerate(settings) if sampling.top_k or sampling.top_p < 1.0]
    if not cut:
        return placed(_apply_min_p(probabilities_BV, settings), uniform_B)
    if not probabilities_BV.is_cpu or probabilities_BV.shape[-1] <= HEAD:
        return drawn_at_once(probabilities_BV, settings, uniform_B)
    chosen_B = torch.empty(len(settings), dtype=torch.int64)
    found_B, resolved = _from_head(probabilities_BV[cut], [settings[i] for i in cut], uniform_B[cut])
    chosen_B[cut] = found_B
    free = sorted(set(range(len(settings))).difference(cut))
    if free:
        chosen_B[free] = placed(_apply_min_p(probabilities_BV[free], [settings[i] for i in free]), uniform_B[free])
    unresolved = [i for i, is_resolved in zip(cut, resolved, strict=True) if not is_resolved]
    if unresolved:
        picked_BV = probabilities_BV[unresolved]
        # numpy sorts values many times faster than torch sorts values with indices, which are not needed.
        sorted_BV = torch.from_numpy(-np.sort(-picked_BV.numpy(), axis=-1))
        kept_BV = apply_limits(picked_BV, limits(sorted_BV, [settings[i] for i in unresolved]))
        chosen_B[unresolved] = placed(kept_BV, uniform_B[unresolved])
    return chosen_B


def drawn_at_once(probabilities_BV: Tensor, settings: Sequence[Sampling], uniform_B: Tensor) -> Tensor:
    """`drawn` with one code path for all rows and no data-dependent branch, so that a device is not waited for."""
    return placed(apply_limits(probabilities_BV, limits(_descending(probabilities_BV, settings), settings)), uniform_B)


def _descending(probabilities_BV: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """The largest probabilities, descending, as many as the settings can depend on."""
    max_count = max(sampling.top_k or probabilities_BV.shape[-1] for sampling in settings)
    if max_count <= min(HEAD, probabilities_BV.shape[-1]):
        return probabilities_BV.topk(max_count, dim=-1).values
    return probabilities_BV.sort(dim=-1, descending=True).values


def _apply_min_p(probabilities_BV: Tensor, settings: Sequence[Sampling]) -> Tensor:
    """Zeroes the probabilities that min-p cuts, for rows without other filters."""
    if not any(sampling.min_p > 0 for sampling in settings):
        return probabilities_BV
    min_p = torch.tensor([sampling.min_p for sampling in settings], device=probabilities_BV.device)
    least_B1 = min_p[:, None] * probabilities_BV.amax(dim=-1, keepdim=True)
    return torch.where(probabilities_BV >= least_B1, probabilities_BV, 0)


def _from_head(probabilities_BV: Tensor, settings: Sequence[Sampling], uniform_B: Tensor) -> tuple[Tensor, list[bool]]:
    """Draws from the likeliest `HEAD` tokens; also returns for which rows that is exact, because their limit certainly
    lies among these."""
    values_BK, ids_BK = probabilities_BV.topk(HEAD, dim=-1)
    # numpy sums in float64 without a float64 copy of all probabilities.
    whole_B = torch.from_numpy(probabilities_BV.numpy().sum(axis=-1, dtype=np.float64))
    row_limits = limits(values_BK, settings, whole_B)
    ids_BK, order_BK = ids_BK.sort(dim=-1)
    at_B = placed(apply_limits(values_BK.gather(1, order_BK), row_limits), uniform_B)
    # A limit at the head's last value is not certain: tokens beyond the head may be as likely.
    exact_B = row_limits.least_B > values_BK[:, -1]
    resolved = [exact and sampling.top_k <= HEAD for exact, sampling in zip(exact_B.tolist(), settings, strict=True)]
    return ids_BK.gather(1, at_B[:, None])[:, 0], resolved


BLOCK = 256
"""Columns per block: a number is located among the blocks' sums first, then inside one block."""


class TruncationLimits(NamedTuple):
    """The tokens that each row keeps: those likelier than `least`, and the first `ties` of those exactly as likely."""

    least_B: Tensor
    ties_B: Tensor


def truncate(sorted_BK: Tensor, settings: Sequence[Sampling], whole_B: Tensor | None = None) -> Tensor:
    """Zeroes what top-k, then top-p (https://arxiv.org/abs/1904.09751), then min-p (https://arxiv.org/abs/2407.01082)
    cut from each row's descending probabilities; the first always stays.

    Each filter acts on the rest of the previous one, renormalised, as in transformers. whole_B: the sum of all
    probabilities, where only the largest are given.
    """
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
    """The limits under which `apply_limits` keeps what `truncate` keeps."""
    kept_B = (truncate(sorted_BK, settings, whole_B) > 0).sum(dim=-1).clamp(min=1)  # a row of NaN keeps nothing
    least_B = sorted_BK.gather(1, kept_B[:, None] - 1)[:, 0]
    return TruncationLimits(least_B, kept_B - (sorted_BK > least_B[:, None]).sum(dim=-1))


def apply_limits(probabilities_BN: Tensor, row_limits: TruncationLimits) -> Tensor:
    """Zeroes the probabilities beyond each row's limit."""
    least_B1, ties_B1 = row_limits.least_B[:, None], row_limits.ties_B[:, None]
    level_BN = probabilities_BN == least_B1
    stays_BN = level_BN.cumsum(dim=-1, dtype=torch.int32) <= ties_B1
    return torch.where((probabilities_BN > least_B1) | (level_BN & stays_BN), probabilities_BN, 0)


def placed(mass_BN: Tensor, uniform_B: Tensor) -> Tensor:
    """Inverse-CDF sampling: the column at which a row's uniform number (0 ≤ number < 1) falls, int64 [B], always one
    with mass."""
    missing = -mass_BN.shape[-1] % BLOCK
    blocks_Bnb = (F.pad(mass_BN, (0, missing)) if missing else mass_BN).view(len(mass_BN), -1, BLOCK)
    ends_Bn = blocks_Bnb.sum(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    place_B1 = uniform_B[:, None] * ends_Bn[:, -1:]
    block_B1 = _first_beyond(ends_Bn, place_B1)
    # The cumulative sum before the block, 0 for the first.
    before_B1 = F.pad(ends_Bn, (1, 0)).gather(1, block_B1)
    inside_Bb = blocks_Bnb.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    at_B1 = _first_beyond(inside_Bb.cumsum(dim=-1, dtype=torch.float64), place_B1 - before_B1)
    return (block_B1 * BLOCK + at_B1)[:, 0]


def _first_beyond(ends_BN: Tensor, place_B1: Tensor) -> Tensor:
    """The first column whose cumulative sum exceeds the place, clamped to the columns that have mass, because rounding
    may put the place outside of them."""
    last_B1 = (ends_BN < ends_BN[:, -1:]).sum(dim=-1, keepdim=True)
    return torch.minimum(torch.searchsorted(ends_BN, place_B1.clamp(min=0), right=True), last_B1)
