"""A run's curves as SVG text, in the look of the other reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bedplate.report.plots import FAINT, INK, SERIES, new_figure, svg_of

Points = Sequence[tuple[float, float]]
_MAX_POINTS = 400
"""Points of one line: more than a page has pixels for say nothing, and a long run has millions."""


def curve(lines: Mapping[str, Points], x_label: str, up: str, label: str) -> str:
    """Lines over one axis, told apart by colour and named beside the picture."""
    figure, axes = new_figure(7.4, 3.6)
    for number, (name, points) in enumerate(lines.items()):
        sampled = thinned(points)
        marker = "o" if len(sampled) <= 30 else ""
        axes.plot(
            *zip(*sampled, strict=True),
            color=SERIES[number % len(SERIES)],
            linewidth=1.3,
            marker=marker,
            ms=4,
            label=name,
        )
    axes.set_xlabel(x_label)
    axes.set_ylabel(up)
    if len(lines) > 1:
        figure.legend(loc="outside right upper", frameon=False, labelcolor=INK, fontsize=9)
    return svg_of(figure, label)


def losses(rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]], target: str = "token") -> str:
    """Each step's loss, faint, the mean of a hundredth of the run over it, and checkpoints' held-out loss. target: what
    it is of."""
    figure, axes = new_figure(7.4, 3.6)
    points = [(row["step"], row["loss"]) for row in rows if row["loss"] is not None]  # None: skipped, not finite
    axes.plot(*zip(*thinned(points), strict=True), color=FAINT, linewidth=0.8, label="a step")
    axes.plot(*zip(*means(points, 100), strict=True), color=SERIES[0], linewidth=1.5, label="mean")
    names = dict.fromkeys(name for row in judged for name in row["held_out"])
    for number, name in enumerate(names, start=1):
        held_out = [(row["step"], row["held_out"][name]["nats_per_token"]) for row in judged if name in row["held_out"]]
        axes.plot(
            *zip(*held_out, strict=True),
            color=SERIES[number % len(SERIES)],
            marker="o",
            ms=4,
            lw=1.2,
            label=f"held out: {name}",
        )
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, nats a {target}")
    figure.legend(loc="outside right upper", frameon=False, labelcolor=INK, fontsize=9)
    return svg_of(figure, "Loss")


def thinned(points: Points) -> Points:
    """Every so manyth point, the last one always."""
    step = max(1, -(-len(points) // _MAX_POINTS))
    sampled = list(points[::step])
    return sampled if sampled[-1] == points[-1] else [*sampled, points[-1]]


def means(points: Points, parts: int) -> Points:
    """The mean of each of so many parts, at its middle."""
    size = max(1, -(-len(points) // parts))
    pieces = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in piece) / len(piece), sum(y for _, y in piece) / len(piece)) for piece in pieces]
