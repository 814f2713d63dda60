"""A report of scores that stand for costs, said in US dollars of a call: of what a verdict rests on, less is better."""

from __future__ import annotations

from typing import Any

from bedplate.evaluation.costs import Scale
from bedplate.report.schema_parts import Curve


def in_dollars(report: dict[str, Any], scale: Scale) -> None:
    """Turns the estimates, intervals, bounds and differences of report.json's values into dollars, in place. The rows
    keep their scores, and so do formats, which are held against a margin of scores."""
    for row in report["rungs"]:
        _turn(row, scale, "estimate", "answered", interval="interval")
        for seed in row["seeds"]:
            _turn(seed, scale, "estimate", interval="interval")
    for change in report["verdict"].get("kept_out", ()):
        _turn(change, scale, "estimate")
    for confirmation in report["nominees"]["confirmations"]:
        _turn(confirmation, scale, "estimate", "expected")
        ends = [None if confirmation[name] is None else scale.value(confirmation[name]) for name in ("upper", "lower")]
        confirmation["lower"], confirmation["upper"] = ends
        levels = confirmation["upper_confidence"], confirmation["lower_confidence"]
        confirmation["lower_confidence"], confirmation["upper_confidence"] = levels
    for comparison in report["comparisons"]:
        _turn(comparison, scale, "a_estimate", "b_estimate")
        _difference_in_dollars(comparison, scale)
    for tried in (trial for searched in report["search"].values() for trial in searched):
        _turn(tried, scale, "estimate")
    if report["focus"] is not None:
        for part in report["focus"]["slices"]:
            _turn(part, scale, "estimate", interval="interval")


def curve_in_dollars(curve: Curve, scale: Scale) -> Curve:
    """The same of learning curves, which have no price of the call in them."""
    if scale.worst_usd is None:
        return curve
    values = curve.model_dump(mode="json")
    for point in (*values["points"], *values["flat"]):
        _turn(point, scale, "estimate", interval="interval")
        for draw in point.get("draws", ()):
            _turn(draw, scale, "estimate")
    for gap in (difference for crossover in values["crossovers"] for difference in crossover["differences"]):
        _difference_in_dollars(gap, scale)
    return Curve.model_validate(values)


def _turn(part: dict[str, Any], scale: Scale, *names: str, interval: str | None = None) -> None:
    for name in names:
        if part.get(name) is not None:
            part[name] = scale.value(part[name])
    if interval is not None and part[interval] is not None:
        part[interval] = list(scale.ends(*part[interval]))


def _difference_in_dollars(part: dict[str, Any], scale: Scale) -> None:
    part["difference"] = scale.difference(part["difference"])
    part["interval"] = sorted(scale.difference(end) for end in part["interval"])
