"""Plots as SVG text for the pages: deterministic, without a background, in colours that the page's theme decides."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in these colours, then replaced by the page's variables, so that one picture serves light and dark.
_INK, _FAINT, _ACCENT, _REFERENCE, _TARGET = "#111213", "#a1a2a3", "#3165f1", "#8c8d8e", "#d9480f"
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", _ACCENT: "--accent", _REFERENCE: "--muted", _TARGET: "--target"}


def quality_against_cost(rows: Sequence[Mapping[str, Any]], target: float, metric: str) -> str:
    """Estimate with its interval over price, one point for each rung; what no cheaper rung beats is joined by a line.

    rows: dicts with rung, estimate, interval, usd_per_1k_calls, reference (bool), split.
    """
    figure, axes = _figure(7.4, 3.9)
    axes.axhline(target, color=_TARGET, linewidth=1.2, linestyle="--")
    axes.annotate(
        f"target {target:g}",
        (0.995, target),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color=_TARGET,
    )
    priced = [row for row in rows if not row["reference"]]
    for row in priced:
        low, high = row["interval"]
        error = [[max(0.0, row["estimate"] - low)], [max(0.0, high - row["estimate"])]]
        filled = row["split"] == "test"
        axes.errorbar(
            row["usd_per_1k_calls"],
            row["estimate"],
            yerr=error,
            fmt="o",
            color=_ACCENT,
            markerfacecolor=_ACCENT if filled else "none",
            markersize=7,
            capsize=3,
            linewidth=1.3,
        )
        axes.annotate(
            row["rung"],
            (row["usd_per_1k_calls"], row["estimate"]),
            xytext=(8, 5),
            textcoords="offset points",
            color=_INK,
        )
    for row in rows:
        if row["reference"]:
            axes.axhline(row["estimate"], color=_REFERENCE, linewidth=1, linestyle=":")
            axes.annotate(
                f"{row['rung']} {row['estimate']:.3f}",
                (0.005, row["estimate"]),
                xycoords=("axes fraction", "data"),
                va="top" if row["estimate"] <= target else "bottom",  # away from the target's line
                color=_REFERENCE,
            )
    front = pareto(priced)
    axes.plot(
        [row["usd_per_1k_calls"] for row in front],
        [row["estimate"] for row in front],
        color=_ACCENT,
        linewidth=1,
        alpha=0.5,
        zorder=0,
    )
    axes.margins(x=0.18, y=0.12)
    axes.set_xlabel("US dollars per 1,000 calls")
    axes.set_ylabel(metric.replace("_", " "))
    return _svg(figure)


def pareto(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows that no row which costs as much or less beats, cheapest first."""
    found: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda r: (r["usd_per_1k_calls"], -r["estimate"])):
        if not found or row["estimate"] > found[-1]["estimate"]:
            found.append(row)
    return found


def seed_spread(seeds: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> str | None:
    """Each seed's own estimate with its interval, by rung; None where no rung has more than one seed."""
    shown = {rung: rows for rung, rows in seeds.items() if len(rows) > 1}
    if not shown:
        return None
    figure, axes = _figure(7.4, 0.9 + 0.42 * sum(map(len, shown.values())))
    names: list[str] = []
    for rung, rows in shown.items():
        for row in rows:
            low, high = row["interval"]
            error = [[max(0.0, row["estimate"] - low)], [max(0.0, high - row["estimate"])]]
            chosen = row.get("chosen", False)
            axes.errorbar(
                row["estimate"],
                len(names),
                xerr=error,
                fmt="o",
                color=_ACCENT,
                markerfacecolor=_ACCENT if chosen else "none",
                capsize=3,
                linewidth=1.3,
            )
            names.append(f"{rung}, seed {row['seed']}" + (" (chosen)" if chosen else ""))
    axes.set_yticks(range(len(names)), names)
    axes.margins(y=0.25)
    axes.set_xlabel(f"{metric.replace('_', ' ')} on valid")
    return _svg(figure)


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Share of right answers against the mean confidence of each bin; the dotted line is perfect calibration."""
    figure, axes = _figure(4.2, 3.4)
    axes.plot([0, 1], [0, 1], color=_REFERENCE, linestyle=":", linewidth=1)
    largest = max((b["n"] for b in bins), default=1)
    x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    axes.plot(x, y, color=_ACCENT, linewidth=1, alpha=0.6)
    axes.scatter(x, y, s=[18 + 120 * b["n"] / largest for b in bins], color=_ACCENT)
    axes.set(xlim=(min([0.45, *x]), 1.02), ylim=(0, 1.05), xlabel="confidence", ylabel="share right")
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of its own canvas: nothing global is touched, so threads and notebooks are left alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(colors=_INK, labelsize=9)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    return figure, axes


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    settings: Any = {"svg.hashsalt": "bedplate", "svg.fonttype": "none", "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
