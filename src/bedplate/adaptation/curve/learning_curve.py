"""Learning curves: what each rung makes of 50, 100, 200, … labels, on valid alone (test is not in a context).

A draw of the labels is an order of whole groups, and its sets are nested. Rungs are climbed as they are, on a context
whose train is the set, with one seed of their own for each draw; each point is kept, and the same command goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bedplate.adaptation.context.outcome import RungOutcome, RungResult
from bedplate.adaptation.curve.crossover import CONFIDENCE, RESAMPLES, OverDraws, Resamples, crossing
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.run_rung import climb
from bedplate.adaptation.search.rung_files import PLAN_FILE, RESULT_FILE
from bedplate.core.errors import UsageError
from bedplate.core.progress import Progress
from bedplate.data.splits import SplitRecord, nested
from bedplate.economics.costs.decisions.decision import why_never
from bedplate.evaluation.examples import Example
from bedplate.report.schema_parts import BreakEven, Crossover, Curve, Difference, Draw, Flat, Labels, Point

DRAWS = 3
DIRECTORY = "curve"


@dataclass(frozen=True)
class SizedRung:
    """A rung at a size: its result for each draw, and how many labels each draw had. One that learns from no labels
    has size 0 and one draw, which stands for all."""

    rung: str
    size: int
    results: Mapping[int, RungResult]
    labels: Mapping[int, int]

    def measured(self, draws: Sequence[int] | None = None) -> OverDraws:
        """Its evaluations of these draws, by default of all."""
        chosen = self.results if draws is None or not self.size else draws
        return OverDraws({draw: self.results[draw].evaluation for draw in chosen}, flat=not self.size)

    def mean_labels(self, draws: Sequence[int]) -> float:
        return sum(self.labels[draw] for draw in draws) / len(draws)

    def cost(self, usd_per_hour: float) -> Cost:
        """Averaged over its draws."""
        results = self.results.values()
        fixed_costs = sum(r.train_seconds * usd_per_hour / 3600 + r.usd for r in results)
        calls = sum(r.price(usd_per_hour, r.latency.mean) for r in results)
        return fixed_costs / len(results), calls / len(results)


Cost = tuple[float, float]
"""USD of making it (training, or the search of a prompt), and of one call."""


def possible_sizes(requested_sizes: Sequence[int], train: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The sizes to do, ascending, and what cannot be done: all of train stands for what is more than it has.

    UsageError for sizes that are no counts of labels, are named twice, or are all more than train has.
    """
    option = f"--curve {','.join(map(str, requested_sizes))}"
    if not requested_sizes or min(requested_sizes) < 2 or len(set(requested_sizes)) < len(requested_sizes):
        raise UsageError(f"{option}: name different numbers of labels from 2 on")
    over = [size for size in sorted(requested_sizes) if size > train]
    if len(over) == len(requested_sizes):
        raise UsageError(f"{option}: train has {train:,} rows; name sizes up to that")
    notes = [f"{size:,} labels are more than train has; the last point is all {train:,} of it" for size in over]
    return tuple(sorted({min(size, train) for size in requested_sizes})), tuple(notes)


def learning_curve(
    candidates: Mapping[str, Candidate], outcomes: Mapping[str, RungOutcome], requested_sizes: Sequence[int]
) -> Curve:
    """report.json's `curve`. candidates, outcomes: those of the ladder and what became of them; those that need no
    labels are flat lines.

    What the time does not allow is left out and said. Raises UsageError for sizes that cannot be.
    """
    context = next(iter(candidates.values())).context
    sizes, notes = possible_sizes(requested_sizes, len(context.train))
    shown = {name: candidate for name, candidate in candidates.items() if candidate.traits.no_curve is None}
    learning = [candidate for candidate in shown.values() if candidate.traits.learns and candidate.unfit is None]
    points, missing = _points(learning, sizes)
    flat: list[SizedRung] = []
    crossovers: list[Crossover] = []
    break_even: list[BreakEven] = []
    shown_points: list[Point] = []
    shown_flat: list[Flat] = []
    if points:
        for name, candidate in shown.items():
            result = outcomes[name].result
            if not candidate.traits.learns and result is not None and result.evaluation.n == len(context.valid):
                flat.append(SizedRung(name, 0, {0: result}, {}))
        rate = context.spec.machine.usd_per_hour
        resamples = Resamples(next(iter(points[0].results.values())).evaluation, context.seed)
        shown_points = [_point(point, resamples, rate) for point in points]
        shown_flat = [Flat(**_measures(rung, resamples, rate)) for rung in flat]
        by_rung: dict[str, dict[int, SizedRung]] = {}
        for point in (*points, *flat):
            by_rung.setdefault(point.rung, {})[point.size] = point
        for ours in _best_first(by_rung, shown, "weights"):
            for theirs in _best_first(by_rung, shown, "prompt"):
                pair = _pair(resamples, by_rung[ours], by_rung[theirs])
                if pair is not None and not crossovers:  # the pair that is spoken of
                    break_even = list(_break_even(pair[0], by_rung[ours], by_rung[theirs], rate))
                crossovers += () if pair is None else (pair[1],)
    draws = tuple(sorted({draw for point in points for draw in point.results}))
    return Curve(
        metric=context.task.metric_name,
        split="valid",
        confidence=CONFIDENCE,
        asked=tuple(requested_sizes),
        sizes=sizes,
        seeds=draws,
        points=tuple(shown_points),
        flat=tuple(shown_flat),
        crossovers=tuple(crossovers),
        break_even=tuple(break_even),
        left_out=(*notes, *missing),
        says=tuple(curve_sentences(crossovers, break_even, [point.labels for point in shown_points])),
        method=_method(len(draws), len(context.valid)),
    )


# --- points


def _points(learning: Sequence[Candidate], sizes: Sequence[int]) -> tuple[list[SizedRung], list[str]]:
    """All points that the time allows, a draw at a time, small sizes and cheap rungs first; and what is missing."""
    results: dict[tuple[str, int], dict[int, RungResult]] = {
        (candidate.name, size): {} for candidate in learning for size in sizes
    }
    labels: dict[int, dict[int, int]] = {size: {} for size in sizes}
    missing: dict[tuple[str, str], list[str]] = {}
    if not learning:
        return [], ["no rung of this ladder learns from labels"]
    context = learning[0].context
    records = [SplitRecord(e.id, e.row_hash, e.target, e.group) for e in context.train]
    by_id = {e.id: e for e in context.train}
    with Progress("learning curve", DRAWS * len(results), "points") as bar:
        for draw in range(context.seed, context.seed + DRAWS):
            for size, drawn in zip(sizes, nested(records, sizes, draw), strict=True):
                train = [by_id[record.id] for record in drawn]
                labels[size][draw] = len(train)
                for candidate in learning:
                    outcome = _climb_point(candidate, train, size, draw)
                    bar.advance(1, rung=candidate.name, labels=len(train))
                    if outcome.result is None:
                        why = f"{outcome.status}, {outcome.reason}"
                        missing.setdefault((candidate.name, why), []).append(f"{size:,} labels (draw {draw})")
                    else:
                        results[candidate.name, size][draw] = outcome.result
    sized_rungs = [SizedRung(name, size, by_draw, labels[size]) for (name, size), by_draw in results.items() if by_draw]
    return sized_rungs, [f"{name} at {', '.join(places)}: {why}" for (name, why), places in missing.items()]


def _climb_point(candidate: Candidate, train: Sequence[Example], size: int, draw: int) -> RungOutcome:
    """One rung on one set, kept in its own directory; of a finished one only what was measured stays."""
    if not train:
        return RungOutcome(candidate.name, "skipped", "every group has more rows than that")
    context, rung = candidate.context, candidate.rung.name
    directory = context.out / DIRECTORY / rung / f"{size}-{draw}"
    outcome = climb(context.part(train, directory, draw), rung, directory, needs_skin=False)
    if outcome.result is not None:
        _keep_results(directory)
    return outcome


def _keep_results(directory: Path) -> None:
    """Remove the point's weights: no skin of a curve is judged on test, so none is to be served."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (PLAN_FILE, RESULT_FILE):
            path.unlink()


def _measures(rung: SizedRung, resamples: Resamples, rate: float) -> dict[str, Any]:
    """The fields of a `Flat`, which every point has as well."""
    measured, (fit, call) = rung.measured(), rung.cost(rate)
    values = {"rung": rung.rung, "estimate": measured.estimate, "interval": resamples.interval(measured)}
    return values | {"usd_per_1k_calls": call * 1000, "train_usd": fit}


def _point(point: SizedRung, resamples: Resamples, rate: float) -> Point:
    return Point(
        **_measures(point, resamples, rate),
        size=point.size,
        labels=point.mean_labels(list(point.results)),
        draws=tuple(
            Draw(
                seed=draw,
                labels=point.labels[draw],
                estimate=result.evaluation.estimate,
                train_seconds=result.train_seconds,
            )
            for draw, result in point.results.items()
        ),
    )


# --- crossings


def _best_first(
    by_rung: Mapping[str, Mapping[int, SizedRung]], candidates: Mapping[str, Candidate], side: str
) -> list[str]:
    """The rungs of a side, by their estimates at the most labels."""
    last = {
        name: by_size[max(by_size)].measured().estimate
        for name, by_size in by_rung.items()
        if candidates[name].traits.side == side and (side == "prompt" or 0 not in by_size)
    }
    return sorted(last, key=lambda name: (-last[name], name))


def _pair(
    resamples: Resamples, ours: Mapping[int, SizedRung], theirs: Mapping[int, SizedRung]
) -> tuple[list[int], Crossover] | None:
    """A tuned rung against a prompted one, over the sizes at which both have the first draw, with the draws that both
    have at all of them; None where there are none."""
    sides = [ours] if 0 in theirs else [ours, theirs]
    sizes = sorted(set.intersection(*map(set, sides)))
    first = min(ours[sizes[0]].results) if sizes else None
    sizes = [size for size in sizes if all(first in side[size].results for side in sides)]
    shared = set.intersection(*(set(side[size].results) for side in sides for size in sizes)) if sizes else set[int]()
    if not shared:
        return None
    draws = sorted(shared)
    tuned = [ours[size] for size in sizes]
    prompted = [theirs.get(0) or theirs[size] for size in sizes]
    crossed = crossing(
        resamples,
        [point.mean_labels(draws) for point in tuned],
        [point.measured(draws) for point in tuned],
        [point.measured(draws) for point in prompted],
    )
    interval = None if crossed.interval is None else (_end(crossed.interval[0]), _end(crossed.interval[1]))
    return sizes, Crossover(
        tuned=tuned[0].rung,
        prompted=prompted[0].rung,
        labels=_end(crossed.labels),
        interval=interval,
        crosses=crossed.crosses,
        draws=crossed.draws,
        differences=tuple(
            Difference(labels=labels, difference=difference, interval=ends)
            for labels, difference, ends in crossed.differences
        ),
    )


def _end(value: float) -> Labels:
    if value == float("-inf"):
        return "below"
    return "beyond" if value == float("inf") else value


def _break_even(
    sizes: Sequence[int], ours: Mapping[int, SizedRung], theirs: Mapping[int, SizedRung], rate: float
) -> Iterator[BreakEven]:
    for size in sizes:
        tuned, prompted = ours[size], theirs.get(0) or theirs[size]
        calls, reason = pays_from(tuned.rung, prompted.rung, tuned.cost(rate), prompted.cost(rate))
        yield BreakEven(tuned=tuned.rung, prompted=prompted.rung, size=size, calls=calls, reason=reason)


# --- sentences


def curve_sentences(
    crossovers: Sequence[Crossover], break_even: Sequence[BreakEven], labels: Sequence[float]
) -> list[str]:
    """The crossover of the first pair, and from when on its tuned rung has paid for itself. labels: all sizes' own."""
    if not crossovers:
        return ["No size has both a tuned and a prompted rung, so there is no crossover to report."]
    return [_crossover_says(crossovers[0], min(labels), max(labels)), _pays_says(crossovers[0], break_even)]


def _crossover_says(crossover: Crossover, min_labels: float, max_labels: float) -> str:
    tuned, prompted = f"tuning ({crossover.tuned})", f"prompting ({crossover.prompted})"
    names, at = f"{tuned} overtakes {prompted}", crossover.labels
    if at == "beyond":
        sentence = f"On this task {tuned} does not overtake {prompted} within the {max_labels:,.0f} labels available"
    elif at == "below":
        sentence = f"On this task {names} already at {min_labels:,.0f} labels, the fewest that were tried"
    else:
        sentence = f"On this task {names} at about {at:,.0f} labels"
    if crossover.interval is None:
        return f"{sentence}; valid has too few groups for an interval."
    words = {"below": f"{min_labels:,.0f} or fewer", "beyond": f"more than the {max_labels:,.0f} available"}
    ends = [words[end] if isinstance(end, str) else f"{end:,.0f}" for end in crossover.interval]
    range_text = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    return (
        f"{sentence} ({CONFIDENCE:.0%} interval: {range_text}; it overtakes in {crossover.crosses:.0%} of the "
        "resamples)."
    )


def _pays_says(crossover: Crossover, break_even: Sequence[BreakEven]) -> str:
    """At the first size from the crossover on, or at the largest."""
    at = crossover.labels
    after = [row for row in break_even if at == "below" or (isinstance(at, float) and row.size >= at)]
    row = after[0] if after else break_even[-1]
    calls = row.calls
    payback = "never" if calls is None else "from the first call" if calls == 0 else f"after about {calls:,.0f} calls"
    return f"At {row.size:,} labels {row.tuned} pays for itself against {row.prompted} {payback}: {row.reason}."


def _method(draws: int, valid: int) -> str:
    spread = (
        f"{draws} draws of the labels (nested sets of whole groups) with a seed each"
        if draws > 1
        else "one draw of the labels, so how much draws differ is not in it"
    )
    return (
        f"Estimates are means over {spread}; at all of train draws differ by their seed only. Intervals are at "
        f"{CONFIDENCE:.0%}, from {RESAMPLES:,} resamples of valid's whole groups and of the draws together, the same "
        "for all rungs. The pair that is spoken of is the best of each side at the most labels. What a rung chooses on "
        f"valid (phrasing, demonstrations, layer) it chooses on the same {valid:,} rows at every size: these labels "
        "come on top, and searched rungs read a little high."
    )


def pays_from(tuned: str, prompted: str, ours: Cost, theirs: Cost) -> tuple[float | None, str]:
    """Calls from which on `tuned` has cost less in all (0: from the first; None: never), and why."""
    extra, saved = ours[0] - theirs[0], theirs[1] - ours[1]
    if extra <= 0:
        if saved >= 0:
            return 0.0, f"it costs no more to make, and ${saved * 1000:.3g} less per 1,000 calls"
        return None, (
            f"it costs ${-extra:.3g} less to make, but ${-saved * 1000:.3g} more per 1,000 calls, which is more after "
            f"{extra / saved:,.0f} calls"
        )
    if saved <= 0:
        return None, why_never(tuned, prompted, {"computing": -saved})
    return extra / saved, f"it costs ${extra:.3g} more to make, and ${saved * 1000:.3g} less per 1,000 calls"
