"""What is reached on the same held-out texts without a neural network: gzip, xz, and a model of counts."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Sequence

import numpy as np

from bedplate.pretraining.run.corpus import HeldOut
from bedplate.pretraining.run.ngram import NgramModel

ORDER = 5


def compressors(texts: Sequence[str]) -> dict[str, float]:
    """Bits a byte of the texts one after the other in one stream, which is the best that each can do: gzip at level 9,
    xz at its extreme preset with a window over all of them. (gzip's header of some bytes is not counted.)"""
    whole = "".join(texts).encode()
    gzip = len(zlib.compress(whole, 9))
    xz = len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME))
    return {"gzip": 8 * gzip / len(whole), "xz": 8 * xz / len(whole)}


def ngram_bits(stream: np.ndarray, held: HeldOut, vocabulary: int) -> float:
    """Bits a byte of a 5-gram model that has read the same tokens as the run."""
    model = NgramModel(stream, vocabulary, ORDER)
    return sum(model.bits(ids) for ids in held.ids) / held.bytes


def baselines(stream: np.ndarray, held: HeldOut, vocabulary: int) -> dict[str, float]:
    """Bits a byte by name."""
    return {**compressors(held.texts), f"{ORDER}-gram": ngram_bits(stream, held, vocabulary)}
