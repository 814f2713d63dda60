"""The documents of a task: what is known, as texts, to be looked up when a call comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from bedplate.core.config import Strict
from bedplate.core.errors import DataError
from bedplate.core.files import read_text, sha256_bytes, sha256_json
from bedplate.core.progress import progress
from bedplate.data.sources import read_rows
from bedplate.skins.passages import Chunk
from bedplate.text.chunks import pieces

TEXT_SUFFIXES = (".txt", ".md", ".rst")


class DocumentsSpec(Strict):
    """Where documents are. source: a data set of the catalogue, a .jsonl, .csv or .tsv file (`column` is a document's
    text, `id` what it is called), a .txt, .md or .rst file, or a directory of such, all below it. chunk_tokens: passage
    sizes to try, in tokens of the base; overlap: the share of a passage that the one before it has as well; k: how many
    passages to try in a prompt."""

    source: Annotated[str, Field(min_length=1)]
    column: str = "text"
    id: str | None = None
    chunk_tokens: Annotated[tuple[Annotated[int, Field(ge=8)], ...], Field(min_length=1, max_length=4)] = (96, 192)
    overlap: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    k: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=4)] = (3, 1)


@dataclass(frozen=True)
class Document:
    """One document. name: what an answer cites it as."""

    name: str
    text: str


@dataclass(frozen=True)
class Documents:
    """All documents. sha256: of what was read; repeated, empty: how many texts stood there before or held nothing."""

    documents: tuple[Document, ...]
    sha256: str
    repeated: int
    empty: int


def read_documents(spec: DocumentsSpec, relative_to: Path) -> Documents:
    """The documents, each text once. DataError for what cannot be read, a column that is missing, or none at all."""
    place = (relative_to / Path(spec.source).expanduser()).resolve()
    texts, digest = _files(place) if _is_text(place) else _rows(spec, relative_to)
    seen: dict[str, Document] = {}
    empty = 0
    for name, text in texts:
        if text.strip():
            seen.setdefault(text, Document(name, text))
        else:
            empty += 1
    if not seen:
        raise DataError(f"{spec.source}: no document holds any text")
    return Documents(tuple(seen.values()), digest, len(texts) - empty - len(seen), empty)


def cut(documents: Sequence[Document], size: int, overlap: float, count: Callable[[str], int]) -> list[Chunk]:
    """The documents in passages of at most `size` tokens, the white space around them left off."""
    found: list[Chunk] = []
    for document in progress(documents, f"passages of {size} tokens", unit="documents"):
        for piece in pieces(document.text, size, int(size * overlap), count):
            text = document.text[piece.start : piece.end]
            inner = text.strip()
            if inner:
                found.append(Chunk(document.name, piece.start + text.index(inner), inner))
    return found


def _is_text(place: Path) -> bool:
    return place.is_dir() or (place.is_file() and place.suffix.lower() in TEXT_SUFFIXES)


def _files(place: Path) -> tuple[list[tuple[str, str]], str]:
    paths = [place]
    if place.is_dir():
        paths = sorted(p for p in place.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES and p.is_file())
        if not paths:
            raise DataError(f"{place} holds no documents: files end in {', '.join(TEXT_SUFFIXES)}")
    found = [(p.name if p == place else p.relative_to(place).as_posix(), read_text(p)) for p in paths]
    return found, sha256_json([[name, sha256_bytes(text.encode())] for name, text in found])


def _rows(spec: DocumentsSpec, relative_to: Path) -> tuple[list[tuple[str, str]], str]:
    rows = read_rows(spec.source, relative_to)
    for column in filter(None, (spec.column, spec.id)):
        if column not in rows.columns:
            raise DataError(
                f"{spec.source}: there is no column {column!r} for documents; there are {', '.join(rows.columns)}"
            )
    found: list[tuple[str, str]] = []
    for row, line in zip(rows.rows, rows.lines, strict=True):
        text = row.get(spec.column)
        if not isinstance(text, str):
            raise DataError(f"{spec.source}, line {line}: the document in {spec.column!r} is not a text but {text!r}")
        found.append((f"line {line}" if spec.id is None else str(row.get(spec.id, f"line {line}")), text))
    return found, rows.sha256
