"""The documents of a task: what is known, as texts, to be looked up when a call comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bedplate.core.config import Strict
from bedplate.core.progress import progress
from bedplate.data.documents import Document, Documents, read_documents
from bedplate.text.chunks import pieces

if TYPE_CHECKING:
    from bedplate.skins.passages import Chunk


class DocumentsSpec(Strict):
    """Where documents are. source: a data set of the catalogue, a .jsonl, .csv, .tsv or .parquet file (`column` is a
    document's text, `id` what it is called), a .txt, .md or .rst file, or a directory of such, all below it.
    chunk_tokens: passage sizes to try, in tokens of the base; overlap: the share of a passage that the one before it
    has as well; k: how many passages to try in a prompt."""

    source: Annotated[str, Field(min_length=1)]
    column: str = "text"
    id: str | None = None
    chunk_tokens: Annotated[tuple[Annotated[int, Field(ge=8)], ...], Field(min_length=1, max_length=4)] = (96, 192)
    overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    k: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=4)] = (3, 1)


def task_documents(spec: DocumentsSpec, relative_to: Path) -> Documents:
    """The documents, each text once. DataError for what cannot be read, a column that is missing, or none at all."""
    documents = read_documents(spec.source, relative_to, column=spec.column, id=spec.id)
    by_text: dict[str, Document] = {}
    for document in documents.documents:
        by_text.setdefault(document.text, document)
    return replace(documents, documents=tuple(by_text.values()), repeated=len(documents.documents) - len(by_text))


def cut(documents: Sequence[Document], size: int, overlap: float, count: Callable[[str], int]) -> list[Chunk]:
    """The documents in passages of at most `size` tokens, the white space around them left off."""
    from bedplate.skins.passages import Chunk  # a task file is read without torch

    chunks: list[Chunk] = []
    for document in progress(documents, f"passages of {size} tokens", unit="documents"):
        for piece in pieces(document.text, size, int(size * overlap), count):
            text = document.text[piece.start : piece.end]
            inner = text.strip()
            if inner:
                chunks.append(Chunk(document.id, piece.start + text.index(inner), inner))
    return chunks
