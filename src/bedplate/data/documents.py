"""Unlabelled texts as documents: rows of a data set or file, a text file, or a directory of text files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bedplate.core.errors import DataError, UnknownDataError
from bedplate.core.files import check_folders, read_text, sha256_bytes, sha256_json
from bedplate.data.sources import SourceRows, read_rows

TEXT_SETS = frozenset({"shakespeare"})
"""Items of the catalogue that are directories of texts."""
TEXT_FILES = (".txt", ".md", ".rst")
RAW_TEXT_FILES = (".txt", ".md")
"""What a directory of raw text is read for."""


@dataclass(frozen=True)
class Document:
    """A text that stands for itself: what is alike inside it is not alike outside. id: its file, or what its row calls
    it."""

    id: str
    text: str


@dataclass(frozen=True)
class Documents:
    """Documents that hold text, whole. sha256: of what was read; empty: how many texts held nothing; repeated: how many
    copies were left out."""

    documents: tuple[Document, ...]
    source: str
    sha256: str
    empty: int = 0
    repeated: int = 0


def read_documents(
    source: str, relative_to: Path, *, column: str = "text", id: str | None = None, limit: int | None = None
) -> Documents:
    """The documents of a text file, or all of a directory or of a set of texts of the catalogue; or of a data set or a
    .jsonl, .csv, .tsv or .parquet file, where each row is one, its text in `column`. id: the column of its name, else
    its line. limit: only the first so many. DataError for what cannot be read, a column that is missing, or no text at
    all."""
    place = _place(source, relative_to)
    if place.is_dir() or place.suffix.lower() in TEXT_FILES:
        texts = _files(place, TEXT_FILES)
        digest = sha256_json([[name, sha256_bytes(text.encode())] for name, text in texts])
    else:
        rows = read_rows(source, relative_to)
        texts, digest = [(name, text) for name, _, text in _rows(rows, column, id)], rows.sha256
    return _documents(texts, source, digest, limit)


def read_whole_documents(source: str, relative_to: Path, limit: int | None = None) -> Documents:
    """As `read_documents`, but rows with one `document` are one text, in the order of their `sentence` or else in the
    file's, and stand in the natural order of their names ("line 2" before "line 10"). Files are .txt and .md; their
    digest is the one that runs on raw text have kept since there are such."""
    place = _place(source, relative_to)
    if place.is_dir() or place.suffix.lower() in RAW_TEXT_FILES:
        texts = [(name, text) for name, text in _files(place, RAW_TEXT_FILES) if text.strip()]
        whole = "".join(f"{name}\0{sha256_bytes(text.encode())}\n" for name, text in texts)
        return _documents(texts, source, sha256_bytes(whole.encode()), limit)
    rows = read_rows(source, relative_to)
    parts: dict[str, list[tuple[int, str]]] = {}
    for name, number, text in _rows(rows, "text", "document" if "document" in rows.columns else None, ""):
        if text.strip():
            parts.setdefault(name, []).append((number, text.strip()))
    texts = [(name, " ".join(text for _, text in sorted(parts[name]))) for name in sorted(parts, key=_natural)]
    return _documents(texts, source, rows.sha256, limit)


def _place(source: str, relative_to: Path) -> Path:
    if source in TEXT_SETS:
        from bedplate.hub.pull import pull

        return pull(source, quiet=True).path
    return relative_to / Path(source).expanduser()


def _documents(texts: Iterable[tuple[str, str]], source: str, digest: str, limit: int | None) -> Documents:
    read = [Document(name, text) for name, text in texts]
    documents = tuple(document for document in read if document.text.strip())
    if not documents:
        raise DataError(f"{source}: no document holds any text")
    return Documents(documents[:limit], source, digest, len(read) - len(documents))


def _files(place: Path, suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Name → text of a file, or of all such files below a directory, without a byte order mark. DataError for a folder
    in it that may not be read."""
    paths, root = [place], place.parent
    if place.is_dir():
        check_folders(place)
        paths, root = sorted(p for p in place.rglob("*") if p.suffix.lower() in suffixes and p.is_file()), place
        if not paths:
            raise DataError(f"{place} holds no documents: it holds no text in files that end in {', '.join(suffixes)}")
    return [(path.relative_to(root).as_posix(), read_text(path).removeprefix("\ufeff")) for path in paths]


def _rows(rows: SourceRows, column: str, id: str | None, missing: str | None = None) -> Iterator[tuple[str, int, str]]:
    """Each row's name, its place among those of one name, and its text; missing: of a row without one."""
    for name in filter(None, (column, id)):
        if name not in rows.columns:
            names = ", ".join(rows.columns)
            raise UnknownDataError(f"{rows.path}: no column {name!r} for documents; the columns are {names}")
    for row, line in zip(rows.rows, rows.lines, strict=True):
        text = row.get(column, missing)
        if not isinstance(text, str):
            raise DataError(f"{rows.location(line)}: the document in {column!r} is not a text but {text!r}")
        number = int(row["sentence"]) if str(row.get("sentence", "")).isdigit() else line
        yield str(row.get(id or "", rows.name(line))), number, text


def _natural(name: str) -> tuple[list[int | str], str]:
    """Numbers in a name count as numbers; what is then alike is told apart by the name itself."""
    pieces = re.split(r"([0-9]+)", name)  # texts and numbers by turns
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)], name
