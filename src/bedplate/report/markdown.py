"""Tables of Markdown, for cards."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any


def cell(value: Any) -> str:
    """A value as it may stand in a table or a paragraph: in one line, no mark of a column, no HTML of its own."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", r"\|")


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Its lines."""
    names = list(head)
    return [_line(names), f"|{'---|' * len(names)}", *map(_line, rows)]


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(cell, cells))} |"
