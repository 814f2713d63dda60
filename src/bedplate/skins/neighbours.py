"""A pool of labelled rows with their vectors: a call's demonstrations are the rows nearest to its own inputs.

Liu et al., What Makes Good In-Context Examples for GPT-3? (https://arxiv.org/abs/2101.06804).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from bedplate.adapters.tensors import read_json_object
from bedplate.core.errors import SkinError
from bedplate.core.values import Values, as_text
from bedplate.skins.nearest import INDEX_DIRECTORY, VECTORS_FILE, PoolPooling, check_vectors, nearest, vector_bytes
from bedplate.skins.prompt import Demonstration

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

    @property
    def size(self) -> int:
        """D, the features of one vector."""
        return self.vectors.shape[1]

    def nearest(self, query_D: np.ndarray) -> list[int]:
        """As `bedplate.skins.nearest.nearest`, k of them."""
        return nearest(self.vectors, query_D, self.k)

    def demonstrations(self, query_D: np.ndarray) -> tuple[Demonstration, ...]:
        """What is shown for a call whose inputs have this vector, in the order of the prompt."""
        indices = self.nearest(query_D)
        return tuple(self.rows[i] for i in (indices if self.order == "nearest_first" else indices[::-1]))

    def files(self) -> dict[str, bytes]:
        """File name → content of `index/`."""
        lines = [json.dumps({"inputs": dict(r.inputs), "answer": r.answer}, ensure_ascii=False) for r in self.rows]
        return {VECTORS_FILE: vector_bytes(self.vectors), ROWS_FILE: "".join(line + "\n" for line in lines).encode()}


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


def text_of(inputs: Values, names: Sequence[str]) -> str:
    """What is embedded: all inputs, one a line, in the skin's order."""
    return "\n".join(as_text(inputs[name]) for name in names)
