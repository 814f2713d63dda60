"""Fill the page of families with what `bedplate families --check --json` printed.

usage: docs/parity.py READINGS        READINGS is the file that its output was written to
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bedplate.core.processor import processor_name

PAGE = Path(__file__).parent / "families.md"
BEGIN, END = "<!-- parity -->", "<!-- /parity -->"
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "outputs": ("logits", "states"),
    "loss": ("loss",),
    "gradients": ("gradients",),
    "padded or packed": ("rows padded right", "rows padded left", "sources padded right", "packed rows"),
    "32 tokens": ("32 generated tokens",),
    "export": ("exported weights", "base read again"),
}
"""Of the table, and which comparisons stand in each."""


def table(readings: Sequence[Mapping[str, Any]]) -> str:
    """A row for each family: the largest differences in float32 and float64. KeyError for a comparison that no column
    has; ValueError for one that does not hold."""
    column_of = {what: column for column, names in COLUMNS.items() for what in names}
    found: dict[str, dict[str, dict[str, list[Mapping[str, Any]]]]] = {}
    for one in readings:
        if not one["holds"]:
            raise ValueError(f"{one['what']} of {one['family']} differs: {one['difference']:.2g}")
        columns = found.setdefault(one["family"], {name: {} for name in COLUMNS})
        columns[column_of[one["what"]]].setdefault(one["dtype"], []).append(one)
    lines = [("family", *COLUMNS, "comparisons"), ("---",) * (len(COLUMNS) + 2)]
    for family, columns in found.items():
        count = sum(len(alike) for each in columns.values() for alike in each.values())
        lines.append((f"`{family}`", *map(_cell, columns.values()), str(count)))
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def _cell(by_dtype: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The largest of each dtype, or that all are equal where nothing less holds."""
    alike = [one for each in by_dtype.values() for one in each]
    if alike and all(one["bound"] == 0 for one in alike):
        return "equal"
    return "; ".join(f"{max(one['difference'] for one in by_dtype[dtype]):.1g}" for dtype in sorted(by_dtype))


def main() -> None:
    readings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    when = datetime.date.fromtimestamp(Path(sys.argv[1]).stat().st_mtime).isoformat()
    said = (
        f"Largest differences in float32; float64, as measured on {when} on {processor_name()}, with torch "
        f"{version('torch').partition('+')[0]} and transformers {version('transformers')}:"
    )
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{said}\n\n{table(readings)}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(f"{len(readings)} comparisons written to {PAGE}")


if __name__ == "__main__":
    main()
