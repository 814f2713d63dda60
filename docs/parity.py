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
    column_of = {comparison: column for column, names in COLUMNS.items() for comparison in names}
    families: dict[str, dict[str, dict[str, list[Mapping[str, Any]]]]] = {}
    for reading in readings:
        if not reading["holds"]:
            raise ValueError(f"{reading['what']} of {reading['family']} differs: {reading['difference']:.2g}")
        columns = families.setdefault(reading["family"], {name: {} for name in COLUMNS})
        columns[column_of[reading["what"]]].setdefault(reading["dtype"], []).append(reading)
    lines = [("family", *COLUMNS, "comparisons"), ("---",) * (len(COLUMNS) + 2)]
    for family, columns in families.items():
        count = sum(len(group) for by_dtype in columns.values() for group in by_dtype.values())
        lines.append((f"`{family}`", *map(_cell, columns.values()), str(count)))
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def _cell(by_dtype: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The largest of each dtype, or that all are equal where nothing less holds."""
    readings = [reading for group in by_dtype.values() for reading in group]
    if readings and all(reading["bound"] == 0 for reading in readings):
        return "equal"
    return "; ".join(f"{max(reading['difference'] for reading in by_dtype[dtype]):.1g}" for dtype in sorted(by_dtype))


def main() -> None:
    readings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    measured_on = datetime.date.fromtimestamp(Path(sys.argv[1]).stat().st_mtime).isoformat()
    heading = (
        f"Largest differences in float32; float64, as measured on {measured_on} on {processor_name()}, with torch "
        f"{version('torch').partition('+')[0]} and transformers {version('transformers')}:"
    )
    before, tail = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{heading}\n\n{table(readings)}\n{END}{tail.split(END)[1]}", encoding="utf-8")
    print(f"{len(readings)} comparisons written to {PAGE}")


if __name__ == "__main__":
    main()
