"""The sampler a row at a time, every row sorted as a whole: what choosing for all rows at once must equal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bedplate.inference.engine.grammar import mask_words, unpack
from bedplate.inference.engine.kinds.sampling import Sampling
from bedplate.inference.engine.sampler import RowState


def sample_rows(logits_BV: Tensor, rows: Sequence[RowState]) -> list[int]:
    """Each row's next token; a row that draws takes one number from its generator."""
    return [_sample(logits_V.clone(), row) for logits_V, row in zip(logits_BV, rows, strict=True)]


def _sample(logits_V: Tensor, row: RowState) -> int:
    settings = row.sampling
    logits_V = penalise_row(logits_V, row).masked_fill(~_allowed(row, len(logits_V)), -torch.inf)
    if settings.temperature == 0:
        return int(logits_V.argmax())
    values, order = (logits_V / settings.temperature).softmax(-1).sort(descending=True, stable=True)
    kept = truncate_row(values, settings)
    cumulative = kept.double().cumsum(0)
    uniform = float(torch.rand((), generator=row.generator, dtype=torch.float64))
    place = int(torch.searchsorted(cumulative, uniform * float(cumulative[-1]), right=True))
    return int(order[min(place, int((kept > 0).sum()) - 1)])


def _allowed(row: RowState, vocab_size: int) -> Tensor:
    words_W = np.full(mask_words(vocab_size), -1, dtype=np.int32)
    if row.matcher is not None:
        row.matcher.fill(words_W)
    allowed_V = torch.from_numpy(unpack(words_W[None], vocab_size)[0].copy())
    left_V = allowed_V.clone()
    left_V[list(row.withheld)] = False
    return left_V if bool(left_V.any()) else allowed_V


def penalise_row(logits_V: Tensor, row: RowState) -> Tensor:
    settings = row.sampling
    for token, bias in settings.logit_bias:
        logits_V[token] += bias
    if settings.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*row.prompt, *row.output}))
        scores, rate = logits_V[seen], settings.repetition_penalty
        logits_V[seen] = torch.where(scores < 0, scores * rate, scores / rate)
    for token, times in Counter(row.output).items():
        logits_V[token] -= settings.presence_penalty + settings.frequency_penalty * times
    return logits_V


def truncate_row(sorted_V: Tensor, settings: Sampling) -> Tensor:
    """Zeroes what top-k, then top-p, then min-p cut from descending probabilities; at least the first stays."""
    kept = sorted_V.clone()
    if settings.top_k:
        kept[settings.top_k :] = 0
    if settings.top_p < 1.0:
        mass_before = kept.cumsum(0) - kept
        kept[mass_before >= settings.top_p * kept.sum()] = 0
        kept[0] = sorted_V[0]
    if settings.min_p > 0:
        kept[kept < settings.min_p * kept[0]] = 0
    return kept
