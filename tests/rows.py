"""Parametrised rows of which `make test` runs a few that differ most, and `make test-all` the others as well."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import pytest

Row = TypeVar("Row")


def slow_unless(quick: Callable[[Row], bool], rows: Iterable[Row]) -> list[Any]:
    """The rows, those that are not quick marked as slow. A tuple is a value for each of several names."""
    return [
        row if quick(row) else pytest.param(*(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.slow)
        for row in rows
    ]


def first_of_each(key: Callable[[Row], Hashable], rows: Iterable[Row]) -> list[Any]:
    """The rows, marked as slow where a row before has the same key."""
    keys: set[Hashable] = set()

    def is_first(row: Row) -> bool:
        before = len(keys)
        keys.add(key(row))
        return len(keys) > before

    return slow_unless(is_first, rows)
