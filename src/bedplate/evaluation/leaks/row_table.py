"""The rows of a task as a table for group detection: texts, targets, declared groups and the values of other columns.

Texts become vectors of their words: TF-IDF hashed into few numbers with signs (Weinberger et al. 2009,
https://arxiv.org/abs/0902.2206), so that products of two are, on average, those of their words. Words of one text alone
are left out. Near-copies are found by MinHash over three words in a row, with numbers kept apart: `row 17` is no copy
of `row 18`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bedplate.core.statistics.clusters import group_codes
from bedplate.data.corpus.recipe import MinHashSettings
from bedplate.data.corpus.repeated.minhash import MinHash, clusters
from bedplate.data.corpus.repeated.words import word_hashes
from bedplate.data.rows import Row, SourceRows, blank
from bedplate.data.splits import linked, normalise
from bedplate.evaluation.task import Task

SOURCE = "source"
MOST_LABELS = 200


SIZE = 64
LEAST_WORDS = 8
"""Texts of fewer words are like another too easily."""
NEAR_COPY_SETTINGS = MinHashSettings(words=3, bands=14, rows=10)
"""Texts that share 8 of 10 shingles are found with a chance of 0.8, those that share half with one of 0.01."""
_DIGITS = str.maketrans("0123456789", "abcdefghij")


def word_vectors(texts: Sequence[str]) -> NDArray[np.float64]:
    """[n, SIZE], of length 1, or 0 for a text that has no word in common with any other."""
    word_ids = [np.unique(_words(text)) for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(ids) for ids in word_ids])
    words, places, counts = np.unique(np.concatenate(word_ids), return_inverse=True, return_counts=True)
    weights = np.where(counts > 1, np.log(len(texts) / counts), 0.0)[places]
    signs = np.where(words >> np.uint64(40) & np.uint64(1), 1.0, -1.0)[places]
    vectors = np.zeros((len(texts), SIZE))
    np.add.at(vectors, (rows, (words % np.uint64(SIZE)).astype(np.int64)[places]), weights * signs)
    length = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    return vectors / np.maximum(length, 1e-12)


def near_copies(texts: Sequence[str]) -> NDArray[np.int64]:
    """For each text [n] the first that is nearly the same, directly or through others; itself where there is none."""
    hashes = MinHash(NEAR_COPY_SETTINGS)
    bands = np.zeros((len(texts), NEAR_COPY_SETTINGS.bands), np.uint64)
    has = np.zeros(len(texts), np.bool_)
    for row, text in enumerate(texts):
        masked = text.translate(_DIGITS)
        text_bands = hashes.bands(masked) if len(word_hashes(masked)) >= LEAST_WORDS else None
        if text_bands is not None:
            bands[row], has[row] = text_bands, True
    return clusters(bands, has)


def _words(text: str) -> NDArray[np.uint64]:
    return word_hashes(text.translate(_DIGITS))


@dataclass(frozen=True)
class Table:
    """Rows, one of each text: for each its inputs as one text, its target as text, its declared group, and the values
    of the columns that are nothing to the task (None where there is none, or no text, whole number or true or
    false)."""

    texts: tuple[str, ...]
    targets: tuple[str, ...]
    groups: tuple[str, ...]
    columns: Mapping[str, tuple[str | None, ...]]

    @property
    def rows(self) -> int:
        return len(self.texts)

    @cached_property
    def units(self) -> Table:
        """One row of each declared group, in the order of the rows."""
        order = np.random.Generator(np.random.PCG64(0)).permutation(self.rows)
        first: dict[str, int] = {}
        for row in order.tolist():
            first.setdefault(self.groups[row], row)
        unit_rows = sorted(first.values())
        return Table(
            tuple(self.texts[row] for row in unit_rows),
            tuple(self.targets[row] for row in unit_rows),
            tuple(self.groups[row] for row in unit_rows),
            {name: tuple(values[row] for row in unit_rows) for name, values in self.columns.items()},
        )

    def target_vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """[rows, d]: labels as 0 and 1; the words of targets where more than MOST_LABELS of them differ, or most do."""
        targets = [self.targets[row] for row in rows.tolist()]
        codes, count = group_codes(targets)
        return np.eye(count)[codes] if count <= min(MOST_LABELS, len(targets) / 2) else word_vectors(targets)


def table_of(task: Task, sources: Mapping[str, SourceRows]) -> Table:
    """The rows of all sources, as they come, without empty ones and copies of a text. Nothing is checked here."""
    used_columns = {spec.column for spec in task.inputs.values()} | {task.data.target, *task.data.group_columns, "id"}
    used_columns |= {task.data.second_label} if task.data.second_label else set[str]()
    used_columns |= {*task.data.sliced, *([task.data.current.column] if task.data.current else [])}
    names = dict.fromkeys(name for rows in sources.values() for name in rows.columns if name not in used_columns)
    several = len(sources) > 1 and task.data.split.files is None and SOURCE not in names
    texts: dict[str, str] = {}
    source_rows: list[tuple[str, Row]] = []
    for rows in sources.values():
        for row in rows.rows:
            text = "\n".join(str(row.get(spec.column) or "") for spec in task.inputs.values())
            if text.strip() and (normalized := normalise(text)) not in texts:
                texts[normalized] = text
                source_rows.append((rows.source, row))
    columns = {name: tuple(_value(row.get(name)) for _, row in source_rows) for name in names}
    if several:
        columns[SOURCE] = tuple(source for source, _ in source_rows)
    return Table(
        tuple(texts.values()),
        tuple(_target(row.get(task.data.target)) for _, row in source_rows),
        tuple(_groups(task.data.group_columns, [row for _, row in source_rows])),
        columns,
    )


def _groups(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    if not columns:
        return [str(number) for number in range(len(rows))]
    row_links = [[f"{name}={row[name]}" for name in columns if not blank(row.get(name))] for row in rows]
    return linked([values or [str(number)] for number, values in enumerate(row_links)])


def _value(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    return str(value) if isinstance(value, bool | int) else None


def _target(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
