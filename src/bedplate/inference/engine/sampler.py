"""Choosing next tokens for a batch of rows, each with its own settings, as one operation over the logits.

A row's draw depends only on its own logits, settings and generator, never on its neighbours. On an accelerator nothing
is read back here.
Shapes: B rows, V vocabulary, K likeliest tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bedplate.inference.engine.grammar import Matcher, allowed_ids, mask_words, unpack, withhold
from bedplate.inference.engine.kinds.sampling import Sampling

HEAD = 256
"""Most of the mass lies in few tokens: on a CPU, a row is sorted as a whole only where these do not tell its draw."""
MANY_WORDS = 64
"""Of a mask's words with an allowed token: beyond so many, all logits are looked at, which is then faster."""
_NEVER = np.float32(-np.inf)


@dataclass
class RowState:
    """One row's settings, its random generator, the tokens that its penalties look at, and what it is held to.

    end_ids: the base's own end tokens. never: tokens that its publisher says are no part of any text.
    """

    sampling: Sampling
    prompt: Sequence[int]
    output: list[int] = field(default_factory=list[int])
    matcher: Matcher | None = None
    end_ids: frozenset[int] = frozenset()
    never: frozenset[int] = frozenset()
    generator: torch.Generator | None = None
    number: Tensor | None = None

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

    def uniform(self) -> Tensor:
        """The number that a token is drawn by: float64 [], from 0 to below 1. It stays the same until one was drawn, so
        that another row's failure in the same step does not change it."""
        if self.number is None:
            self.number = torch.rand((), generator=self.generator, dtype=torch.float64)
        return self.number

    def without_mask(self, token: int) -> int | None:
        """The likeliest token that may be chosen, where that can be told without a mask: `token`, the likeliest of all,
        or the only one. None where it cannot."""
        if token in self.withheld:
            return None
        if self.matcher is None:
            return token
        found = None if token in self.end_ids else self.matcher.without_mask(token)
        return None if found in self.end_ids else found

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
        """Tokens that may not be chosen now: those that never may, and ends before `min_tokens`."""
        settings = self.sampling
        if len(self.output) < settings.min_tokens:
            return self.never.union(self.end_ids, settings.stop_token_ids)
        # The end of a grammar is an end token; ignored, it would become part of a text that has no place for it.
        return self.never | self.end_ids if self.matcher is not None and settings.ignore_eos else self.never


def sample(logits_BV: Tensor, rows: Sequence[RowState]) -> Tensor:
    """Next token ids int64 [B]. The logits stay as they are."""
    allowed = _allowed(rows, logits_BV.shape[-1])  # first: a device still computing the logits is not waited for
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
    picked = logits_BV[list(rows)]
    _hold(picked, [allowed.get(i) for i in rows])
    return picked.argmax(dim=-1)


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


def _hold(logits_BV: Tensor, allowed: Sequence[NDArray[np.int32] | None]) -> None:
    """Sets minus infinity where a row may not choose. Rows that may choose everything are not touched."""
    held = [i for i, words_W in enumerate(allowed) if words_W is not None]
    if held:
        masks = np.stack([words_W for words_W in allowed if words_W is not None])
        mask_CV = torch.from_numpy(unpack(masks, logits_BV.shape[-1])).to(logits_BV.device)
        index = torch.tensor(held, device=logits_BV.device)
        logits_BV[index] = logits_BV[index].masked_fill_(~mask_CV, -torch.inf)


def penalise(logits_BV: Tensor, rows: Sequence[RowState]) -> Tensor:
    """The logits with each row's bias, then its penalties applied; a copy where any row has one."""
    settings = [row.sampling for row in rows]
    repeats = [one.repetition_penalty != 1.0 for one in settings]
    counts = [one.presence_penalty != 0 or one.frequency_penalty != 0 for one in settings]
    if not (any(repeats) or any(counts) or any(one.logit_bias for one in settings)):
        return logits_BV
    logits_BV, numbers = logits_BV.clone(), partial(torch.tensor, dtype=torch.float32, device=logits_BV.device)
    at = _places([[token for token, _ in one.logit_bias] for one in settings], logits_BV.device)
    logits_BV[at] += numbers([bias for one in settings for _, bias in one.logit_bias])
    seen = [{*row.prompt, *row.output} if asked else () for row, asked in zip(rows, repeats, strict=True)]
    at = _places(seen, logits_BV.device)
    scores, rate = logits_BV[at], numbers([one.repetition_penalty for one in settings])[at[0]]
    logits_BV[at] = torch.where(scores < 0, scores * rate, scores / rate)
    said = [Counter(row.output if asked else ()) for row, asked in zip(rows, counts, strict=True)]
    at = _places(said, logits_BV.device)
    presence = numbers([one.presence_penalty for one in settings])[at[0]]
    frequency = numbers([one.frequency_penalty for one in settings])[at[0]]
    logits_BV[at] -= presence + frequency * numbers([times for one in said for times in one.values()])
    return logits_BV


def _places(tokens: Sequence[Collection[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the logits of each row's tokens are: the numbers of the rows, and of the tokens."""
    rows = torch.arange(len(tokens)).repeat_interleave(torch.tensor([len(one) for one in tokens]))
    ids = np.fromiter(chain.from_iterable(tokens), dtype=np.int64)
    return rows.to(device), torch.from_numpy(ids).to(device)


def _draw(
    logits_BV: Tensor, allowed: Mapping[int, NDArray[np.int32]], drawing: Sequence[int], rows: Sequence[RowState]
) -> Tensor:
    """A token of each row that draws, int64 [B] of them, by one number from the row's own generator: what it draws is
    its own."""
    uniform_B = torch.stack([rows[i].uniform() for i in drawing])
    picked_BV = logits_BV if len(drawing) == len(rows) else logits_BV[list(drawing)]
    chosen_B = _drawn_by(uniform_B, picked_BV, [allowed.get(i) for i in drawing], [rows[i].sampling for i in drawing])
    for i in drawing:
        rows[i].number = None
    return chosen_B


def _drawn_by(
    uniform_B: Tensor, logits_BV: Tensor, allowed: Sequence[NDArray[np.int32] | None], settings: Sequence[Sampling]
) -> Tensor:
    device = logits_BV.device
    # A smaller one would make infinities of logits, and chooses no other tokens.
    temperature = torch.tensor([max(one.temperature, 1e-30) for one in settings], device=device)
    scaled_BV = logits_BV / temperature[:, None]
    _hold(scaled_BV, allowed)
    probabilities_BV, uniform_B = scaled_BV.softmax(dim=-1), uniform_B.to(device)
    if not logits_BV.is_cpu or logits_BV.shape[-1] <= HEAD:
        return _placed(*probabilities_BV.sort(descending=True, stable=True), settings, uniform_B)[0]
    values_BK, ids_BK = probabilities_BV.topk(HEAD, dim=-1)
    # By numpy, which makes no copy of all probabilities in this type.
    whole_B = torch.from_numpy(probabilities_BV.numpy().sum(axis=-1, dtype=np.float64))
    chosen, told = _placed(values_BK, ids_BK, settings, uniform_B, whole_B)
    rest = [i for i, known in enumerate(told.tolist()) if not known]
    if rest:
        values_BV, ids_BV = probabilities_BV[rest].sort(descending=True, stable=True)
        chosen[rest] = _placed(values_BV, ids_BV, [settings[i] for i in rest], uniform_B[rest])[0]
    return chosen


def _placed(
    sorted_BK: Tensor, ids_BK: Tensor, settings: Sequence[Sampling], uniform_B: Tensor, whole_B: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The tokens in whose share of what is kept the uniform numbers fall, and whether the K likeliest tell it: where a
    filter ends within them, or the number falls on one of them and nothing is cut from the row.

    whole_B: the sum of all probabilities, None where these are all.
    """
    kept_BK = truncate(sorted_BK, settings, whole_B)
    cumulative_BK = kept_BK.double().cumsum(dim=-1)
    whole = [0 < one.top_k <= kept_BK.shape[-1] for one in settings]
    ended_B = (kept_BK[:, -1] == 0) | torch.tensor(whole, device=kept_BK.device)
    total_B = cumulative_BK[:, -1] if whole_B is None else torch.where(ended_B, cumulative_BK[:, -1], whole_B)
    place_B = uniform_B * total_B
    free = [one.top_k == 0 and one.top_p == 1.0 and one.min_p == 0 for one in settings]
    more = [one.top_k > kept_BK.shape[-1] for one in settings]  # what top-p and min-p are shares of is not known
    free_B, more_B = torch.tensor([free, more], device=kept_BK.device)
    told_B = (ended_B & ~more_B) | (free_B & (place_B < cumulative_BK[:, -1]))
    at_B = torch.searchsorted(cumulative_BK, place_B[:, None], right=True)[:, 0]
    last_B = ((kept_BK > 0).sum(dim=-1) - 1).clamp(min=0)  # a row of NaN keeps nothing
    return ids_BK.gather(1, torch.minimum(at_B, last_B)[:, None])[:, 0], told_B


def truncate(sorted_BK: Tensor, settings: Sequence[Sampling], whole_B: Tensor | None = None) -> Tensor:
    """Zeroes what top-k, then top-p (https://arxiv.org/abs/1904.09751), then min-p (https://arxiv.org/abs/2407.01082)
    cut from each row's descending probabilities; at least the first stays. Each filter acts on what the last one left,
    renormalised, as in transformers. whole_B: the sum of all probabilities where these are only the largest of them."""
    kept_BK, device = sorted_BK, sorted_BK.device
    if any(one.top_k for one in settings):
        count = torch.tensor([one.top_k or kept_BK.shape[-1] for one in settings], device=device)
        kept_BK = kept_BK.masked_fill(torch.arange(kept_BK.shape[-1], device=device) >= count[:, None], 0)
    if any(one.top_p < 1.0 for one in settings):
        most = torch.tensor([one.top_p if one.top_p < 1.0 else torch.inf for one in settings], device=device)
        mass_B = kept_BK.sum(dim=-1)
        if whole_B is not None:
            cut = torch.tensor([one.top_k > 0 for one in settings], device=device)
            mass_B = torch.where(cut, mass_B, whole_B.float())
        # A token stays while the mass before it is below top_p of the whole.
        beyond_BK = kept_BK.cumsum(dim=-1) - kept_BK >= (most * mass_B)[:, None]
        beyond_BK[:, 0] = False
        kept_BK = kept_BK.masked_fill(beyond_BK, 0)
    if any(one.min_p > 0 for one in settings):
        least = torch.tensor([one.min_p for one in settings], device=device)
        kept_BK = kept_BK.masked_fill(kept_BK < least[:, None] * kept_BK[:, :1], 0)
    return kept_BK
