"""What a source of data gives: its rows, where each stood, what was dropped, and the hash of what was read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """What one source holds: `rows`, the file's `lines` (from 1) beside them, `counts` of what was read and dropped.

    Every row has the same `columns` in .csv and .tsv files and data sets; in .jsonl files `columns` is their union.
    """

    rows: tuple[Row, ...]
    lines: tuple[int, ...]
    columns: tuple[str, ...]
    counts: Mapping[str, int]
    sha256: str
    source: str
    path: Path
    licence: str | None = None
    notes: tuple[str, ...] = field(default=())
