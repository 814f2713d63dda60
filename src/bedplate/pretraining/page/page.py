"""The HTML page of a run, with its plots: written from the files of its directory at every checkpoint and at the end.
And the model card of its base: what it is, what it was trained on, what it can do, its limits, after Mitchell et al.
(https://arxiv.org/abs/1810.03993), with the metadata block that the Hugging Face Hub reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bedplate.core.files import atomic_write, read_jsonl
from bedplate.core.quantities import shown_count
from bedplate.report.formatting import cell, table
from bedplate.report.pages import page
from bedplate.report.plots import FAINT, INK, SERIES, new_figure, svg_of


def target_of(score: Mapping[str, Any]) -> str:
    """What its losses are counted by: token, or pair."""
    return score.get("target", "token")


def measure_of(score: Mapping[str, Any]) -> tuple[str, float]:
    """Bits a byte; where there are none, since no text is said, nats a target."""
    bits = score["bits_per_byte"]
    return ("bits a byte", bits) if bits is not None else (f"nats a {target_of(score)}", score["nats_per_token"])


Points = Sequence[tuple[float, float]]
_MAX_POINTS = 400
"""Points of one line: more than a page has pixels for say nothing, and a long run has millions."""


def curve(lines: Mapping[str, Points], x_label: str, up: str, label: str) -> str:
    """Lines over one axis, told apart by colour and named beside the picture."""
    figure, axes = new_figure(7.4, 3.6)
    for number, (name, points) in enumerate(lines.items()):
        sampled = thinned(points)
        style: dict[str, Any] = {"color": SERIES[number % len(SERIES)], "marker": "o" if len(sampled) <= 30 else ""}
        axes.plot(*zip(*sampled, strict=True), linewidth=1.3, ms=4, label=name, **style)
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
        color, label = SERIES[number % len(SERIES)], f"held out: {name}"
        axes.plot(*zip(*held_out, strict=True), color=color, marker="o", ms=4, lw=1.2, label=label)
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


TOKENS_PREFIX = "tokens/"
"""What the names of a step's tokens by source begin with."""
_TAIL = 50


def write_page(path: Path, record: Mapping[str, Any], metrics: Path, judged: Sequence[Mapping[str, Any]]) -> None:
    """The page as HTML: no script, nothing fetched, everything escaped. record: pretraining.json. metrics: the log of
    steps. judged: rows of checkpoints."""
    from markupsafe import Markup

    rows = read_jsonl(metrics, allow_torn_tail=True) if metrics.is_file() else []
    target, measure = _counted(judged)
    html = page(
        "run.html.jinja",
        "bedplate.pretraining.page",
        r=record,
        plots={name: Markup(svg) for name, svg in _plots(rows, judged).items()},
        facts=facts(record, rows, judged),
        seen=tokens_by_source(rows),
        judged=judged,
        last=judged[-1] if judged else None,
        held=same_documents(judged),
        baselines=record.get("baselines") or {},
        shown=shown_count,
        target=target,
        measure=measure,
    )
    atomic_write(path, html)


def _plots(rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    plots: dict[str, str] = {}
    judged = _comparable(judged)
    target, measure = _counted(judged)
    if any(row["loss"] is not None for row in rows):
        plots["loss"] = losses(rows, judged, target)
        speed = {"tokens a second": [(row["step"], row["tokens_per_second"]) for row in rows]}
        plots["speed"] = curve(speed, "step", "tokens a second", "Speed")
    held_out = {
        name: [(row["tokens"], measure_of(row["held_out"][name])[1]) for row in judged if name in row["held_out"]]
        for name in dict.fromkeys(name for row in judged for name in row["held_out"])
    }
    if any(len(points) > 1 for points in held_out.values()):
        plots["held"] = curve(held_out, "tokens", f"{measure}, held out", "Held out")
    suites = {
        name: [(row["tokens"], row["suites"][name]["value"]) for row in judged if name in row["suites"]]
        for name in dict.fromkeys(name for row in judged for name in row["suites"])
    }
    if any(len(points) > 1 for points in suites.values()):
        plots["suites"] = curve(suites, "tokens", "accuracy", "Skills")
    return plots


def _comparable(judged: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows with held-out texts only where they are the first row's: the end, which reads more of them, would be a
    jump in a curve."""
    first: dict[str, tuple[int, int | None]] = {}
    comparable: list[Mapping[str, Any]] = []
    for row in judged:
        scores = row["held_out"].items()
        sizes = {name: (score["documents"], score.get("bytes")) for name, score in scores}
        same = {name: score for name, score in scores if sizes[name] == first.setdefault(name, sizes[name])}
        comparable.append({**row, "held_out": same})
    return comparable


def _counted(judged: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """What a run's losses are counted by, and what its held-out texts are followed by."""
    score = next((candidate for row in judged for candidate in row["held_out"].values()), {"bits_per_byte": 0.0})
    return target_of(score), measure_of(score)[0]


def same_documents(judged: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By held-out text: the last row's own, and its measure of the same documents at the first and the last checkpoint
    that read just these."""
    comparable = _comparable(judged)
    scores_by_text: dict[str, dict[str, Any]] = {}
    for name, last in judged[-1]["held_out"].items() if judged else ():
        history = [row["held_out"][name] for row in comparable if name in row["held_out"]]
        scores_by_text[name] = {
            **last,
            "same_documents": history[0]["documents"],
            "first": measure_of(history[0])[1],
            "last": measure_of(history[-1])[1],
        }
    return scores_by_text


def tokens_by_source(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Tokens by source over the steps so far."""
    counts = Counter[str]()
    for row in rows:
        counts.update({k.removeprefix(TOKENS_PREFIX): n for k, n in row.items() if k.startswith(TOKENS_PREFIX)})
    return dict(counts)


def texts_tokens(rows: Sequence[Mapping[str, Any]]) -> int:
    """Tokens of the texts that were learned from over the steps so far, as they stand in the texts: where an objective
    says a text otherwise (spans cut out, sentinels in their place), more run through the model."""
    return sum(tokens_by_source(rows).values())


def facts(
    record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]] = ()
) -> dict[str, str]:
    """What is said first: how it stands, and at which speed. The time left is that of steps and, by what they took so
    far, of evaluations."""
    steps, tail = record.get("steps", 0), rows[-_TAIL:]
    summary = {"status": str(record.get("status", "begun")), "parameters": shown_count(record.get("parameters", 0))}
    if rows:
        seconds = sum(row["tokens"] / row["tokens_per_second"] for row in tail if row["tokens_per_second"])
        speed = sum(row["tokens"] for row in tail) / seconds if seconds else 0.0
        summary["step"] = f"{rows[-1]['step']:,} of {steps:,}"
        summary["tokens"] = shown_count(texts_tokens(rows))
        lost = [row["loss"] for row in tail if row["loss"] is not None]
        summary["loss"] = f"{sum(lost) / len(lost):.4f} over the last {len(tail)} steps" if lost else "not finite"
        skipped = sum("skipped" in row for row in rows)
        if skipped:
            summary["steps skipped by the guard"] = f"{skipped:,}"
        summary["tokens a second"] = f"{speed:,.0f}"
        shares = [(row["mfu"], row["tokens"] / row["tokens_per_second"]) for row in tail if row.get("mfu")]
        if shares:
            mean = sum(share * duration for share, duration in shares) / sum(step_seconds for _, step_seconds in shares)
            summary["MFU"] = f"{mean:.1%} ({record['peak']['convention']})"
        seconds_per_step = seconds / len(tail)
        if judged and judged[-1]["step"]:
            seconds_per_step += sum(row.get("seconds", 0.0) for row in judged if row["step"]) / judged[-1]["step"]
        seconds_left = (steps - rows[-1]["step"]) * seconds_per_step
        if seconds_left > 0:
            summary["time left at this speed"] = f"{seconds_left / 60:.1f} minutes"
    return summary


# --- the model card

_TASKS = {
    "decoder": ("text-generation", "It continues text"),
    "encoder": ("fill-mask", "It says which tokens are hidden in a text"),
    "encoder–decoder": ("text2text-generation", "It writes what is missing in a text"),
}
"""What a base of such a kind is for: the Hub's name of it, and in words."""
_EMBEDS = ("feature-extraction", "It makes a vector of a text, near those of texts like it")
"""The same of one that learned to tell pairs apart, of any kind."""


def model_card(record: Mapping[str, Any], last: Mapping[str, Any] | None, parent: str | None) -> str:
    """README.md of a base. record: pretraining.json; last: the last checkpoint's row."""
    import jinja2

    sources, target = record["data"]["sources"], _counted([last] if last else [])[0]
    task, capability = _EMBEDS if target == "pair" else _TASKS[record["kind"]]
    head = {"library_name": "transformers", "pipeline_tag": task, "tags": ["bedplate", record["family"]]}
    head |= {} if parent is None else {"base_model": parent}
    baselines: Mapping[str, Mapping[str, float]] = record.get("baselines") or {}
    names = list(dict.fromkeys(name for scores in baselines.values() for name in scores))
    scores = [
        (
            *(name, score["documents"]),
            *("–" if score[key] is None else f"{score[key]:.3f}" for key in ("bits_per_byte", "nats_per_token")),
            *(f"{baselines[name][baseline]:.3f}" if name in baselines else "–" for baseline in names),
        )
        for name, score in (last["held_out"].items() if last else ())
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bedplate.pretraining.page"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md.jinja").render(
        head=yaml.safe_dump(head, sort_keys=False),
        r=record,
        parent=parent,
        sources=[
            (
                *(name, source["documents"], source["tokens"], record["seen"].get(name, 0)),
                *(source["licence"] or "not stated", source["sha256"][:12]),
            )
            for name, source in sources.items()
        ],
        unlicensed=any(source["licence"] is None for source in sources.values()),
        scores=scores,
        target=target,
        baselines=names,
        suites=[(n, s["measure"], f"{s['value']:.3f}", s["n"]) for n, s in (last["suites"].items() if last else ())],
        capability=capability,
        shown=shown_count,
        cell=cell,
        table=lambda head, rows: "\n".join(table(head, rows)),
    )
