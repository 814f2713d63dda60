"""Loss per token on general text: what a base that was trained further has forgotten of language at large."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bedplate.core.errors import DataError
from bedplate.core.progress import Progress
from bedplate.data.sources import read_rows
from bedplate.inference.engine.requests import Score, Scores
from bedplate.inference.predict.local import LocalModel

BATCH = 16
WINDOW = 256


@dataclass(frozen=True)
class Document:
    """A text that stands for itself: what is alike inside it is not alike outside."""

    id: str
    text: str


@dataclass(frozen=True)
class Documents:
    """Documents to read, whole, and where they come from."""

    documents: tuple[Document, ...]
    source: str
    sha256: str


@dataclass(frozen=True)
class Loss:
    """One document: the sum of the negative log-likelihoods (natural log) of its tokens, and how many were scored."""

    document: str
    total: float
    tokens: int


def read_documents(source: str, directory: Path, limit: int | None = None) -> Documents:
    """Documents of a data set or a .jsonl, .csv or .tsv file: column `text`; rows with one `document` belong together,
    in the order of their `sentence` or in the file's. Documents stand in the natural order of their names ("line 2"
    before "line 10"). limit: only the first so many in that order. DataError where there is no column `text`."""
    rows = read_rows(source, directory)
    if "text" not in rows.columns:
        raise DataError(f"{rows.path}: no column 'text'; the columns are {', '.join(rows.columns)}")
    parts: dict[str, list[tuple[int, str]]] = {}
    for row, line in zip(rows.rows, rows.lines, strict=True):
        value: Any = row.get("text", "")
        if not isinstance(value, str):
            raise DataError(f"{rows.path}, line {line}: `text` holds {value!r}, which is not text")
        if value.strip():
            place = int(row["sentence"]) if str(row.get("sentence", "")).isdigit() else line
            parts.setdefault(str(row.get("document", f"line {line}")), []).append((place, value.strip()))
    names = sorted(parts, key=_natural)[:limit]
    found = tuple(Document(name, " ".join(text for _, text in sorted(parts[name]))) for name in names)
    return Documents(found, source, rows.sha256)


def _natural(name: str) -> tuple[list[int | str], str]:
    """Numbers in a name count as numbers; what is then alike is told apart by the name itself."""
    pieces = re.split(r"([0-9]+)", name)  # texts and numbers by turns
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)], name


def losses(model: LocalModel, documents: Sequence[Document], description: str = "general text") -> list[Loss]:
    """Each document's loss, in order. A document longer than a window is read in windows that do not overlap; where the
    base has no BOS, the first token of a window is only looked at."""
    start = model.tokenizer.prompt_start
    window = min(WINDOW, model.base.spec.context_length) - len(start)
    requests: list[Score] = []
    owners: list[int] = []
    for number, document in enumerate(documents):
        ids = tuple(model.tokenizer.encode(document.text, parse_special=False))
        for place in range(0, len(ids), window):
            part = (*start, *ids[place : place + window])
            seen = max(1, len(start))
            if len(part) > seen:
                requests.append(Score(part[:seen], (part[seen:],)))
                owners.append(number)
    totals, counts = [0.0] * len(documents), [0] * len(documents)
    with Progress(description, len(requests)) as bar:
        for place in range(0, len(requests), BATCH):
            batch = requests[place : place + BATCH]
            for number, result in zip(owners[place : place + BATCH], model.engine.run(batch), strict=True):
                found = cast(Scores, result)
                totals[number] -= found.totals[0]
                counts[number] += found.token_counts[0]
            bar.advance(len(batch))
    return [Loss(d.id, total, count) for d, total, count in zip(documents, totals, counts, strict=True)]
