"""Choosing next tokens for a batch of rows, each with its own settings, in one pass over the logits.

A row's draw depends only on its own logits, settings and generator, never on its neighbours.
Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bedplate.inference.engine.grammar import Matcher, allowed_ids, mask_words, unpack, withhold
from bedplate.inference.engine.requests import Sampling

# Most rows' mass lies in few tokens: a full sort is done only for rows where these do not hold top_p of it.
HEAD = 256
MANY_WORDS = 64
"""Of a mask's words with an allowed token: beyond so many, all logits are looked at, which is then faster."""
_NEVER = np.float32(-np.inf)


@dataclass
class RowState:
    """One row's settings, its random generator, the tokens that its penalties look at, and what it is held to.

    end_ids: the base's own end tokens.
    """

    sampling: Sampling
    prompt: Sequence[int]
    output: list[int] = field(default_factory=list[int])
    matcher: Matcher | None = None
    end_ids: frozenset[int] = frozenset()
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:
            self.generator = torch.Generator()
            if self.sampling.seed is None:
                self.generator.seed()
            else:
                self.generator.manual_seed(self.sampling.seed)

    def ends(self, token: int) -> bool:
        """Whether this token ends the row: it is then no part of the output."""
        settings = self.sampling
        return token in settings.stop_token_ids or (token in self.end_ids and not settings.ignore_eos)

    def take(self, token: int) -> None:
        """Makes a chosen token part of the output."""
        self.output.append(token)
        if self.matcher is not None:
            self.matcher.advance(token)

    def permits(self, token: int) -> bool:
        """Whether the likeliest token may be chosen, where that can be told without a mask."""
        if token in self.withheld:
            return False
        return self.matcher is None or (token not in self.end_ids and self.matcher.permits(token))

    @property
    def complete(self) -> bool:
        """Nothing may follow any more: the grammar has come to its end."""
        return self.matcher is not None and self.matcher.complete

    @property
    def failure(self) -> str | None:
        """Why the row cannot go on: its grammar became too costly."""
        failure = None if self.matcher is None else self.matcher.failure
        return None if failure is None else f"the grammar became too costly to follow: {failure}"

    @property
    def withheld(self) -> frozenset[int]:
        """Tokens that may not be chosen now: ends before `min_tokens`."""
        settings = self.sampling
        if len(self.output) < settings.min_tokens:
            return self.end_ids.union(settings.stop_token_ids)
        # The end of a grammar is an end token; ignored, it would become part of a text that has no place for it.
        return self.end_ids if self.matcher is not None and settings.ignore_eos else frozenset()


def sample(logits_BV: Tensor, rows: Sequence[RowState]) -> Tensor:
    """Next token ids int64 [B]. The logits stay as they are."""
    vocab_size = logits_BV.shape[-1]
    allowed = _allowed(rows, vocab_size)  # first: a device still computing the logits is not waited for
    logits_BV = penalise(logits_BV.float(), rows)
    drawing = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    if not drawing and logits_BV.is_cpu:
        return torch.tensor([_likeliest(row_V, allowed.get(i)) for i, row_V in enumerate(logits_BV.numpy())])
    logits_BV = _hold(logits_BV, allowed)
    chosen = logits_BV.argmax(dim=-1)
    if not drawing:
        return chosen
    index = torch.tensor(drawing, device=logits_BV.device)
    chosen[index] = _draw(logits_BV[index], [rows[i] for i in drawing])
    return chosen


def _likeliest(logits_V: NDArray[np.float32], allowed_W: NDArray[np.int32] | None) -> int:
    """The first of the largest logits among those allowed. A grammar mostly allows few, which are then all that is
    looked at."""
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
    """By row, the mask of what it may choose [W]; rows that may choose everything are left out."""
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


def _hold(logits_BV: Tensor, allowed: Mapping[int, NDArray[np.int32]]) -> Tensor:
    """The logits with minus infinity where a row may not choose; a copy where there is such a row."""
    if not allowed:
        return logits_BV
    mask_CV = torch.from_numpy(unpack(np.stack(list(allowed.values())), logits_BV.shape[-1])).to(logits_BV.device)
    if len(allowed) == len(logits_BV):
        return logits_BV.masked_fill(~mask_CV, -torch.inf)
    index = torch.tensor(list(allowed), device=logits_BV.device)
    return logits_BV.index_copy(0, index, logits_BV[index].masked_fill(~mask_CV, -torch.inf))


def penalise(logits_BV: Tensor, rows: Sequence[RowState]) -> Tensor:
    """The logits with each row's bias, then its penalties applied; a copy where any row has one."""
    if not any(_has_penalty(row.sampling) for row in rows):
        return logits_BV
    logits_BV = logits_BV.clone()
    for logits_V, row in zip(logits_BV, rows, strict=True):
        settings = row.sampling
        if settings.logit_bias:
            ids, biases = zip(*settings.logit_bias, strict=True)
            logits_V[list(ids)] += torch.tensor(biases, dtype=logits_V.dtype, device=logits_V.device)
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
    penalties = (settings.presence_penalty, settings.frequency_penalty, settings.logit_bias)
    return settings.repetition_penalty != 1.0 or any(penalties)


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
