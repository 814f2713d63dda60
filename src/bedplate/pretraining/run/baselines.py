"""Baselines on the same held-out texts without a neural network: gzip, xz, and an n-gram model.

The n-gram model has interpolated, modified Kneser–Ney smoothing (Chen and Goodman 1998,
https://dash.harvard.edu/handle/1/25104739, section 3): absolute discounts by count, lower orders from the number of
different tokens that precede. Counts are sorted arrays, not dictionaries.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bedplate.pretraining.run.data import HeldOut


@dataclass(frozen=True)
class _Order:
    """N-grams of one order. keys: sorted, context · vocabulary + token; counts; for each context, by its number: the
    sum of its counts, and how much its discounts take from it."""

    keys: np.ndarray
    counts: np.ndarray
    totals: np.ndarray
    discounted: np.ndarray
    discounts: np.ndarray


class NgramModel:
    """Fitted to one stream of ids, below `vocabulary`. order: tokens of the longest n-gram."""

    def __init__(self, stream: np.ndarray, vocabulary: int, order: int = 5) -> None:
        self.vocabulary, self.order = vocabulary, order
        self._contexts = [np.zeros(1, dtype=np.int64)]  # keys of the contexts of each order, by number
        ids = np.asarray(stream, dtype=np.int64)
        context = np.zeros(len(ids), dtype=np.int64)  # the empty context is number 0
        grams: list[np.ndarray] = []  # of each order, its n-grams' keys at every place
        for size in range(1, order + 1):
            at = ids[size - 1 :]
            grams.append(context[: len(at)] * vocabulary + at)
            unique, context = np.unique(grams[-1], return_inverse=True)
            self._contexts.append(unique)
        self._orders = [self._fit(grams, size) for size in range(1, order + 1)]

    def _fit(self, grams: list[np.ndarray], size: int) -> _Order:
        keys = grams[size - 1]
        if size < self.order:
            # how many different tokens stand before it: of the n-grams one longer, each once, what they end in
            longer, first = np.unique(grams[size], return_index=True)
            keys = keys[1:][first] if len(longer) else keys[:0]
        unique, counts = np.unique(keys, return_counts=True)
        contexts, number = unique // self.vocabulary, len(self._contexts[size - 1])
        counted, discounts = counts.astype(np.float64), _discounts(counts)
        totals = np.bincount(contexts, counted, minlength=number)
        discounted = np.bincount(contexts, discounts[np.minimum(counts, 3)], minlength=number)
        return _Order(unique, counted, totals, discounted, discounts)

    def probabilities(self, history: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Probability of each token after its own history [N, order − 1] (the nearest last, −1: none): float64 [N]."""
        estimates = np.full(len(tokens), 1.0 / self.vocabulary)
        for size in range(1, self.order + 1):
            context, valid = self._number(history[:, history.shape[1] - (size - 1) :])
            part = self._orders[size - 1]
            totals = np.where(valid, part.totals[context], 0.0)
            keys = context * self.vocabulary + tokens
            at = np.minimum(np.searchsorted(part.keys, keys), len(part.keys) - 1)
            counts = np.where(valid & (part.keys[at] == keys), part.counts[at], 0.0)
            discounted = counts - part.discounts[np.minimum(counts, 3).astype(np.int64)]
            observed = totals > 0
            safe = np.where(observed, totals, 1.0)
            estimates = np.where(observed, discounted / safe + part.discounted[context] / safe * estimates, estimates)
        return estimates

    def _number(self, history: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of contexts, and which of them were seen."""
        context = np.zeros(len(history), dtype=np.int64)
        valid = np.ones(len(history), dtype=bool)
        for place in range(history.shape[1]):
            token, contexts = history[:, place], self._contexts[place + 1]
            keys = context * self.vocabulary + token
            at = np.minimum(np.searchsorted(contexts, keys), len(contexts) - 1)
            valid &= (token >= 0) & (contexts[at] == keys)
            context = np.where(valid, at, 0)
        return context, valid

    def bits(self, document: np.ndarray, at_once: int = 1 << 16) -> float:
        """Bits that the tokens of a document cost one after the other, nothing standing before the first."""
        ids = np.asarray(document, dtype=np.int64)
        before = self.order - 1
        padded = np.concatenate([np.full(before, -1, dtype=np.int64), ids])
        windows = np.lib.stride_tricks.sliding_window_view(padded, before + 1)
        total = 0.0
        for start in range(0, len(ids), at_once):
            part = windows[start : start + at_once]
            total -= float(np.log2(self.probabilities(part[:, :-1], part[:, -1])).sum())
        return total


def _discounts(counts: np.ndarray) -> np.ndarray:
    """By min(count, 3): Chen and Goodman's equation 26. A count that never occurs, or whose discount would not be
    above 0 (a short text), has the plain discount: without any, what was never seen would be impossible."""
    n1, n2, n3, n4 = (int((counts == n).sum()) for n in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2) if n1 and n2 else 0.5
    pairs = ((1, n1, n2), (2, n2, n3), (3, n3, n4))
    discounts = [n - (n + 1) * y * after / count if count else y for n, count, after in pairs]
    return np.array([0.0, *(discount if discount > 0 else y for discount in discounts)])


ORDER = 5


def compressors(texts: Sequence[str]) -> dict[str, float]:
    """Bits a byte of the texts one after the other in one stream, which is the best that each can do: gzip at level 9,
    xz at its extreme preset with a window over all of them. (gzip's header of some bytes is not counted.)"""
    whole = "".join(texts).encode()
    gzip = len(zlib.compress(whole, 9))
    xz = len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME))
    return {"gzip": 8 * gzip / len(whole), "xz": 8 * xz / len(whole)}


def ngram_bits(model: NgramModel, holdout: HeldOut) -> float:
    """Bits a byte of a model of counts."""
    return sum(model.bits(ids) for ids in holdout.ids) / holdout.bytes


def baselines(stream: np.ndarray, holdouts: Sequence[HeldOut], vocabulary: int) -> dict[str, dict[str, float]]:
    """Bits a byte by held-out text, then by name. stream: the tokens that the run trained on."""
    model = NgramModel(stream, vocabulary, ORDER)
    bits = {holdout.name: ngram_bits(model, holdout) for holdout in holdouts}
    return {holdout.name: {**compressors(holdout.texts), f"{ORDER}-gram": bits[holdout.name]} for holdout in holdouts}
