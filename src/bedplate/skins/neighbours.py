"""A pool of labelled rows with their vectors: a call's demonstrations are the rows nearest to its own inputs.

Liu et al., What Makes Good In-Context Examples for GPT-3? (arXiv 2101.06804). The search is exact: one product with
every vector of the pool, which stays within a call's noise up to some hundred thousand rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from bedplate.adapters.tensors import MAX_TENSOR_BYTES, read_bytes, read_json_object, read_tensors, tensor_bytes
from bedplate.core.errors import RequestError, SkinError
from bedplate.skins.prompt import Demonstration

INDEX_DIRECTORY = "index"
VECTORS_FILE = f"{INDEX_DIRECTORY}/vectors.safetensors"
ROWS_FILE = f"{INDEX_DIRECTORY}/rows.jsonl"
MAX_ROWS_BYTES = 2 * 1024**3
_TENSOR = "vectors"
_UNIT = 1e-3
"""How far from 1 a vector's length may be."""

Order = Literal["nearest_last", "nearest_first"]
PoolPooling = Literal["mean", "first"]


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
        shape = self.vectors.shape
        if self.vectors.dtype != np.float32 or len(shape) != 2 or not self.vectors.size:
            raise SkinError(f"a pool's vectors are float32 [N, D], got {self.vectors.dtype} {list(shape)}")
        if shape[0] != len(self.rows):
            raise SkinError(f"the pool has {len(self.rows):,} rows and {shape[0]:,} vectors; each row needs one")
        if not 1 <= self.k <= len(self.rows):
            raise SkinError(f"k is {self.k}; it must be between 1 and the pool's {len(self.rows):,} rows")
        # in 64 bits, so that no finite vector overflows
        lengths = np.sqrt(np.einsum("nd,nd->n", self.vectors, self.vectors, dtype=np.float64))
        if not bool(np.isfinite(lengths).all()):
            raise SkinError("the pool's vectors hold NaN or infinity")
        wrong = int(np.argmax(np.abs(lengths - 1.0)))
        if abs(lengths[wrong] - 1.0) > _UNIT:
            raise SkinError(f"vector {wrong} of the pool has length {lengths[wrong]:.4g}, not 1")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        """D, the features of one vector."""
        return self.vectors.shape[1]

    def nearest(self, query_D: np.ndarray) -> list[int]:
        """The k rows of highest cosine similarity to a vector of any length, nearest first; the earlier of equals.

        RequestError for a query of another size, or that is not finite.
        """
        if query_D.shape != (self.size,) or not bool(np.isfinite(query_D).all()):
            raise RequestError(f"the query must be {self.size} finite numbers, got {list(query_D.shape)}")
        scores_N = self.vectors @ query_D.astype(np.float32, copy=False)
        count = len(scores_N)
        if self.k == count:
            found = np.arange(count)
        else:
            chosen = np.argpartition(scores_N, count - self.k)[count - self.k :]
            # the partition takes any of equals at its edge: all of them are looked at again
            found = np.flatnonzero(scores_N >= scores_N[chosen].min())
        order = np.lexsort((found, -scores_N[found]))
        return found[order][: self.k].tolist()

    def demonstrations(self, query_D: np.ndarray) -> tuple[Demonstration, ...]:
        """What is shown for a call whose inputs have this vector, in the order of the prompt."""
        found = self.nearest(query_D)
        return tuple(self.rows[i] for i in (found if self.order == "nearest_first" else found[::-1]))

    def files(self) -> dict[str, bytes]:
        """File name → content of `index/`."""
        lines = [json.dumps({"inputs": dict(r.inputs), "answer": r.answer}, ensure_ascii=False) for r in self.rows]
        vectors = torch.from_numpy(np.ascontiguousarray(self.vectors))
        return {VECTORS_FILE: vector_bytes(vectors), ROWS_FILE: "".join(line + "\n" for line in lines).encode()}


def vector_bytes(vectors: torch.Tensor) -> bytes:
    """The content of `index/vectors.safetensors`."""
    return tensor_bytes({_TENSOR: vectors.float()})


def read_vectors(path: Path, content: bytes | None = None) -> np.ndarray:
    """Vectors float32 [N, D]. SkinError where the file is corrupt, or holds anything else."""
    tensors = read_tensors(path, read_bytes(path, MAX_TENSOR_BYTES) if content is None else content)
    if tensors.keys() != {_TENSOR}:
        raise SkinError(f"{path} must hold exactly {_TENSOR!r}, not {sorted(tensors)}")
    return tensors[_TENSOR].numpy()


def read_pool_rows(path: Path, content: bytes) -> tuple[Demonstration, ...]:
    """The rows of `index/rows.jsonl`. SkinError naming the line."""
    rows: list[Demonstration] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line:
            continue
        row = read_json_object(path, line)
        inputs, answer = row.get("inputs"), row.get("answer")
        texts = isinstance(inputs, dict) and all(type(value) is str for value in inputs.values())
        if row.keys() != {"inputs", "answer"} or not texts or type(answer) is not str:
            raise SkinError(f"{path}, line {number}: a row is its inputs and its answer, all of them texts")
        assert isinstance(inputs, dict)
        rows.append(Demonstration(inputs, answer))
    return tuple(rows)


def text_of(inputs: Mapping[str, str], names: Sequence[str]) -> str:
    """What is embedded: all inputs, one a line, in the skin's order."""
    return "\n".join(inputs[name] for name in names)
