"""Duplicate documents: exact copies by hash, near-duplicates by MinHash (Broder, 1997) with locality-sensitive bands.
Of each cluster the first document stays.

Documents that agree in all hashes of a band are one cluster. Hash functions are multiply-shift (Dietzfelbinger et al.,
1997) over hashes of n-grams of words.

Shapes: D documents, S shingles of one, H = bands × rows hashes, B bands.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from bedplate.data.corpus.recipe import Dedup, MinHashSettings
from bedplate.data.corpus.repeated.words import n_grams, word_hashes

_TOGETHER = 2048
"""Shingles whose hashes are computed at once."""
_MIX = np.uint64(0xBF58476D1CE4E5B9)


class MinHash:
    """Signatures under one choice of hash functions."""

    def __init__(self, settings: MinHashSettings) -> None:
        self.settings = settings
        generator = np.random.Generator(np.random.PCG64(settings.seed))
        count = settings.bands * settings.rows
        top = np.iinfo(np.uint64).max
        self._a = generator.integers(0, top, count, np.uint64, endpoint=True) | np.uint64(1)
        self._b = generator.integers(0, top, count, np.uint64, endpoint=True)

    def bands(self, text: str) -> NDArray[np.uint64] | None:
        """One number for each band [B]; None for a text shorter than a shingle, which is like no other."""
        shingles = n_grams(word_hashes(text), self.settings.words)
        if not len(shingles):
            return None
        signature = np.full(len(self._a), np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(shingles), _TOGETHER):
            some_SH = shingles[start : start + _TOGETHER, None] * self._a
            some_SH += self._b
            some_SH >>= np.uint64(24)  # the high bits are the good ones
            np.minimum(signature, some_SH.min(axis=0), out=signature)
        least_BR = signature.reshape(self.settings.bands, self.settings.rows)
        band_hashes = least_BR[:, 0].copy()
        for row in range(1, self.settings.rows):
            band_hashes = (band_hashes ^ (band_hashes >> np.uint64(29))) * _MIX + least_BR[:, row]
        return band_hashes


def clusters(bands_DB: NDArray[np.uint64], has_D: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first document of each document's cluster [D]: itself where it is like none before it, or has no
    signature."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(has_D)
    places = np.flatnonzero(has_D)
    left: list[NDArray[np.int64]] = []
    right: list[NDArray[np.int64]] = []
    for band in range(bands_DB.shape[1] if len(places) else 0):
        values = bands_DB[places, band]
        order = np.argsort(values, kind="stable")
        matches = np.flatnonzero(values[order][1:] == values[order][:-1])
        left.append(places[order[matches]])
        right.append(places[order[matches + 1]])
    if not left:
        return np.arange(count)
    rows, columns = np.concatenate(left), np.concatenate(right)
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    firsts = np.full(int(labels.max()) + 1, count, np.int64)
    np.minimum.at(firsts, labels, np.arange(count))
    return firsts[labels]


UNIQUE, EXACT, NEAR = 0, 1, 2


def text_hash(text: str) -> tuple[int, int]:
    """128 bits of a text that white space does not change."""
    digest = hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def copies(
    settings: Dedup, hashes_D2: NDArray[np.uint64], bands_DB: NDArray[np.uint64], has_D: NDArray[np.bool_]
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """KEPT, EXACT or NEAR for each document [D], and the document that it copies (itself where it is kept)."""
    count = len(hashes_D2)
    fate, of = np.zeros(count, np.int8), np.arange(count)
    if settings.exact and count:
        order = np.lexsort((np.arange(count), hashes_D2[:, 1], hashes_D2[:, 0]))
        ordered = hashes_D2[order]
        new = np.concatenate([[True], (ordered[1:] != ordered[:-1]).any(axis=1)])
        of[order] = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
        fate[of != np.arange(count)] = EXACT
    if settings.minhash is not None and count:
        first_of_cluster = clusters(bands_DB, has_D & (fate == UNIQUE))
        copied = (fate == UNIQUE) & (first_of_cluster != np.arange(count))
        fate[copied], of[copied] = NEAR, first_of_cluster[copied]
        of = of[of]  # an exact copy of a near copy is a copy of the one that stays
    return fate, of
