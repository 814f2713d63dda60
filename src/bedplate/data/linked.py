"""Groups by several columns: rows that share a value of any of them, directly or through other rows, belong together.

These are the connected components of rows and values (Tarjan 1975, JACM 22:215: union-find, near-linear): with a
customer and a product for each row, all rows of a customer stay in one split, and so do all of a product. A narrower
rule, such as the pair of both values, would leave the rows of one customer in two splits.
"""

from __future__ import annotations

from collections.abc import Sequence

from bedplate.core.errors import DataError
from bedplate.data.rows import Row, blank


def linked(rows: Sequence[Sequence[str]]) -> list[str]:
    """Of each row, by the values that it has (at least one), the name of its group: the least of the group's values, so
    that it does not depend on the order of the rows."""
    parents: dict[str, str] = {}

    def top(value: str) -> str:
        while parents.setdefault(value, value) != value:
            parents[value] = parents[parents[value]]
            value = parents[value]
        return value

    for values in rows:
        for value in values[1:]:
            root, merged_root = sorted((top(values[0]), top(value)))
            parents[merged_root] = root
    return [top(values[0]) for values in rows]


def links_of(row: Row, columns: Sequence[str], location: str) -> tuple[str, ...]:
    """What a row has of the columns that make groups, as `column=value`. Of several columns some may be empty: by these
    it belongs to no other row. DataError, with `location`, for a row that has none."""
    links: list[str] = []
    for column in columns:
        value = row.get(column)
        if blank(value):
            if len(columns) == 1:
                raise DataError(f"{location}: the group ({column}) is {value!r}; every row needs one")
        elif isinstance(value, str | int) and not isinstance(value, bool):
            links.append(f"{column}={value}")
        else:
            raise DataError(f"{location}: the group ({column}) is {value!r}; it must be a text or a whole number")
    if columns and not links:
        raise DataError(
            f"{location}: none of the groups ({', '.join(columns)}) has a value; every row needs one of them"
        )
    return tuple(links)
