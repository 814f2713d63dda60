"""Tables for people, in which no number, id or name is ever cut.

A table that is wider than the terminal first wraps its columns of prose between words, then leaves out the columns that
are marked as extra and says which, and where that is not enough is printed as one block of lines for each row. Without
a terminal it is as wide as it has to be. (Tables of rich cut cells where these guarantees need more room than there
is.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from bedplate.core.progress import console

_GAP = "  "
MIN_PROSE_WIDTH = 24
"""A column of prose is not made narrower than this many characters."""
PIPE_PROSE_WIDTH = 60
"""How wide prose is where there is no terminal."""

_all_columns: ContextVar[bool] = ContextVar("wide", default=False)


@dataclass(frozen=True)
class Column:
    """A column by its heading. right: numbers. prose: sentences, which may be wrapped between words. extra: left out
    first where the terminal is narrow."""

    name: str
    right: bool = False
    prose: bool = False
    extra: bool = False


def numbers(*names: str, extra: bool = False) -> list[Column]:
    return [Column(name, right=True, extra=extra) for name in names]


def show_wide(enabled: bool) -> bool:
    """Whether tables are printed as wide as they are, whatever the terminal's width. Returns it, for an option."""
    _all_columns.set(enabled)
    return enabled


def show(columns: Sequence[Column | str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table on stdout, as wide as the terminal is."""
    out = console()
    free = _all_columns.get() or not (sys.stdout.isatty() or os.environ.get("COLUMNS"))
    heads = [Column(column) if isinstance(column, str) else column for column in columns]
    lines = laid_out(heads, rows, width=None if free else out.width)
    if title is not None:
        out.print(_styled(title, "italic"))
    for number, line in enumerate(lines):
        out.print(_styled(line, "bold" if number == 0 else ""))


def laid_out(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, width: int | None) -> list[str]:
    """The lines of a table, none of which is longer than `width` unless a single word of it is. None: as wide as it is.

    Raises ValueError for a row of another length than the columns.
    """
    table_rows = [list(row) for row in rows]
    for row in table_rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns")
    shown = [place for place, column in enumerate(columns) if column.name or any(row[place] for row in table_rows)]
    extra = [place for place in shown if columns[place].extra]
    for count in range(len(extra), -1, -1):  # all columns, then one extra column less each time, the last first
        left_out = extra[count:]
        visible = [place for place in shown if place not in left_out]
        heads = [columns[place] for place in visible]
        cells = [[row[place] for place in visible] for row in table_rows]
        if width is None:
            return _grid(heads, cells, _widths(heads, cells, PIPE_PROSE_WIDTH))
        widths = _fitting(heads, cells, width)
        if widths is not None:
            names = ", ".join(columns[place].name for place in left_out)
            note = _wrapped(f"(not shown: {names}; --wide shows all)", width) if names else []
            return [*_grid(heads, cells, widths), *note]
    heads, cells = [columns[place] for place in shown], [[row[place] for place in shown] for row in table_rows]
    return _stacked(heads, cells, width or 0)


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], prose: int | None = None) -> list[int]:
    widths: list[int] = []
    for place, column in enumerate(columns):
        cells = [column.name, *(line for row in rows for line in row[place].split("\n"))]
        natural = max(map(_length, cells))
        longest = max((_length(word) for cell in cells for word in cell.split()), default=0)
        widths.append(natural if prose is None or not column.prose else min(natural, max(prose, longest)))
    return widths


def _fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int] | None:
    """The width of each column, that of prose made smaller so far as it has to be; None where even that is too wide."""
    min_widths = _widths(columns, rows, MIN_PROSE_WIDTH)
    room = width - sum(min_widths) - len(_GAP) * (len(columns) - 1)
    if room < 0:
        return None
    widths: list[int] = []
    for small, natural in zip(min_widths, _widths(columns, rows), strict=True):
        widths.append(min(natural, small + room))
        room -= widths[-1] - small
    return widths


def _grid(columns: Sequence[Column], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    lines: list[str] = []
    heads = [column.name for column in columns]
    for row in ([heads] if any(heads) else []) + [list(row) for row in rows]:
        cells = [
            _wrapped(cell, width) if column.prose else (cell.split("\n") or [""])
            for cell, column, width in zip(row, columns, widths, strict=True)
        ]
        for depth in range(max(map(len, cells), default=1)):
            parts = [
                _padded(cell[depth] if depth < len(cell) else "", width, column.right)
                for cell, column, width in zip(cells, columns, widths, strict=True)
            ]
            lines.append(_GAP.join(parts).rstrip())
    return lines


def _stacked(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Each row as a block: its first cell, then a line for each other cell that is not empty."""
    lines: list[str] = []
    name_width = max((_length(column.name) for column in columns[1:]), default=0)
    for row in rows:
        lines += _wrapped(" ".join(filter(None, (columns[0].name, row[0]))) or "-", width)
        for column, cell in zip(columns[1:], row[1:], strict=True):
            if cell:
                indent = "  " + _padded(column.name, name_width, False) + "  "
                first, *continuation = _wrapped(cell, max(width - _length(indent), 1))
                lines.append((indent + first).rstrip())
                lines += [(" " * _length(indent) + line).rstrip() for line in continuation]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of a text, broken at spaces alone."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if line and _length(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - _length(text))
    return space + text if right else text + space


def _length(text: str) -> int:
    """Places on a terminal: a character of Chinese takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _styled(text: str, style: str) -> Any:
    from rich.text import Text

    return Text(text, style=style, no_wrap=True, overflow="ignore")
