"""Formatting of numbers in a report (scores, or US dollars of a call), and Markdown tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from bedplate.core.display import chosen


def costs(report: Mapping[str, Any]) -> bool:
    """Whether estimates are dollars, of which less is better."""
    return bool(report["target"].get("lower_is_better"))


def shown_estimate(report: Mapping[str, Any], value: float) -> str:
    """An estimate, or an end of its interval."""
    return f"${value:.4f}" if costs(report) else f"{value:.3f}"


def shown_bar(report: Mapping[str, Any]) -> str:
    """The target's value, and what it is taken from."""
    target = report["target"]
    bar = f"${chosen(target['value'])}" if costs(report) else chosen(target["value"])
    if target.get("against") is None:
        return bar
    margin, better_by = target.get("margin"), target.get("better_by")
    comparison = f"worse by less than {margin:g} than" if margin is not None else f"better by {better_by:g} than"
    comparison = comparison if better_by != 0 else "better than"
    return f"{bar} ({comparison} {target['against']})"


def shown_status(report: Mapping[str, Any]) -> str:
    """The verdict's status; a PASS on rows that served earlier verdicts is an EXPLORATORY PASS."""
    verdict = report["verdict"]
    return f"EXPLORATORY {verdict['status']}" if verdict.get("exploratory") else verdict["status"]


def at_confidence(level: float, requested: float | None, nominees: int = 1) -> str:
    """The confidence of one bound, and why it is above the confidence that the task asks for: such as `97.0% confidence
    (so that all verdicts on these rows hold with 95%)`. nominees: how many share the error."""
    if requested is None or level <= requested:
        return f"{level:.1%} confidence"
    several = "" if nominees < 2 else f"{'both' if nominees == 2 else f'all {nominees}'} nominees and "
    claims = f"{several}all verdicts"
    return f"{level:.1%} confidence (so that {claims} on these rows hold with {100 * requested:g}%)"


def cell(value: Any) -> str:
    """A value as it may stand in a table or a paragraph: in one line, no mark of a column, no HTML of its own."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", r"\|")


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Its lines."""
    names = list(head)
    return [_line(names), f"|{'---|' * len(names)}", *map(_line, rows)]


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(cell, cells))} |"
