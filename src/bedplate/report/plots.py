"""Plots as SVG text: deterministic, without a background, in colours that the page's theme decides."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from bedplate.core.display import chosen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation


# Drawn in these colours, then replaced by the page's variables, so that one picture serves light and dark.
INK, FAINT, ACCENT, REFERENCE, TARGET = "#111213", "#a1a2a3", "#3165f1", "#8c8d8e", "#d9480f"
SERIES = ("#0102f0", "#f00102", "#02f001", "#8101f0", "#01b0f0", "#f001b0")
"""Lines that are told apart by colour."""
LAYOUT: Literal["constrained"] | None = "constrained"
"""How room is made for what stands around a plot, which takes as long as drawing it."""
LIGHT = ("#2457d6", "#c2410c", "#15803d", "#7e22ce", "#0e7490", "#be185d")
VARIABLES = {
    INK: "var(--ink, #1b1f24)",
    FAINT: "var(--faint, #c9ced6)",
    ACCENT: "var(--accent, #2457d6)",
    REFERENCE: "var(--muted, #5b6573)",
    TARGET: "var(--target, #c2410c)",
    **{colour: f"var(--c{n}, {light})" for n, (colour, light) in enumerate(zip(SERIES, LIGHT, strict=True))},
}
"""The page's variables; a picture that stands by itself has the colours of the light theme, on white."""


_ERROR_BARS: dict[str, Any] = {"fmt": "o", "color": ACCENT, "capsize": 3, "linewidth": 1.3}


def quality_against_cost(
    rows: Sequence[Mapping[str, Any]], target: float, metric: str, *, lower_is_better: bool = False
) -> str:
    """Estimate with its interval over price, one point for each rung; what no cheaper rung beats is joined by a line.

    rows: dicts with rung, estimate, interval, usd_per_1k_calls, reference (bool), split, and (optional) bound, the one
    that the verdict rests on, which is drawn as a wide tick. lower_is_better: where estimates are costs.
    """
    figure, axes = new_figure(7.4, 3.9)
    axes.axhline(target, color=TARGET, linewidth=1.2, linestyle="--")
    labels = [_line_label(axes, f"target {chosen(target)}", target, TARGET, 0.995)]
    priced = [row for row in rows if not row["reference"]]
    for row in priced:
        usd, estimate = row["usd_per_1k_calls"], row["estimate"]
        fill = ACCENT if row["split"] == "test" else "none"
        axes.errorbar(usd, estimate, errors([row]), markerfacecolor=fill, markersize=7, clip_on=False, **_ERROR_BARS)
        if row.get("bound") is not None:
            axes.plot(usd, row["bound"], "_", color=TARGET, markersize=16, markeredgewidth=2, clip_on=False)
    levels = [target]
    for row in (row for row in rows if row["reference"]):
        axes.axhline(row["estimate"], color=REFERENCE, linewidth=1, linestyle=":")
        score = f"{row['estimate']:.3g}" if lower_is_better else f"{row['estimate']:.3f}"
        labels.append(_line_label(axes, f"{row['rung']} {score}", row["estimate"], REFERENCE, 0.005))
        levels.append(row["estimate"])
    front = pareto(priced, lower_is_better=lower_is_better)
    x, y = [row["usd_per_1k_calls"] for row in front], [row["estimate"] for row in front]
    axes.plot(x, y, color=ACCENT, linewidth=1, alpha=0.5, zorder=0)
    axes.margins(x=0.18, y=0.12)
    axes.set_xlim(left=0)
    axes.set_xlabel("US dollars per 1,000 calls")
    axes.set_ylabel(metric.replace("_", " "))
    for row in priced:
        at = row["usd_per_1k_calls"], row["estimate"]
        label = axes.annotate(row["rung"], at, (8, -3), textcoords="offset points", ha="left", va="top", color=INK)
        labels.append(label)
    bars = [[(row["usd_per_1k_calls"], end) for end in row["interval"]] for row in priced]
    right = axes.get_xlim()[1]
    lines = [*([(0.0, level), (right, level)] for level in levels), list(zip(x, y, strict=True)), *bars]
    _place(figure, axes, labels, [line for line in lines if line])
    return svg_of(figure, "Quality against cost")


def _line_label(axes: Axes, text: str, level: float, colour: str, place: float) -> Annotation:
    """The name of a horizontal line, at this fraction of the axes' width."""
    side = "right" if place > 0.5 else "left"
    at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": side}
    return axes.annotate(text, (place, level), (0, 3), va="bottom", color=colour, **at)


_SHIFTS = ((8, -3), (8, 3), (-8, 3), (-8, -3), (8, -16), (8, 16), (-8, 16), (-8, -16), (8, -30), (8, 30))
"""Places of a point's label, in points from it; the side says which corner of the text lies there."""
_SAMPLES = 400


def _place(
    figure: Figure, axes: Axes, labels: Sequence[Annotation], lines: Sequence[Sequence[tuple[float, float]]]
) -> None:
    """Moves each label to the first place at which it covers nothing: no line, no error bar, no other label; or to that
    which covers least. lines: in data coordinates."""
    import numpy as np

    figure.draw_without_rendering()  # lays the axes out
    unit, corners = figure.dpi / 72, np.array(axes.get_window_extent().get_points())
    drawn: list[Any] = []
    for line in lines:
        points = axes.transData.transform(np.array(line, float).reshape(-1, 2))
        steps = np.linspace(0, len(points) - 1, _SAMPLES)
        drawn.append(np.column_stack([np.interp(steps, range(len(points)), points[:, i]) for i in (0, 1)]))
    for label in labels:
        shifts = _SHIFTS if label.xycoords == "data" else ((0, 3), (0, -3))
        best: tuple[int, dict[str, Any], Any] | None = None
        for dx, dy in shifts:
            place: dict[str, Any] = {"position": (dx, dy), "va": "bottom" if dy > 0 else "top"}
            place |= {"ha": "left" if dx > 0 else "right"} if dx else {}
            label.set(**place)
            box = label.get_window_extent()
            ends = np.array([[box.x0, box.y0], [box.x1, box.y1]])
            outside = 1000 * int((ends[0] < corners[0] - unit).any() or (ends[1] > corners[1] + unit).any())
            covered = sum(int(((points > ends[0]) & (points < ends[1])).all(axis=1).sum()) for points in drawn)
            if best is None or covered + outside < best[0]:
                best = covered + outside, place, ends
            if best[0] == 0:
                break
        assert best is not None
        _, place, ends = best
        label.set(**place)
        across, up = (np.linspace(ends[0][i], ends[1][i], 20) for i in (0, 1))
        drawn.append(np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2))


def pareto(rows: Sequence[Mapping[str, Any]], *, lower_is_better: bool = False) -> list[Mapping[str, Any]]:
    """The rows that no row which costs as much or less beats, cheapest first."""
    front: list[Mapping[str, Any]] = []
    good = -1 if lower_is_better else 1
    for row in sorted(rows, key=lambda r: (r["usd_per_1k_calls"], -good * r["estimate"])):
        if not front or good * row["estimate"] > good * front[-1]["estimate"]:
            front.append(row)
    return front


def seed_spread(seeds: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> str | None:
    """Each seed's own estimate with its interval, by rung; None where no rung has more than one seed."""
    shown = {rung: rows for rung, rows in seeds.items() if len(rows) > 1}
    if not shown:
        return None
    figure, axes = new_figure(7.4, 0.9 + 0.42 * sum(map(len, shown.values())))
    names: list[str] = []
    for rung, rows in shown.items():
        for row in rows:
            chosen = row.get("chosen", False)
            fill = ACCENT if chosen else "none"
            axes.errorbar(row["estimate"], len(names), xerr=errors([row]), markerfacecolor=fill, **_ERROR_BARS)
            names.append(f"{rung}, seed {row['seed']}" + (" (chosen)" if chosen else ""))
    axes.set_yticks(range(len(names)), names)
    axes.margins(y=0.25)
    axes.set_xlabel(f"{metric.replace('_', ' ')} on valid")
    return svg_of(figure, "Quality by seed")


def reliability(bins: Sequence[Mapping[str, Any]]) -> str:
    """Share of right answers, with its interval, against the mean confidence of each bin; larger dots have more rows.
    The dotted line is perfect calibration."""
    figure, axes = new_figure(4.2, 3.4)
    axes.plot([0, 1], [0, 1], color=REFERENCE, linestyle=":", linewidth=1)
    largest = max((b["n"] for b in bins), default=1)
    x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
    axes.errorbar(x, y, yerr=errors(bins, "accuracy"), color=ACCENT, linewidth=1, alpha=0.7, capsize=3)
    axes.scatter(x, y, s=[18 + 120 * b["n"] / largest for b in bins], color=ACCENT)
    axes.set(xlim=(min([0.45, *x]), 1.02), ylim=(0, 1.05), xlabel="confidence", ylabel="share right")
    return svg_of(figure, "Confidence against accuracy")


def lengths(deciles: Mapping[str, Sequence[int]]) -> str:
    """For each split its shortest to longest input as a line, the middle 80% thick, a dot at the median."""
    from matplotlib.ticker import LogLocator

    figure, axes = new_figure(7.4, 0.9 + 0.34 * len(deciles))
    for place, values in enumerate(deciles.values()):
        shown = [max(1, value) for value in values]
        axes.plot([shown[0], shown[-1]], [place, place], color=REFERENCE, linewidth=1)
        axes.plot([shown[1], shown[-2]], [place, place], color=ACCENT, linewidth=6, alpha=0.5)
        axes.plot(shown[5], place, "o", color=ACCENT)
    axes.set_yticks(range(len(deciles)), list(deciles))
    axes.set(xscale="log", ylim=(len(deciles) - 0.5, -0.5), xlabel="characters")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    # As numbers: powers would be set as formulas, each anew, which takes as long as all else of the picture.
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter("")
    return svg_of(figure, "Lengths of inputs")


def errors(rows: Sequence[Mapping[str, Any]], name: str = "estimate") -> list[list[float]]:
    """Lengths of the bars below and above."""
    return [
        [max(0.0, row[name] - row["interval"][0]) for row in rows],
        [max(0.0, row["interval"][1] - row[name]) for row in rows],
    ]


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of its own canvas: nothing global is touched, so threads and notebooks are left alone."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=LAYOUT)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def svg_of(figure: Figure, label: str) -> str:
    """The figure as SVG text in the page's colours. label: what it shows, in words that no other picture of a page has;
    its ids carry it, so that pictures in one page do not take each other's."""
    import matplotlib as mpl

    buffer = io.StringIO()
    settings: Any = {"svg.hashsalt": "bedplate", "svg.fonttype": "none", "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{label.replace(' ', '-')}-", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}" style="background: var(--paper, #ffffff)"', 1)


_MARKERS = "osD^vP"


def learning_curve(curve: Mapping[str, Any], target: float) -> str:
    """Each rung's quality against the labels used, with intervals; rungs without labels are flat lines; the crossover
    that is spoken of is a band with its interval.

    curve: report.json's `curve`. Series differ by colour and by marker.
    """
    figure, axes = new_figure(7.4, 4.4)
    axes.axhline(target, color=TARGET, linewidth=1.2, linestyle="--", label=f"target {chosen(target)}")
    for number, flat in enumerate(curve["flat"]):
        style = (":", "-.")[number % 2]
        axes.axhline(flat["estimate"], color=REFERENCE, linewidth=1.3, linestyle=style, label=flat["rung"])
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
