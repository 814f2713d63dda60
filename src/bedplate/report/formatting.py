"""Formatting of numbers in a report (scores, or US dollars of a call), and Markdown tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from typing import Any

from bedplate.core.display import chosen, confidence_text
from bedplate.core.processor import is_busy

MISCALIBRATED = 0.15
"""A calibration error from which a skin's probabilities are warned of."""


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


def made_smaller(report: Mapping[str, Any]) -> set[str]:
    """Rungs with a result that had the time for a part of their rows only."""
    parts = [part for part in report["not_tried"] if part["what"] == "part" and part["kind"] == "budget"]
    return {part["rung"] for part in parts if "rows were left out" in part["reason"]}


def calibration_remark(report: Mapping[str, Any]) -> str | None:
    """A warning where the probabilities of the skin in focus are far from the share of its right answers."""
    focus = report["focus"]
    if focus is None or (calibration := focus["calibration"]) is None or calibration["error"] < MISCALIBRATED:
        return None
    gap = sum(part["n"] * (part["accuracy"] - part["confidence"]) for part in calibration["bins"]) / calibration["n"]
    side = "low" if gap > 0 else "high"
    return (
        f"{focus['rung']}: its probabilities are {abs(gap):.2f} too {side} on average (calibration error "
        f"{calibration['error']:.2f}): choose a threshold by how often it is right above it, not by the probability"
    )


def timing_remark(report: Mapping[str, Any]) -> str | None:
    """A warning where calls were timed while other work took the processors."""
    rows = [row for row in report["rungs"] if (row.get("load") or 0) > 0 and row["skin"] is not None]
    busiest = max(rows, key=lambda row: row["load"], default=None)
    if busiest is None or not is_busy(busiest["load"], report["machine"]["cores"]):
        return None
    return f"calls were timed beside other work (load average {busiest['load']:.1f}): times and prices may be too high"


def at_confidence(level: float, requested: float | None, nominees: int = 1) -> str:
    """The confidence of one bound, and why it is above the confidence that the task asks for: such as `97.0% confidence
    (so that all verdicts on these rows hold with 95%)`. nominees: how many share the error."""
    if requested is None or level <= requested:
        return f"{confidence_text(level)}"
    several = "" if nominees < 2 else f"{'both' if nominees == 2 else f'all {nominees}'} nominees and "
    claims = f"{several}all verdicts"
    return f"{confidence_text(level)} (so that {claims} on these rows hold with {100 * requested:g}%)"


def cell(value: Any) -> str:
    """A value as it may stand in a table or a paragraph: in one line, no mark of a column, no HTML of its own."""
    return html.escape(" ".join(str(value).split()), quote=False).replace("|", r"\|")


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    names = list(head)
    return [_line(names), f"|{'---|' * len(names)}", *map(_line, rows)]


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(cell, cells))} |"
