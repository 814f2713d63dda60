"""Column profiles of a file of rows: value types, distinct values, lengths."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bedplate.data.rows import SourceRows, blank, label_text

_GROUPS = ("group", "user", "customer", "author", "document", "doc", "thread", "conversation", "session", "source")
ColumnType = Literal["text", "number", "list", "object", "boolean", "mixed", "empty"]


@dataclass(frozen=True)
class Profile:
    """One column. column_type: of the values that are not empty; a number may stand as text, as it does in .csv files.
    rows: that have the column and a value in it; empty: that have none. distinct: different values. commonest: the most
    frequent values with their counts. characters: the median, 95th percentile and maximum of the values' lengths."""

    name: str
    column_type: ColumnType
    as_text: bool
    rows: int
    empty: int
    distinct: int
    commonest: tuple[tuple[str, int], ...]
    characters: tuple[int, int, int]

    @property
    def repeats(self) -> float:
        """Rows for each different value."""
        return self.rows / self.distinct if self.distinct else 0.0


def profiles(rows: SourceRows, commonest: int = 200) -> dict[str, Profile]:
    """Every column of the rows, by name. commonest: how many of its most frequent values are kept."""
    return {name: _profile(name, [row.get(name) for row in rows.rows], commonest) for name in rows.columns}


def is_group_name(name: str) -> bool:
    """Whether a column's name says that it holds what rows belong to, such as customerId or thread."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return (words[-1] == "id" and len(words) > 1) or bool({*words} & {*_GROUPS})


def _profile(name: str, values: Sequence[Any], commonest: int) -> Profile:
    present = [value for value in values if not blank(value)]
    labels = [label_text(value) for value in present]
    shown = [label if isinstance(label, str) else json.dumps(label, ensure_ascii=False) for label in labels]
    value_types: set[ColumnType] = {_value_type(value) for value in present}
    column_type: ColumnType = "mixed" if value_types else "empty"
    if len(value_types) == 1:
        (column_type,) = value_types
    if column_type == "text" and all(_is_number(text) for text in shown):
        column_type = "number"
    counts = Counter(shown)
    lengths = sorted(map(len, shown)) or [0]
    as_text, empty = all(isinstance(value, str) for value in present), len(values) - len(present)
    frequent = tuple(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:commonest])
    sizes = round(statistics.median(lengths)), lengths[int(0.95 * (len(lengths) - 1))], lengths[-1]
    return Profile(name, column_type, as_text, len(present), empty, len(counts), frequent, sizes)


def _value_type(value: Any) -> ColumnType:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, list):
        return "list"
    return "object" if isinstance(value, dict) else "text"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
