"""Chooses the next tokens of a batch of rows, each with its own settings, as one operation over the logits.

1. `sample`: the masks of grammars and withheld tokens are fetched (`_allowed`), while a device still computes logits.
2. Bias and penalties are applied (`penalise`).
3. Greedy rows take the likeliest allowed token (`_greedy`); the others draw (`_draw`).
4. A draw divides by the temperature, applies the mask and takes one uniform number from the row's own generator.
5. Top-k, top-p and min-p become one limit per row, the least probability that stays (`limits`, `apply_limits`), read
   from the likeliest tokens where they suffice (`_from_head`), so that the vocabulary is rarely sorted.
6. The token is where the number falls in the cumulative sum of what stays, in the vocabulary's order (`placed`).

A draw depends only on the row's own logits, settings and generator. On an accelerator nothing is read back here. On a
CPU numpy draws: each torch operation releases the GIL, and beside a thread that computes in Python, a step waited up to
five milliseconds for it after each of fifty operations (2-core Xeon, torch 2.13: 115 ms; with numpy 11).
Shapes: B rows, C of them with a mask of W words, V vocabulary, K likeliest tokens, N columns, n blocks of b columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
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

Array = TypeVar("Array", Tensor, NDArray[Any])
"""Tensors on a device or numpy arrays: the steps of a draw use only what both libraries have."""


def sample(logits_BV: Tensor, rows: Sequence[RowState]) -> Tensor:
    """Chooses the next token ids, int64 [B], from logits [B, V], which are left unchanged."""
    allowed = _allowed(rows, logits_BV.shape[-1])  # first: a device may still compute the logits
    logits_BV = logits_BV.float()
    if logits_BV.is_cpu:
        # Infinities and NaN are for the caller, which knows the logsumexp of each row.
        with np.errstate(all="ignore"):
            return torch.from_numpy(_sample(logits_BV.numpy(), allowed, rows))
    return _sample(logits_BV, allowed, rows)


def _sample(logits_BV: Array, allowed: Mapping[int, NDArray[np.int32]], rows: Sequence[RowState]) -> Array:
    logits_BV = penalise(logits_BV, rows)
    drawing = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if not drawing:
        return _greedy(logits_BV, allowed, range(len(rows)))
    drawn_B = _draw(logits_BV, allowed, drawing, rows)
    if len(drawing) == len(rows):
        return drawn_B
    greedy = sorted(set(range(len(rows))).difference(drawing))
    order = _array([*drawing, *greedy], logits_BV, "int64").argsort()
    return _namespace(logits_BV).concatenate([drawn_B, _greedy(logits_BV, allowed, greedy)])[order]


def _greedy(logits_BV: Array, allowed: Mapping[int, NDArray[np.int32]], rows: Sequence[int]) -> Array:
    """The likeliest allowed token of each of these rows."""
    if not isinstance(logits_BV, Tensor):
        return np.array([_likeliest(logits_BV[i], allowed.get(i)) for i in rows], dtype=np.int64)
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


def _mask_disallowed(logits_BV: Array, allowed: Sequence[NDArray[np.int32] | None]) -> None:
    """Sets disallowed logits to minus infinity, in place; rows without a mask are not touched."""
    masked_rows = [i for i, words_W in enumerate(allowed) if words_W is not None]
    if not masked_rows:
        return
    masks_CW = np.stack([words_W for words_W in allowed if words_W is not None])
    if isinstance(logits_BV, Tensor):
        mask_CV = unpack_on(torch.from_numpy(masks_CW).to(logits_BV.device), logits_BV.shape[-1])
        index = torch.tensor(masked_rows, device=logits_BV.device)
        logits_BV[index] = logits_BV[index].masked_fill_(~mask_CV, -torch.inf)
    else:
        for i, allowed_V in zip(masked_rows, unpack(masks_CW, logits_BV.shape[-1]), strict=True):
            logits_BV[i, ~allowed_V] = _NEVER


def unpack_on(masks_CW: Tensor, vocab_size: int) -> Tensor:
    """`unpack` on the masks' own device, so that an eighth of the booleans' bytes is transferred."""
    bits = torch.arange(32, dtype=torch.int32, device=masks_CW.device)
    return ((masks_CW[:, :, None] >> bits) & 1).flatten(1)[:, :vocab_size].bool()


def penalise(logits_BV: Array, rows: Sequence[RowState]) -> Array:
    """The logits with each row's bias and then its penalties applied; a copy where any row has one."""
    settings = [row.sampling for row in rows]
    biased = any(sampling.logit_bias for sampling in settings)
    penalised = [s.repetition_penalty != 1.0 or s.presence_penalty != 0 or s.frequency_penalty != 0 for s in settings]
    if not biased and not any(penalised):
        return logits_BV
    xp = _namespace(logits_BV)
    logits_BV = logits_BV.clone() if isinstance(logits_BV, Tensor) else logits_BV.copy()
    if biased:
        at = _places([np.array([token for token, _ in s.logit_bias], dtype=np.int64) for s in settings], logits_BV)
        bias = _array([bias for s in settings for _, bias in s.logit_bias], logits_BV)
        if isinstance(logits_BV, Tensor):
            logits_BV.index_put_(at, bias, accumulate=True)
        else:
            np.add.at(logits_BV, at, bias)
    if any(penalised):
        none = Occurrences(())
        occurrences = [row.occurrences() if changed else none for row, changed in zip(rows, penalised, strict=True)]
        at = _places([row_occurrences.ids for row_occurrences in occurrences], logits_BV)
        times = _on_device_of(np.concatenate([row_occurrences.times for row_occurrences in occurrences]), logits_BV)
        penalties = [(s.repetition_penalty, s.presence_penalty, s.frequency_penalty) for s in settings]
        rate, presence, frequency = _array(penalties, logits_BV)[at[0]].T
        scores = logits_BV[at]
        scores = xp.where(scores < 0, scores * rate, scores / rate)
        logits_BV[at] = scores - (presence * (times > 0) + frequency * times)
    return logits_BV


def _places(tokens: Sequence[NDArray[np.int64]], like: Tensor | NDArray[Any]) -> Any:
    """The indices of each row's tokens in the logits: row numbers and token ids."""
    rows = np.repeat(np.arange(len(tokens)), [len(ids) for ids in tokens])
    indices = _on_device_of(np.stack([rows, np.concatenate(tokens)]), like)
    return indices[0], indices[1]


def _draw(
    logits_BV: Array, allowed: Mapping[int, NDArray[np.int32]], drawing: Sequence[int], rows: Sequence[RowState]
) -> Array:
    """Draws one token for each sampled row, int64 [B], with one uniform number of the row's own generator."""
    settings, masks = [rows[i].sampling for i in drawing], [allowed.get(i) for i in drawing]
    uniform_B = _array([rows[i].uniform() for i in drawing], logits_BV, "float64")
    temperatures = [max(sampling.temperature, MIN_TEMPERATURE) for sampling in settings]
    picked_BV = logits_BV if len(drawing) == len(rows) else logits_BV[list(drawing)]
    chosen_B: Any
    scaled_BV = picked_BV / _column(temperatures, logits_BV)
    _mask_disallowed(scaled_BV, masks)
    if isinstance(scaled_BV, Tensor):
        chosen_B = drawn(scaled_BV.softmax(dim=-1), settings, uniform_B)
    else:
        scaled_BV -= scaled_BV.max(axis=-1, keepdims=True)
        chosen_B = _drawn_on_host(np.exp(scaled_BV, out=scaled_BV), settings, uniform_B)
    for i in drawing:
        rows[i].number = None
    return chosen_B


def drawn(probabilities_BV: Tensor, settings: Sequence[Sampling], uniform_B: Tensor) -> Tensor:
    """The tokens at which the uniform numbers fall in each row's truncated distribution, int64 [B]."""
    if probabilities_BV.is_cpu:
        return torch.from_numpy(_drawn_on_host(probabilities_BV.numpy(), settings, uniform_B.numpy()))
    if _cut(settings):
        return drawn_at_once(probabilities_BV, settings, uniform_B)
    return placed(_apply_min_p(probabilities_BV, settings), uniform_B)


def _cut(settings: Sequence[Sampling]) -> list[int]:
    """The rows whose limit depends on the order of their probabilities."""
    return [i for i, sampling in enumerate(settings) if sampling.top_k or sampling.top_p < 1.0]


def _drawn_on_host(
    mass_BV: NDArray[np.float32], settings: Sequence[Sampling], uniform_B: NDArray[np.float64]
) -> NDArray[np.int64]:
    """`drawn` of probabilities, or of any multiple of them."""
    cut = _cut(settings)
    chosen_B = np.empty(len(settings), dtype=np.int64)
    if cut:
        chosen_B[cut], unresolved = _from_head(mass_BV[cut], [settings[i] for i in cut], uniform_B[cut])
        for i in (cut[place] for place in unresolved):
            sorted_1V = -np.sort(-mass_BV[i : i + 1], axis=-1)
            kept_1V = apply_limits(mass_BV[i : i + 1], limits(sorted_1V, settings[i : i + 1]))
            chosen_B[i] = placed(kept_1V, uniform_B[i : i + 1])[0]
    free = sorted(set(range(len(settings))).difference(cut))
    if free:
        free_BV = _apply_min_p(mass_BV[free] if cut else mass_BV, [settings[i] for i in free])
        chosen_B[free] = placed(free_BV, uniform_B[free])
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


def _apply_min_p(probabilities_BV: Array, settings: Sequence[Sampling]) -> Array:
    """Zeroes the probabilities that min-p cuts, for rows without other filters."""
    if not any(sampling.min_p > 0 for sampling in settings):
        return probabilities_BV
    xp = _namespace(probabilities_BV)
    min_p_B1 = _column([sampling.min_p for sampling in settings], probabilities_BV)
    return xp.where(probabilities_BV >= min_p_B1 * xp.amax(probabilities_BV, -1)[:, None], probabilities_BV, 0)


def _from_head(
    mass_BV: NDArray[np.float32], settings: Sequence[Sampling], uniform_B: NDArray[np.float64]
) -> tuple[NDArray[np.int64], list[int]]:
    """Draws from the likeliest `HEAD` tokens; also returns the rows for which that is not exact, because their limit
    may lie beyond these."""
    V, count = mass_BV.shape[-1], min(HEAD, mass_BV.shape[-1])
    ids_BK = np.sort(mass_BV.argpartition(V - count, axis=-1)[:, V - count :], axis=-1)
    values_BK = np.take_along_axis(mass_BV, ids_BK, axis=-1)
    sorted_BK = -np.sort(-values_BK, axis=-1)
    row_limits = limits(sorted_BK, settings, mass_BV.sum(axis=-1, dtype=np.float64))
    at_B = placed(apply_limits(values_BK, row_limits), uniform_B)
    # A limit at the head's last value is not certain: tokens beyond the head may be as likely.
    exact_B = row_limits.least_B > sorted_BK[:, -1]
    exact = [count == V or (row and sampling.top_k <= HEAD) for row, sampling in zip(exact_B, settings, strict=True)]
    return ids_BK[np.arange(len(at_B)), at_B], [i for i, is_exact in enumerate(exact) if not is_exact]


BLOCK = 256
"""Columns per block: a number is located among the blocks' sums first, then inside one block."""


class TruncationLimits(NamedTuple):
    """The tokens that each row keeps: those likelier than `least`, and the first `ties` of those exactly as likely."""

    least_B: Any
    ties_B: Any


def _namespace(array: Tensor | NDArray[Any]) -> Any:
    return torch if isinstance(array, Tensor) else np


def _on_device_of(values: NDArray[Any], like: Tensor | NDArray[Any]) -> Any:
    return torch.from_numpy(values).to(like.device) if isinstance(like, Tensor) else values


def _array(values: Sequence[Any], like: Tensor | NDArray[Any], dtype: str = "float32") -> Any:
    """The values as a tensor on `like`'s device, or as an array where `like` is one."""
    return _on_device_of(np.array(values, dtype=dtype), like)


def _column(values: Sequence[float], like: Tensor | NDArray[Any], dtype: str = "float32") -> Any:
    """The values as a column [B, 1]."""
    return _array(values, like, dtype)[:, None]


def _arange(count: int, like: Tensor | NDArray[Any]) -> Any:
    return torch.arange(count, device=like.device) if isinstance(like, Tensor) else np.arange(count)


def truncate(sorted_BK: Array, settings: Sequence[Sampling], whole_B: Array | None = None) -> Array:
    """Zeroes what top-k, then top-p (https://arxiv.org/abs/1904.09751), then min-p (https://arxiv.org/abs/2407.01082)
    cut from each row's descending probabilities; the first always stays.

    Each filter acts on the rest of the previous one, renormalised, as in transformers. whole_B: the sum of all
    probabilities, where only the largest are given.
    """
    xp, kept_BK, K = _namespace(sorted_BK), sorted_BK, sorted_BK.shape[-1]
    if any(sampling.top_k for sampling in settings):
        count_B1 = _column([sampling.top_k or K for sampling in settings], sorted_BK, "int64")
        kept_BK = xp.where(_arange(K, sorted_BK) >= count_B1, 0, kept_BK)
    if any(sampling.top_p < 1.0 for sampling in settings):
        shares = [sampling.top_p if sampling.top_p < 1.0 else torch.inf for sampling in settings]
        ends_BK = kept_BK.cumsum(-1, dtype=xp.float64)
        mass_B1 = ends_BK[:, -1:]
        if whole_B is not None:
            is_cut_B1 = _column([sampling.top_k > 0 for sampling in settings], sorted_BK, "bool")
            mass_B1 = xp.where(is_cut_B1, mass_B1, whole_B[:, None])
        # A token stays while the mass before it is below top_p of the whole.
        beyond_BK = ends_BK - kept_BK >= _column(shares, sorted_BK, "float64") * mass_B1
        beyond_BK[:, 0] = False
        kept_BK = xp.where(beyond_BK, 0, kept_BK)
    if any(sampling.min_p > 0 for sampling in settings):
        min_p_B1 = _column([sampling.min_p for sampling in settings], sorted_BK)
        kept_BK = xp.where(kept_BK < min_p_B1 * kept_BK[:, :1], 0, kept_BK)
    return kept_BK


def limits(sorted_BK: Array, settings: Sequence[Sampling], whole_B: Array | None = None) -> TruncationLimits:
    """The limits under which `apply_limits` keeps what `truncate` keeps."""
    # A row of NaN keeps nothing.
    kept_B = _namespace(sorted_BK).clip((truncate(sorted_BK, settings, whole_B) > 0).sum(-1), 1, None)
    least_B = sorted_BK[_arange(len(sorted_BK), sorted_BK), kept_B - 1]
    return TruncationLimits(least_B, kept_B - (sorted_BK > least_B[:, None]).sum(-1))


def apply_limits(probabilities_BN: Array, row_limits: TruncationLimits) -> Array:
    """Zeroes the probabilities beyond each row's limit."""
    xp, least_B1, ties_B1 = _namespace(probabilities_BN), row_limits.least_B[:, None], row_limits.ties_B[:, None]
    level_BN = probabilities_BN == least_B1
    stays_BN = level_BN.cumsum(-1, dtype=xp.int32) <= ties_B1
    return xp.where((probabilities_BN > least_B1) | (level_BN & stays_BN), probabilities_BN, 0)


def placed(mass_BN: Array, uniform_B: Array) -> Array:
    """Inverse-CDF sampling: the column at which a row's uniform number (0 ≤ number < 1) falls, int64 [B], always one
    with mass."""
    xp, rows_B, (B, N) = _namespace(mass_BN), _arange(len(mass_BN), mass_BN), mass_BN.shape
    n = -(-N // BLOCK)
    padded_BN: Any = mass_BN
    if N % BLOCK:
        padded_BN = xp.zeros((B, n * BLOCK), dtype=mass_BN.dtype, device=mass_BN.device)
        padded_BN[:, :N] = mass_BN
    blocks_Bnb = padded_BN.reshape(B, n, BLOCK)
    ends_Bn = blocks_Bnb.sum(-1).cumsum(-1, dtype=xp.float64)
    place_B = uniform_B * ends_Bn[:, -1]
    block_B = _first_beyond(ends_Bn, place_B)
    # The cumulative sum before the block, 0 for the first.
    before_B = xp.where(block_B > 0, ends_Bn[rows_B, block_B - 1], 0)
    at_B = _first_beyond(blocks_Bnb[rows_B, block_B].cumsum(-1, dtype=xp.float64), place_B - before_B)
    return block_B * BLOCK + at_B


def _first_beyond(ends_BN: Array, place_B: Array) -> Array:
    """The first column whose cumulative sum exceeds the place, clamped to the columns that have mass, because rounding
    may put the place outside of them."""
    xp = _namespace(ends_BN)
    beyond_B = (ends_BN <= xp.clip(place_B, 0, None)[:, None]).sum(-1)
    return xp.minimum(beyond_B, (ends_BN < ends_BN[:, -1:]).sum(-1))
