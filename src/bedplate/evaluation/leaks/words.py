"""Texts as vectors of their words, cheap enough to be made before anything is loaded; and texts that are nearly equal.

A vector is TF-IDF hashed into few numbers with signs (Weinberger et al. 2009, https://arxiv.org/abs/0902.2206), so that
products of two are, on average, those of their words. Words that one text alone has say nothing of others and are left
out. Nearly equal is MinHash over three words in a row, with numbers kept apart: `row 17` is no copy of `row 18`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bedplate.data.corpus.recipe import MinHashSettings
from bedplate.data.corpus.repeated.minhash import MinHash, clusters
from bedplate.data.corpus.repeated.words import word_hashes

SIZE = 64
LEAST_WORDS = 8
"""Texts of fewer words are like another too easily."""
NEAR_COPY_SETTINGS = MinHashSettings(words=3, bands=14, rows=10)
"""Texts that share 8 of 10 shingles are found with a chance of 0.8, those that share half with one of 0.01."""
_DIGITS = str.maketrans("0123456789", "abcdefghij")


def word_vectors(texts: Sequence[str]) -> NDArray[np.float64]:
    """[n, SIZE], of length 1, or 0 for a text that has no word in common with any other."""
    word_ids = [np.unique(_words(text)) for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(ids) for ids in word_ids])
    words, places, counts = np.unique(np.concatenate(word_ids), return_inverse=True, return_counts=True)
    weights = np.where(counts > 1, np.log(len(texts) / counts), 0.0)[places]
    signs = np.where(words >> np.uint64(40) & np.uint64(1), 1.0, -1.0)[places]
    vectors = np.zeros((len(texts), SIZE))
    np.add.at(vectors, (rows, (words % np.uint64(SIZE)).astype(np.int64)[places]), weights * signs)
    length = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    return vectors / np.maximum(length, 1e-12)


def near_copies(texts: Sequence[str]) -> NDArray[np.int64]:
    """Of each text [n] the first that is nearly the same, directly or through others; itself where there is none."""
    hashes = MinHash(NEAR_COPY_SETTINGS)
    bands = np.zeros((len(texts), NEAR_COPY_SETTINGS.bands), np.uint64)
    has = np.zeros(len(texts), np.bool_)
    for row, text in enumerate(texts):
        masked = text.translate(_DIGITS)
        text_bands = hashes.bands(masked) if len(word_hashes(masked)) >= LEAST_WORDS else None
        if text_bands is not None:
            bands[row], has[row] = text_bands, True
    return clusters(bands, has)


def _words(text: str) -> NDArray[np.uint64]:
    return word_hashes(text.translate(_DIGITS))
