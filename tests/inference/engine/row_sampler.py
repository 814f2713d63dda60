"""One row's choice in float64 and by the definitions: every probability sorted, every filter in turn, the draw in the
vocabulary's order. What choosing for all rows at once must equal."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray

from bedplate.inference.engine.grammar import mask_words, unpack
from bedplate.inference.engine.row_state import RowState
from bedplate.inference.engine.sampling import Sampling

Row = NDArray[np.float64]
ROUNDING = 3e-6
"""Of sums of float32 probabilities: a number so near the end of a token's share may fall on the next."""


def acceptable(logits_V: torch.Tensor, row: RowState) -> set[int]:
    """The tokens that the row's next number may draw, rounding allowed for; without temperature the likeliest one."""
    settings = row.sampling
    penalised_V = np.where(_allowed(row, len(logits_V)), penalise_row(logits_V.double().numpy(), row), -np.inf)
    if settings.temperature == 0:
        # The penalties of float32 may make a tie of what is none.
        return set(np.flatnonzero(penalised_V >= penalised_V.max() - 1e-5 * abs(penalised_V.max())).tolist())
    whole_V, number = softmax(penalised_V / settings.temperature), row.uniform()
    tokens: set[int] = set()
    for share in (-ROUNDING, 0, ROUNDING):
        kept_V = filtered(whole_V, settings, 1 + share)
        for shift in (-ROUNDING, 0, ROUNDING):
            tokens.add(draw(kept_V, number + shift))
    return tokens


def softmax(logits_V: Row) -> Row:
    exponents_V = np.exp(logits_V - logits_V.max())
    return exponents_V / exponents_V.sum()


def draw(kept_V: Row, number: float) -> int:
    ends_V = kept_V.cumsum()
    at = np.searchsorted(ends_V, min(max(number, 0.0), 1.0) * ends_V[-1], side="right")
    return int(min(at, kept_V.nonzero()[0][-1]))


def filtered(whole_V: Row, settings: Sampling, factor: float = 1.0) -> Row:
    """What top-k, then top-p, then min-p leave; of equal ones the first. factor: of the last two."""
    order_V = np.argsort(-whole_V, kind="stable")
    sorted_V = whole_V[order_V]
    if settings.top_k:
        sorted_V[settings.top_k :] = 0
    if settings.top_p < 1.0:
        before_V = np.concatenate([[0.0], sorted_V.cumsum()[:-1]])
        sorted_V[1:][before_V[1:] >= settings.top_p * factor * sorted_V.sum()] = 0
    sorted_V[1:][sorted_V[1:] < settings.min_p * factor * sorted_V[0]] = 0
    kept_V = np.zeros_like(whole_V)
    kept_V[order_V] = sorted_V
    return kept_V


def _allowed(row: RowState, vocab_size: int) -> NDArray[np.bool_]:
    words_W = np.full(mask_words(vocab_size), -1, dtype=np.int32)
    if row.matcher is not None:
        row.matcher.fill(words_W)
    allowed_V = unpack(words_W[None], vocab_size)[0].copy()
    left_V = allowed_V.copy()
    left_V[list(row.withheld)] = False
    return left_V if left_V.any() else allowed_V


def penalise_row(logits_V: Row, row: RowState) -> Row:
    settings, logits_V = row.sampling, logits_V.copy()
    for token, bias in settings.logit_bias:
        logits_V[token] += bias
    if settings.repetition_penalty != 1.0:
        for token in {*row.prompt, *row.output}:
            rate = settings.repetition_penalty
            logits_V[token] = logits_V[token] * rate if logits_V[token] < 0 else logits_V[token] / rate
    for token, times in Counter(row.output).items():
        logits_V[token] -= settings.presence_penalty + settings.frequency_penalty * times
    return logits_V
