"""Texts as they are named in a run file: read, cut where that is asked for, each under its source's name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.errors import DataError
from bedplate.core.files import sha256_bytes, sha256_json
from bedplate.data.documents import Document, read_documents, read_whole_documents
from bedplate.data.stdlib import LICENCE, read_modules
from bedplate.pretraining.runfile.file import STDLIB, TextSource


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
        return sum(len(one.text.encode()) for one in self.documents)


def read_source(source: TextSource, directory: Path) -> SourceText:
    """Reads a source of the run file. DataError for what cannot be read or holds no text; HubError for what cannot be
    pulled."""
    licence = source.licence
    if source.source == STDLIB:
        documents = tuple(Document(name, text) for name, text in read_modules() if text.strip())
        licence = licence or LICENCE
        digest = sha256_json([[one.id, sha256_bytes(one.text.encode())] for one in documents])
    elif _is_text(source, directory):
        read = read_whole_documents(source.source, directory)
        documents, digest = read.documents, read.sha256
    else:
        read = read_documents(source.source, directory, column=source.column)
        documents, digest = read.documents, read.sha256
    if source.lines is not None:
        documents = tuple(part for one in documents for part in _parts(one, source.lines))
    if not documents:
        raise DataError(f"data source {source.name!r} ({source.source}): it holds no text")
    named = tuple(Document(f"{source.name}:{one.id}", one.text) for one in documents)
    return SourceText(source.name, named, digest, licence, source.general, source.tokens)


def _is_text(source: TextSource, directory: Path) -> bool:
    """Whether rows of one document belong together: only where nothing else is said of the column."""
    return source.column == "text" and not (directory / Path(source.source).expanduser()).is_dir()


def _parts(document: Document, lines: int) -> Iterator[Document]:
    every = document.text.splitlines(keepends=True)
    for number, start in enumerate(range(0, len(every), lines), start=1):
        text = "".join(every[start : start + lines])
        if text.strip():
            yield Document(f"{document.id}#{number}", text)
