"""Texts as they are named in a run file: read, cut where that is asked for, each under its source's name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_bytes, sha256_json
from bedplate.data.documents import Document, read_documents, read_whole_documents
from bedplate.data.stdlib import LICENCE, read_modules
from bedplate.pretraining.runfile.file import STDLIB, TextsPart


@dataclass(frozen=True)
class SourceText:
    """One source's documents. sha256: of what was read."""

    name: str
    documents: tuple[Document, ...]
    sha256: str
    licence: str | None
    general: bool
    tokens: int | None

    @property
    def bytes(self) -> int:
        return sum(len(document.text.encode()) for document in self.documents)


def read_source(source: TextsPart, directory: Path) -> SourceText:
    """Reads a source of the run file. DataError for what cannot be read or holds no text; HubError for what cannot be
    pulled."""
    licence = source.licence
    if source.source == STDLIB:
        documents = tuple(Document(name, text) for name, text in read_modules() if text.strip())
        licence = licence or LICENCE
        digest = sha256_json([[document.id, sha256_bytes(document.text.encode())] for document in documents])
    elif _is_text(source, directory):
        read = read_whole_documents(source.source, directory)
        documents, digest = read.documents, read.sha256
    else:
        read = read_documents(source.source, directory, column=source.column)
        documents, digest = read.documents, read.sha256
    if source.lines is not None:
        documents = tuple(part for document in documents for part in _parts(document, source.lines))
    if not documents:
        raise DataError(f"data source {source.name!r} ({source.source}): it holds no text")
    named = tuple(Document(f"{source.name}:{document.id}", document.text) for document in documents)
    return SourceText(source.name, named, digest, licence, source.general, source.tokens)


def _is_text(source: TextsPart, directory: Path) -> bool:
    """Whether rows of one document belong together: only where nothing else is said of the column."""
    return source.column == "text" and not (directory / Path(source.source).expanduser()).is_dir()


def _parts(document: Document, lines: int) -> Iterator[Document]:
    text_lines = document.text.splitlines(keepends=True)
    for number, start in enumerate(range(0, len(text_lines), lines), start=1):
        text = "".join(text_lines[start : start + lines])
        if text.strip():
            yield Document(f"{document.id}#{number}", text)
