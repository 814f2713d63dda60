"""Retrieval tasks: documents and queries are embedded alike, and each query's documents ranked by cosine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from bedplate.core.config import Strict
from bedplate.core.errors import DataError, RequestError, UnknownDataError
from bedplate.core.progress import Progress
from bedplate.core.values import Values, as_text
from bedplate.data.sources import read_rows

DEPTH = 100
"""Ranked ids that are kept of each query."""
_AT_ONCE = 256


class RankedDocuments(Strict):
    """What is searched: a data set of the catalogue, or a .jsonl, .csv, .tsv or .parquet file. `column` holds the text,
    `id` what a target calls it."""

    source: Annotated[str, Field(min_length=1)]
    column: str = "text"
    id: str = "id"

    def read(self, relative_to: Path) -> tuple[dict[str, str], str]:
        """Texts by id, and the file's sha256. DataError for a row without a text or with an id that is taken."""
        rows = read_rows(self.source, relative_to)
        for column in (self.column, self.id):
            if column not in rows.columns:
                raise UnknownDataError(f"{rows.path}: no column {column!r}; the columns are {', '.join(rows.columns)}")
        texts: dict[str, str] = {}
        for row, line in zip(rows.rows, rows.lines, strict=True):
            name, text = as_id(row.get(self.id)), row.get(self.column)
            if name is None or not isinstance(text, str) or not text.strip():
                missing = f"the id ({self.id})" if name is None else f"the text ({self.column})"
                raise DataError(f"{rows.location(line)}: {missing} of the document is missing")
            if name in texts:
                raise DataError(f"{rows.location(line)}: the id {name!r} is on more than one document")
            texts[name] = text
        return texts, rows.sha256


def as_id(value: Any) -> str | None:
    """A document's name as a text; None where the value is none."""
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        return None
    return str(value).strip()


def relevant(value: Any, separator: str | None, documents: Mapping[str, str]) -> str:
    """A target as a JSON list of ids: one id, a list of them, or a text of several. RequestError for an unknown one."""
    if isinstance(value, str) and separator is not None:
        value = [part for part in value.split(separator) if part.strip()]
    names = [as_id(document_id) for document_id in (value if isinstance(value, list) else [value])]
    if not names:
        raise RequestError("names no relevant document; a query needs at least one")
    for name in names:
        if name is None or name not in documents:
            raise RequestError(f"names the document {name!r}, which is not among the documents")
    return json.dumps(sorted({str(name) for name in names}), ensure_ascii=False)


def ranked(text: str) -> str:
    """A prediction as a JSON list of ids, best first. RequestError for anything else, and where an id stands twice."""
    try:
        names: Any = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RequestError(f"the output is not a JSON list of document ids: {text[:80]!r}")
    if len(set(names)) < len(names):
        raise RequestError(f"the output ranks a document more than once: {text[:80]!r}")
    return json.dumps(names, ensure_ascii=False)


@runtime_checkable
class Embeds(Protocol):
    """Anything that gives texts vectors: a base, an embedding skin."""

    def embed(self, rows: Sequence[str], /) -> Any: ...


class Ranker:
    """Answers a query with the ids of the documents nearest to it, as a JSON list, best first (ties as in the file)."""

    def __init__(self, model: Embeds, documents: Mapping[str, str]) -> None:
        self._model, self._names = model, list(documents)
        self._vectors_DE = self._embed(list(documents.values()), "embedding documents")

    def predict(self, rows: Sequence[Values]) -> list[str]:
        """One list for each row; a row has one input."""
        vectors_QE = self._embed([as_text(value) for row in rows for value in row.values()], "embedding queries")
        rankings: list[str] = []
        for query_E in vectors_QE:
            order = np.argsort(-(self._vectors_DE @ query_E), kind="stable")[:DEPTH]
            rankings.append(json.dumps([self._names[i] for i in order], ensure_ascii=False))
        return rankings

    def _embed(self, texts: Sequence[str], description: str) -> NDArray[np.float32]:
        """Vectors of unit length [N, E]."""
        parts: list[NDArray[np.float32]] = []
        with Progress(description, len(texts), "texts", quiet=len(texts) < _AT_ONCE) as bar:
            for start in range(0, len(texts), _AT_ONCE):
                batch = texts[start : start + _AT_ONCE]
                parts.append(np.asarray(self._model.embed(batch), dtype=np.float32))
                bar.advance(len(batch))
        vectors = np.concatenate(parts)
        lengths = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return (vectors / lengths).astype(np.float32, copy=False)
