"""What is reached on the same held-out texts without a neural network: gzip, xz, and a model of counts."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from bedplate.pretraining.run.corpus import HeldOut
from bedplate.pretraining.run.ngram import NgramModel

ORDER = 5
MOST_COUNTED = 20_000_000
"""Tokens that are counted at most: each takes some 80 bytes while it is."""


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


def baselines(
    stream: Callable[[], np.ndarray], holdouts: Sequence[HeldOut], vocabulary: int
) -> dict[str, dict[str, float]]:
    """Bits a byte by held-out text, then by name. stream: makes the training tokens, of which the first `MOST_COUNTED`
    are counted."""
    model = NgramModel(stream()[:MOST_COUNTED], vocabulary, ORDER)
    return {
        holdout.name: {**compressors(holdout.texts), f"{ORDER}-gram": ngram_bits(model, holdout)}
        for holdout in holdouts
    }
