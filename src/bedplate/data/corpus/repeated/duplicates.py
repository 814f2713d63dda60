"""Which documents of a corpus are left out as copies of another; the first in order is the one that stays."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from bedplate.data.corpus.recipe import Dedup
from bedplate.data.corpus.repeated.minhash import clusters

UNIQUE, EXACT, NEAR = 0, 1, 2


def text_hash(text: str) -> tuple[int, int]:
    """128 bits of a text that white space does not change."""
    digest = hashlib.blake2b(" ".join(text.split()).encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def copies(
    settings: Dedup, hashes_D2: NDArray[np.uint64], bands_DB: NDArray[np.uint64], has_D: NDArray[np.bool_]
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Of each document [D] KEPT, EXACT or NEAR, and the document that it is a copy of (itself where it is kept)."""
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
