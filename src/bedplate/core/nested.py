"""Measures a nested value without walking all of one that is too large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CONTAINER = 8  # what an empty list weighs: about its share of memory, and a bound on how many are walked


def nested_size(value: Any, cap: int) -> int:
    """Characters and elements of a nested value, as if it were written out (a list that holds one string twice weighs
    it twice). Stops as soon as it passes `cap`."""
    total = 0
    stack: list[Any] = [value]
    while stack:
        node = stack.pop()
        total += 1
        if isinstance(node, (str, bytes)):
            total += len(node)
        elif isinstance(node, int):
            total += node.bit_length() // 3
        elif isinstance(node, Mapping):
            total += len(node) + _CONTAINER
            stack.extend(node.keys())
            stack.extend(node.values())
        elif isinstance(node, (list, tuple, set, frozenset)):
            total += _CONTAINER
            stack.extend(node)
        if total > cap or len(stack) > cap:
            return cap + 1
    return total
