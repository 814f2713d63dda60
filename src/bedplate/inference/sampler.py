"""Choosing next tokens for a batch of rows, each with its own settings, in one pass over the logits.

A row's draw depends only on its own logits, settings and generator, never on its neighbours.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bedplate.inference.requests import Sampling

# Most rows' mass lies in few tokens: a full sort is done only for rows where these do not hold top_p of it.
HEAD = 256


@dataclass
class RowState:
    """One row's settings, its random generator, and the tokens that its penalties look at."""

    sampling: Sampling
    prompt: Sequence[int]
    output: list[int] = field(default_factory=list[int])
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:
            self.generator = torch.Generator()
            if self.sampling.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(self.sampling.seed)


def sample(logits_BV: Tensor, rows: Sequence[RowState]) -> Tensor:
    """Next token ids int64 [B]."""
    logits_BV = penalise(logits_BV.float(), rows)
    chosen = logits_BV.argmax(dim=-1)
    drawing = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if not drawing:
        return chosen
    index = torch.tensor(drawing, device=logits_BV.device)
    chosen[index] = _draw(logits_BV[index], [rows[i] for i in drawing])
    return chosen


def penalise(logits_BV: Tensor, rows: Sequence[RowState]) -> Tensor:
    """The logits with each row's penalties applied; a copy where any row has one."""
    if not any(_has_penalty(row.sampling) for row in rows):
        return logits_BV
    logits_BV = logits_BV.clone()
    for logits_V, row in zip(logits_BV, rows, strict=True):
        settings = row.sampling
        if settings.repetition_penalty != 1.0:
            seen = torch.tensor(sorted({*row.prompt, *row.output}), device=logits_V.device)
            scores = logits_V[seen]
            rate = settings.repetition_penalty
            logits_V[seen] = torch.where(scores < 0, scores * rate, scores / rate)
        if row.output and (settings.presence_penalty or settings.frequency_penalty):
            counts = Counter(row.output)
            tokens = torch.tensor(list(counts), device=logits_V.device)
            times = torch.tensor(list(counts.values()), dtype=logits_V.dtype, device=logits_V.device)
            logits_V[tokens] -= settings.presence_penalty + settings.frequency_penalty * times
    return logits_BV


def _has_penalty(settings: Sampling) -> bool:
    return settings.repetition_penalty != 1.0 or bool(settings.presence_penalty or settings.frequency_penalty)


def _draw(logits_BV: Tensor, rows: Sequence[RowState]) -> Tensor:
    temperature = torch.tensor([row.sampling.temperature for row in rows], device=logits_BV.device)
    probabilities_BV = torch.softmax(logits_BV / temperature[:, None], dim=-1)
    uniform = [float(torch.rand((), generator=row.generator, dtype=torch.float64)) for row in rows]
    top, ids = probabilities_BV.topk(min(HEAD, probabilities_BV.shape[-1]), dim=-1)
    chosen: list[int] = []
    for i, (row, u) in enumerate(zip(rows, uniform, strict=True)):
        settings = row.sampling
        values, order = top[i], ids[i]
        # The head suffices when a filter must end inside it: by count, by threshold, or by mass.
        by_count = 0 < settings.top_k <= len(values)
        by_threshold = settings.min_p > 0 and bool(values[-1] < settings.min_p * values[0])
        by_mass = settings.top_k == 0 and settings.top_p < 1.0 and bool(values.sum() >= settings.top_p)
        if not (by_count or (by_threshold and settings.top_p == 1.0 and settings.top_k == 0) or by_mass):
            values, order = probabilities_BV[i].sort(descending=True, stable=True)
        kept = truncate(values, settings)
        cumulative = kept.double().cumsum(0)
        place = int(torch.searchsorted(cumulative, u * float(cumulative[-1]), right=True))
        chosen.append(int(order[min(place, int((kept > 0).sum()) - 1)]))
    return torch.tensor(chosen, device=logits_BV.device)


def truncate(sorted_probabilities: Tensor, settings: Sampling) -> Tensor:
    """Zeroes what top-k, then top-p (https://arxiv.org/abs/1904.09751), then min-p (https://arxiv.org/abs/2407.01082)
    cut from descending probabilities; at least the first stays. Each filter acts on what the last one left,
    renormalised, as in transformers."""
    kept = sorted_probabilities.clone()
    if settings.top_k:
        kept[settings.top_k :] = 0
    if settings.top_p < 1.0:
        mass_before = kept.cumsum(0) - kept
        # Keep a token while the mass before it is below top_p of the whole.
        kept[mass_before >= settings.top_p * kept.sum()] = 0
        kept[0] = sorted_probabilities[0]
    if settings.min_p > 0:
        kept[kept < settings.min_p * kept[0]] = 0
    return kept
