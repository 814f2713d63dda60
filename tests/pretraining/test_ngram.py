"""The n-gram model against nltk's Kneser–Ney, and as a distribution."""

from __future__ import annotations

import gzip
import lzma

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nltk.lm import KneserNeyInterpolated
from nltk.util import everygrams

from bedplate.pretraining.run import baselines as ngram
from bedplate.pretraining.run.baselines import NgramModel, compressors, ngram_bits
from bedplate.pretraining.run.data import HeldOut

streams = st.lists(st.integers(0, 5), min_size=8, max_size=60)


@settings(max_examples=40, deadline=None)
@given(streams, st.integers(1, 5), st.lists(st.integers(-1, 5), min_size=4, max_size=4))
@example([0, 1, 0, 0, 0, 0, 0, 1, 0, 2, 0], 3, [0, 0, 0, 1])  # the discount of two would be below 0
def test_probabilities_of_all_tokens_are_one_together(stream: list[int], order: int, history: list[int]) -> None:
    model = NgramModel(np.array(stream), 6, order)
    before = np.tile(np.array(history[4 - (order - 1) :], dtype=np.int64), (6, 1)).reshape(6, order - 1)
    probabilities = model.probabilities(before, np.arange(6))
    assert probabilities.min() > 0
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-9)


def test_it_is_nltks_where_discounts_are_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one discount for all counts, none for single tokens, this is what nltk has."""
    draw = np.random.default_rng(0)
    stream = draw.integers(0, 4, 300)
    calls: list[int] = []

    def discounts(counts: np.ndarray) -> np.ndarray:
        calls.append(1)
        return np.array([0.0, *([0.0] * 3 if len(calls) == 1 else [0.3] * 3)])

    monkeypatch.setattr(ngram, "_discounts", discounts)
    ours = NgramModel(stream, 4, 3)
    theirs = KneserNeyInterpolated(3, discount=0.3)
    words = [str(token) for token in stream]
    theirs.fit([everygrams(words, max_len=3)], words)
    for history in [(0, 1), (3, 3), (2, 0)]:
        expected = [theirs.score(str(token), [str(previous) for previous in history]) for token in range(4)]
        probabilities = ours.probabilities(np.tile(np.array(history), (4, 1)), np.arange(4))
        assert probabilities == pytest.approx(expected, abs=1e-9)


def test_longer_contexts_tell_more_of_text_that_repeats() -> None:
    stream = np.array([1, 2, 3, 1, 2, 4, 1, 2, 3, 1, 3, 4] * 200)
    bits = [NgramModel(stream, 5, order).bits(stream[:120]) for order in (1, 2, 5)]
    assert bits[0] > 1.5 * bits[1] > 3 * bits[2]
    sample = HeldOut("x", [stream[:120]], ["a" * 60])
    assert ngram_bits(NgramModel(stream, 5, 5), sample) == pytest.approx(bits[-1] / 60)


def test_compressors_are_those_of_the_standard_library() -> None:
    texts = ["some text that is repeated " * 40, "and another one"]
    whole = "".join(texts).encode()
    bits = compressors(texts)
    assert bits["gzip"] == pytest.approx(8 * len(gzip.compress(whole, 9)) / len(whole), abs=8 * 20 / len(whole))
    assert bits["xz"] == 8 * len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)) / len(whole)
