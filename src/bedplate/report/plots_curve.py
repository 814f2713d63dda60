"""The learning curve as SVG text, in the look of `report.plots`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bedplate.core.display import chosen
from bedplate.report.plots import INK, REFERENCE, SERIES, TARGET, errors, new_figure, svg_of

_MARKERS = "osD^vP"


def learning_curve(curve: Mapping[str, Any], target: float) -> str:
    """Each rung's quality against the labels used, with intervals; rungs without labels are flat lines; the crossover
    that is spoken of is a band with its interval.

    curve: report.json's `curve`. Series differ by colour and by marker.
    """
    figure, axes = new_figure(7.4, 4.4)
    axes.axhline(target, color=TARGET, linewidth=1.2, linestyle="--", label=f"target {chosen(target)}")
    for number, flat in enumerate(curve["flat"]):
        axes.axhline(
            flat["estimate"], color=REFERENCE, linewidth=1.3, linestyle=(":", "-.")[number % 2], label=flat["rung"]
        )
    names = list(dict.fromkeys(point["rung"] for point in curve["points"]))
    for number, name in enumerate(names):
        points = [point for point in curve["points"] if point["rung"] == name]
        shift = 1 + 0.012 * (number - (len(names) - 1) / 2)  # so that bars at one size stand beside each other
        axes.errorbar(
            [point["labels"] * shift for point in points],
            [point["estimate"] for point in points],
            yerr=errors(points),
            color=SERIES[number % len(SERIES)],
            marker=_MARKERS[number % len(_MARKERS)],
            linestyle=("-", "--")[number // len(SERIES) % 2],
            markersize=5,
            linewidth=1.4,
            elinewidth=0.9,
            capsize=2,
            label=name,
        )
    sizes = sorted({point["labels"] for point in curve["points"]})
    axes.set_xscale("log")
    _mark_crossover(axes, curve, sizes)
    ticks = sorted({point["size"] for point in curve["points"]})
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labels of train")
    axes.set_ylabel(f"{curve['metric'].replace('_', ' ')} on valid")
    figure.legend(loc="outside right upper", frameon=False, labelcolor=INK, fontsize=9)
    return svg_of(figure, "Quality against labels")


def _mark_crossover(axes: Any, curve: Mapping[str, Any], sizes: list[float]) -> None:
    """A line at the crossover and a band over its interval, cut at the sizes there are."""
    spoken = curve["crossovers"][0] if curve["crossovers"] else None
    if spoken is None or spoken["labels"] == "beyond" or not sizes:
        return
    ends = {"below": sizes[0], "beyond": sizes[-1]}
    place = ends.get(spoken["labels"], spoken["labels"])
    axes.axvline(place, color=INK, linewidth=1, linestyle=":")
    if spoken["interval"] is not None:
        low, high = (ends.get(end, end) for end in spoken["interval"])
        axes.axvspan(low, high, color=REFERENCE, alpha=0.15, lw=0)
    axes.annotate(
        f"{spoken['tuned']} overtakes\n{spoken['prompted']}",
        (place, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(5, 0),
        textcoords="offset points",
        color=INK,
        fontsize=9,
    )
