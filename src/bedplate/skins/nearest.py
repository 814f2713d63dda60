"""Exact search among vectors of unit length: one product with every vector, which stays within a call's noise up to
some hundred thousand of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bedplate.adapters.tensors import MAX_TENSOR_BYTES, read_bytes, read_tensors, tensor_bytes
from bedplate.core.errors import RequestError, SkinError

INDEX_DIRECTORY = "index"
VECTORS_FILE = f"{INDEX_DIRECTORY}/vectors.safetensors"
MAX_ROWS_BYTES = 2 * 1024**3
_TENSOR = "vectors"
_UNIT = 1e-3
"""How far from 1 a vector's length may be."""

PoolPooling = Literal["mean", "first", "own"]
"""How texts of an index are pooled; own: as the base's own library makes vectors of them."""


def check_vectors(vectors: np.ndarray, count: int, k: int, index_name: str) -> None:
    """SkinError unless these are `count` finite vectors of unit length, float32 [N, D], of which k can be taken.
    index_name: the name of what holds them, for messages."""
    shape = vectors.shape
    if vectors.dtype != np.float32 or len(shape) != 2 or not vectors.size:
        raise SkinError(f"a {index_name}'s vectors are float32 [N, D], got {vectors.dtype} {list(shape)}")
    if shape[0] != count:
        raise SkinError(f"the {index_name} has {count:,} rows and {shape[0]:,} vectors; each row needs one")
    if not 1 <= k <= count:
        raise SkinError(f"k is {k}; it must be between 1 and the {index_name}'s {count:,} rows")
    # in 64 bits, so that no finite vector overflows
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    if not bool(np.isfinite(lengths).all()):
        raise SkinError(f"the {index_name}'s vectors hold NaN or infinity")
    wrong = int(np.argmax(np.abs(lengths - 1.0)))
    if abs(lengths[wrong] - 1.0) > _UNIT:
        raise SkinError(f"vector {wrong} of the {index_name} has length {lengths[wrong]:.4g}, not 1")


def nearest(vectors: np.ndarray, query_D: np.ndarray, k: int) -> list[int]:
    """The k rows of highest cosine similarity to a vector of any length, nearest first; the earlier of equals.

    RequestError for a query of another size, or that is not finite.
    """
    count, size = vectors.shape
    if query_D.shape != (size,) or not bool(np.isfinite(query_D).all()):
        raise RequestError(f"the query must be {size} finite numbers, got {list(query_D.shape)}")
    scores_N = vectors @ query_D.astype(np.float32, copy=False)
    if k == count:
        candidates = np.arange(count)
    else:
        chosen = np.argpartition(scores_N, count - k)[count - k :]
        # the partition takes any of equals at its edge: all of them are looked at again
        candidates = np.flatnonzero(scores_N >= scores_N[chosen].min())
    order = np.lexsort((candidates, -scores_N[candidates]))
    return candidates[order][:k].tolist()


def vector_bytes(vectors: np.ndarray) -> bytes:
    """The content of `index/vectors.safetensors`."""
    return tensor_bytes({_TENSOR: torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))})


def read_vectors(path: Path, content: bytes | None = None) -> np.ndarray:
    """Vectors float32 [N, D]. SkinError where the file is corrupt, or holds anything else."""
    tensors = read_tensors(path, read_bytes(path, MAX_TENSOR_BYTES) if content is None else content)
    if tensors.keys() != {_TENSOR}:
        raise SkinError(f"{path} must hold exactly {_TENSOR!r}, not {sorted(tensors)}")
    return tensors[_TENSOR].numpy()
