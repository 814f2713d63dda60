"""The HTML pages of a ladder's report and of a corpus's funnel, self-contained: nothing is fetched, everything is
escaped.

A Content-Security-Policy allows the page's own style and nothing else. Each section has a template in `templates`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from bedplate.report import formatting
from bedplate.report.pages import page

SECTIONS = {
    "rungs": "Quality against cost",
    "curve": "How many labels",
    "focus": "A closer look",
    "examples": "Examples",
    "trace": "How it was decided",
    "data": "Data card",
    "lineage": "Lineage and settings",
}


def adaptation_page(report: Mapping[str, Any]) -> str:
    """The page of a ladder's report (the content of report.json, with or without its rows)."""
    from markupsafe import Markup

    # written by us from numbers and escaped names, so it may stand as it is
    drawn = {name: None if svg is None else Markup(svg) for name, svg in _plots(report).items()}
    return page(
        "page.html.jinja",
        r={key: value for key, value in report.items() if key != "rows"},
        plots=drawn,
        contents=list(_contents(report)),
        headline=headline(report),
        status=formatting.shown_status(report).replace("_", " "),
        said=partial(formatting.shown_estimate, report),
        bar=formatting.shown_bar(report),
        costs=formatting.costs(report),
        smaller=formatting.made_smaller(report),
        remarks=[
            remark for remark in (formatting.calibration_remark(report), formatting.timing_remark(report)) if remark
        ],
        climbed=_climbed(report),
        bounds={confirmation["rung"]: confirmation for confirmation in report["nominees"]["confirmations"]},
        confusions=confusions(report),
    )


def _contents(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Sections that have something to say, with their titles."""
    focus = report["focus"]
    empty = {"curve": report["curve"] is None, "focus": focus is None, "examples": not report["examples"]["rows"]}
    for name, title in SECTIONS.items():
        if not empty.get(name):
            yield name, f"{title} at {focus['rung']} on {focus['split']}" if name == "focus" else title


def headline(report: Mapping[str, Any]) -> str:
    """The verdict in one sentence, for who reads one sentence."""
    verdict, target = report["verdict"], report["target"]
    metric, bar = target["metric"].replace("_", " "), formatting.shown_bar(report)
    by_rung = {c["rung"]: c for c in report["nominees"]["confirmations"]}
    if verdict["status"] == "PASS":
        won = by_rung[verdict["rung"]]
        row = next(r for r in report["rungs"] if r["rung"] == verdict["rung"] and r["split"] == "test")
        side, word = ("upper", "at most") if formatting.costs(report) else ("lower", "at least")
        estimate, end = (formatting.shown_estimate(report, won[name]) for name in ("estimate", side))
        cost = f"${row['usd_per_1k_calls']:.4f} per 1,000 calls"
        return f"{verdict['rung']} clears the bar of {bar}: {metric} {estimate}, {word} {end}, at {cost}."
    if verdict["status"] == "OUT_OF_BUDGET":
        first = next(iter(verdict.get("kept_out", ())), None)
        would = ""
        if first is not None:
            would = f"; {first['key']}: {first['given']:g} → {first['needed']:g} would admit {first['rung']}"
        return f"Nothing that fits the budget is shown to reach {metric} {bar}{would}."
    if not by_rung:
        return f"No skin could be judged, so none could be shown to reach {metric} {bar}."
    best = (min if formatting.costs(report) else max)(by_rung.values(), key=lambda c: c["estimate"])
    best_score = f"the best, {best['rung']}, scores {formatting.shown_estimate(report, best['estimate'])} on test"
    if verdict["status"] == "FAIL":
        return f"No adaptation that was tested reaches {metric} {bar}: {best_score}."
    return f"The test rows do not decide whether an adaptation reaches {metric} {bar}: {best_score}."


def confusions(report: Mapping[str, Any]) -> list[tuple[str, str | None, int, float]]:
    """(wanted, answered, rows, share of the wanted rows), most frequent first; answered None: nothing usable."""
    matrix = None if report["focus"] is None else report["focus"]["confusion"]
    if matrix is None:
        return []
    answers = [*matrix["labels"], None]
    pairs = [
        (label, answered, count, count / max(1, sum(line)))
        for label, line in zip(matrix["labels"], matrix["counts"], strict=True)
        for answered, count in zip(answers, line, strict=True)
        if count and label != answered
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1] or ""))


def _climbed(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each rung in turn: what became of it, why, what it was expected to take and took, what it tried and left out."""
    forecasts = {forecast["rung"]: forecast for forecast in report["forecasts"]}
    parts = [omission for omission in report["not_tried"] if omission["what"] == "part"]
    return [
        {
            **{key: row[key] for key in ("rung", "status", "reason")},
            "forecast": forecasts.get(row["rung"]),
            "left_out": [part["reason"] for part in parts if part["rung"] == row["rung"]],
            "export": report["export"].get(row["rung"]),
            "tried": [{"failure": None, "estimate": None, **tried} for tried in report["search"].get(row["rung"], [])],
        }
        for row in report["rungs"]
        if row["split"] == "valid"
    ]


def _plots(report: Mapping[str, Any]) -> dict[str, str | None]:
    from bedplate.report import plots

    rows, smaller = dict[str, dict[str, Any]](), formatting.made_smaller(report)
    side = "upper" if formatting.costs(report) else "lower"
    confirmed = {confirmation["rung"]: confirmation[side] for confirmation in report["nominees"]["confirmations"]}
    for row in report["rungs"]:  # a test row replaces the rung's valid row
        if row["status"] == "done":
            bound = confirmed.get(row["rung"]) if row["split"] == "test" else None
            name = row["rung"] + ("*" if row["rung"] in smaller else "")
            rows[row["rung"]] = {**row, "rung": name, "reference": row["skin"] is None, "bound": bound}
    seeds = {row["rung"]: row["seeds"] for row in report["rungs"] if row["split"] == "valid"}
    focus, target, curve = report["focus"], report["target"], report["curve"]
    calibration = None if focus is None else focus["calibration"]
    return {
        "cost": plots.quality_against_cost(
            list(rows.values()), target["value"], target["metric"], lower_is_better=formatting.costs(report)
        ),
        "seeds": plots.seed_spread(seeds, target["metric"]),
        "calibration": None if calibration is None else plots.reliability(calibration["bins"]),
        "lengths": plots.lengths({name: split["deciles"] for name, split in report["data"]["card"]["lengths"].items()}),
        "curve": None if curve is None else plots.learning_curve(curve, target["value"]),
    }


def corpus_page(funnel: Mapping[str, Any]) -> str:
    """The page of a funnel (the content of funnel.json). Everything that stands in it is escaped."""
    from markupsafe import Markup

    return page(
        "corpus.html.jinja",
        f=funnel,
        lengths=Markup(_lengths(funnel["edges"], funnel["before"], funnel["after"])),
        most=max(1, funnel["documents"]),
    )


def _lengths(edges: Sequence[int], before: Sequence[int], after: Sequence[int]) -> str:
    """How many texts have which length, read and kept."""
    from bedplate.report.plots import ACCENT, REFERENCE, new_figure, svg_of

    figure, axes = new_figure(7.4, 3.0)
    places = range(len(edges))
    axes.bar([place - 0.2 for place in places], before, 0.4, color=REFERENCE, label="read")
    axes.bar([place + 0.2 for place in places], after, 0.4, color=ACCENT, label="kept")
    names = [f"{edge:,}" if edge < 1000 else f"{edge // 1000:,}k" for edge in edges]
    axes.set_xticks(list(places), [f"{name}–" for name in names])
    axes.set_xlabel("characters of a text, from")
    axes.set_ylabel("documents")
    axes.legend(frameon=False)
    return svg_of(figure, "Lengths of texts")
