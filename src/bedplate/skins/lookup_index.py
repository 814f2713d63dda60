"""What is looked up for each call, by exact search among vectors of unit length: rows of a pool as demonstrations (Liu
et al., https://arxiv.org/abs/2101.06804), passages of documents (Lewis et al., https://arxiv.org/abs/2005.11401)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from bedplate.adapters.tensor_files import array_bytes, read_arrays
from bedplate.core.errors import RequestError, SkinError
from bedplate.core.files import sha256_json
from bedplate.core.values import Values, as_text
from bedplate.skins.prompt import Demonstration, Passage

INDEX_DIRECTORY = "index"
VECTORS_FILE = f"{INDEX_DIRECTORY}/vectors.safetensors"
MAX_ROWS_BYTES = 2 * 1024**3
_TENSOR = "vectors"
_UNIT = 1e-3
"""How far from 1 a vector's length may be."""

PoolPooling = Literal["mean", "first", "own"]
"""How texts of an index are pooled; own: as the base's own library makes vectors of them."""


def check_vectors(vectors: np.ndarray, count: int, k: int, index_name: str) -> None:
    """SkinError unless these are `count` finite vectors of unit length, float32 [N, D], of which k can be taken."""
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
    return array_bytes({_TENSOR: vectors.astype(np.float32, copy=False)})


def read_vectors(path: Path, content: bytes | None = None) -> np.ndarray:
    """Vectors float32 [N, D]. SkinError where the file is corrupt, or holds anything else."""
    arrays = read_arrays(path, content)
    if arrays.keys() != {_TENSOR}:
        raise SkinError(f"{path} must hold exactly {_TENSOR!r}, not {sorted(arrays)}")
    return arrays[_TENSOR]


ROWS_FILE = f"{INDEX_DIRECTORY}/rows.jsonl"

Order = Literal["nearest_last", "nearest_first"]


@dataclass(frozen=True, eq=False)
class Neighbours:
    """vectors: float32 [N, D] of unit length; rows: the N demonstrations that they stand for.

    k: how many are shown. order: where the nearest one stands among them. pooling, depth: how an embedder's states
    become a vector (depth None: after the last block and its norm), the same for the pool and for a call. SkinError for
    shapes that do not fit, NaN, vectors that are not of unit length, or a k that the pool does not hold.
    """

    vectors: np.ndarray
    rows: tuple[Demonstration, ...]
    k: int
    order: Order = "nearest_last"
    pooling: PoolPooling = "mean"
    depth: int | None = None

    def __post_init__(self) -> None:
        check_vectors(self.vectors, len(self.rows), self.k, "pool")

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, query_D: np.ndarray) -> list[int]:
        return nearest(self.vectors, query_D, self.k)

    def demonstrations(self, query_D: np.ndarray) -> tuple[Demonstration, ...]:
        """What is shown for a call whose inputs have this vector, in the order of the prompt."""
        indices = self.nearest(query_D)
        return tuple(self.rows[i] for i in (indices if self.order == "nearest_first" else indices[::-1]))

    def files(self) -> dict[str, bytes]:
        """File name → content of `index/`."""
        lines = [json.dumps({"inputs": dict(r.inputs), "answer": r.answer}, ensure_ascii=False) for r in self.rows]
        return {VECTORS_FILE: vector_bytes(self.vectors), ROWS_FILE: "".join(line + "\n" for line in lines).encode()}


def text_of(inputs: Values, names: Sequence[str]) -> str:
    """What is embedded: all inputs, one a line, in the skin's order."""
    return "\n".join(as_text(inputs[name]) for name in names)


PASSAGES_FILE = f"{INDEX_DIRECTORY}/passages.jsonl"


@dataclass(frozen=True)
class Chunk:
    """A piece of a document. start: the place of its first character there."""

    document: str
    start: int
    text: str


@dataclass(frozen=True, eq=False)
class Passages:
    """vectors: float32 [N, D] of unit length; chunks: the N pieces of documents that they stand for. k: how many a
    prompt holds, nearest first. pooling, depth: as in `Neighbours`. SkinError as there, and for an empty chunk."""

    vectors: np.ndarray
    chunks: tuple[Chunk, ...]
    k: int
    pooling: PoolPooling = "mean"
    depth: int | None = None

    def __post_init__(self) -> None:
        check_vectors(self.vectors, len(self.chunks), self.k, "index")
        empty = next((i for i, chunk in enumerate(self.chunks) if not chunk.text.strip()), None)
        if empty is not None:
            raise SkinError(f"passage {empty} of the index is empty")

    def __len__(self) -> int:
        return len(self.chunks)

    @cached_property
    def digest(self) -> str:
        return sha256_json([[chunk.document, chunk.start, chunk.text] for chunk in self.chunks])

    def retrieve(self, query_D: np.ndarray) -> tuple[Passage, ...]:
        """The passages of a prompt, numbered from 1. RequestError for a query of another size, or not finite."""
        chunks = [self.chunks[i] for i in nearest(self.vectors, query_D, self.k)]
        return tuple(Passage(number, c.text, c.document, c.start) for number, c in enumerate(chunks, start=1))

    def files(self) -> dict[str, bytes]:
        """File name → content of `index/`."""
        lines = [json.dumps(asdict(chunk), ensure_ascii=False) + "\n" for chunk in self.chunks]
        return {VECTORS_FILE: vector_bytes(self.vectors), PASSAGES_FILE: "".join(lines).encode()}
