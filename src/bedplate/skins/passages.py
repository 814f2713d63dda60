"""Documents in passages with their vectors: a call's prompt holds those nearest to its inputs, each with a number.

Retrieval-augmented generation: Lewis et al. (https://arxiv.org/abs/2005.11401).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bedplate.adapters.tensors import read_json_object
from bedplate.core.errors import SkinError
from bedplate.core.files import sha256_json
from bedplate.skins.nearest import INDEX_DIRECTORY, VECTORS_FILE, PoolPooling, check_vectors, nearest, vector_bytes
from bedplate.skins.prompt import Passage

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

    @property
    def size(self) -> int:
        """D, the features of one vector."""
        return self.vectors.shape[1]

    @cached_property
    def digest(self) -> str:
        """Names the chunks and their order."""
        return sha256_json([[chunk.document, chunk.start, chunk.text] for chunk in self.chunks])

    def retrieve(self, query_D: np.ndarray) -> tuple[Passage, ...]:
        """What goes into the prompt of a call whose inputs have this vector, numbered from 1. RequestError for a query
        of another size, or that is not finite."""
        indices = nearest(self.vectors, query_D, self.k)
        return tuple(
            Passage(number, self.chunks[i].text, self.chunks[i].document, self.chunks[i].start)
            for number, i in enumerate(indices, start=1)
        )

    def files(self) -> dict[str, bytes]:
        """File name → content of `index/`."""
        lines = [
            json.dumps({"document": c.document, "start": c.start, "text": c.text}, ensure_ascii=False)
            for c in self.chunks
        ]
        return {
            VECTORS_FILE: vector_bytes(self.vectors),
            PASSAGES_FILE: "".join(line + "\n" for line in lines).encode(),
        }


def read_chunks(path: Path, content: bytes) -> tuple[Chunk, ...]:
    """The rows of `index/passages.jsonl`. SkinError naming the line."""
    chunks: list[Chunk] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line:
            continue
        row = read_json_object(path, line)
        document, start, text = row.get("document"), row.get("start"), row.get("text")
        if len(row) != 3 or type(document) is not str or type(start) is not int or type(text) is not str or start < 0:
            raise SkinError(f"{path}, line {number}: a passage is its document, its start there and its text")
        chunks.append(Chunk(document, start, text))
    return tuple(chunks)
