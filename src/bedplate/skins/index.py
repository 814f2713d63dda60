"""`index/` of a skin, and what `skin.json` says of it: rows that demonstrate, or passages of documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bedplate.skins.manifest import KnnFields, RetrievalFields
from bedplate.skins.nearest import VECTORS_FILE, read_vectors
from bedplate.skins.neighbours import ROWS_FILE, Neighbours, read_pool_rows
from bedplate.skins.passages import PASSAGES_FILE, Passages, read_chunks
from bedplate.skins.skin import Skin


def index_of(skin: Skin) -> dict[str, bytes]:
    """File name → content; empty for a skin without."""
    index = skin.index
    return {} if index is None else index.files()


def knn_fields(skin: Skin) -> KnnFields | None:
    pool = skin.neighbours
    if pool is None:
        return None
    return KnnFields(
        k=pool.k, order=pool.order, pooling=pool.pooling, depth=pool.depth, embedded_with=skin.embedded_with
    )


def retrieval_fields(skin: Skin) -> RetrievalFields | None:
    index = skin.passages
    if index is None:
        return None
    return RetrievalFields(k=index.k, pooling=index.pooling, depth=index.depth, embedded_with=skin.embedded_with)


def read_neighbours(directory: Path, fields: KnnFields | None, contents: Mapping[str, bytes]) -> Neighbours | None:
    """The pool of a skin of kind knn. SkinError."""
    if fields is None:
        return None
    vectors = read_vectors(directory / VECTORS_FILE, contents[VECTORS_FILE])
    rows = read_pool_rows(directory / ROWS_FILE, contents[ROWS_FILE])
    return Neighbours(vectors, rows, fields.k, fields.order, fields.pooling, fields.depth)


def read_passages(directory: Path, fields: RetrievalFields | None, contents: Mapping[str, bytes]) -> Passages | None:
    """The passages of a skin of kind retrieval. SkinError."""
    if fields is None:
        return None
    vectors = read_vectors(directory / VECTORS_FILE, contents[VECTORS_FILE])
    chunks = read_chunks(directory / PASSAGES_FILE, contents[PASSAGES_FILE])
    return Passages(vectors, chunks, fields.k, fields.pooling, fields.depth)
