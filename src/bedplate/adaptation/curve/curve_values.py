"""A learning curve as report.json has it, and what it says in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bedplate.adaptation.context.outcome import RungResult
from bedplate.adaptation.curve.crossover import CONFIDENCE, RESAMPLES, Crossing, OverDraws, Resamples
from bedplate.economics.costs.decisions.decision import why_never
from bedplate.report.schema_parts import BreakEven, Crossover, Curve, Difference, Draw, Flat, Labels, Point


@dataclass(frozen=True)
class SizedRung:
    """A rung at a size: its result for each draw, and how many labels each draw had."""

    rung: str
    size: int
    results: Mapping[int, RungResult]
    labels: Mapping[int, int]

    @property
    def measured(self) -> OverDraws:
        return OverDraws({draw: result.evaluation for draw, result in self.results.items()})

    @property
    def mean_labels(self) -> float:
        return sum(self.labels[draw] for draw in self.results) / len(self.results)


@dataclass(frozen=True)
class TunedPair:
    """A tuned rung against a prompted one over the sizes that both have."""

    tuned: str
    prompted: str
    sizes: tuple[int, ...]
    crossing: Crossing


@dataclass(frozen=True)
class CurveRuns:
    """All of it. flat: rungs that need no labels. resamples: None where there is no point. pairs: first the one that is
    spoken of. left_out: sentences."""

    requested_sizes: Sequence[int]
    sizes: Sequence[int]
    points: Sequence[SizedRung]
    flat: Mapping[str, RungResult]
    resamples: Resamples | None
    pairs: Sequence[TunedPair]
    left_out: Sequence[str]


def curve_values(curve: CurveRuns, metric: str, valid: int, rate: float) -> Curve:
    """report.json's `curve`. valid: how many rows it has; rate: USD of an hour of this machine."""
    draws = tuple(sorted({draw for point in curve.points for draw in point.results}))
    crossovers = tuple(_crossover(pair) for pair in curve.pairs)
    break_even = tuple(_break_even(curve.pairs[0], curve, rate)) if curve.pairs else ()
    resamples = curve.resamples
    return Curve(
        metric=metric,
        split="valid",
        confidence=CONFIDENCE,
        asked=tuple(curve.requested_sizes),
        sizes=tuple(curve.sizes),
        seeds=draws,
        points=() if resamples is None else tuple(_point(point, resamples, rate) for point in curve.points),
        flat=()
        if resamples is None
        else tuple(_flat(name, result, resamples, rate) for name, result in curve.flat.items()),
        crossovers=crossovers,
        break_even=break_even,
        left_out=tuple(curve.left_out),
        says=tuple(curve_sentences(crossovers, break_even, [point.mean_labels for point in curve.points])),
        method=_method(len(draws), valid),
    )


def _point(point: SizedRung, resamples: Resamples, rate: float) -> Point:
    measured = point.measured
    fit, call = cost_of(list(point.results.values()), rate)
    return Point(
        rung=point.rung,
        size=point.size,
        labels=point.mean_labels,
        estimate=measured.estimate,
        interval=resamples.interval(measured),
        draws=tuple(
            Draw(
                seed=draw,
                labels=point.labels[draw],
                estimate=result.evaluation.estimate,
                train_seconds=result.train_seconds,
            )
            for draw, result in point.results.items()
        ),
        usd_per_1k_calls=call * 1000,
        train_usd=fit,
    )


def _flat(name: str, result: RungResult, resamples: Resamples, rate: float) -> Flat:
    measured = OverDraws({0: result.evaluation}, flat=True)
    fit, call = cost_of([result], rate)
    interval = resamples.interval(measured)
    return Flat(rung=name, estimate=measured.estimate, interval=interval, usd_per_1k_calls=call * 1000, train_usd=fit)


def _crossover(pair: TunedPair) -> Crossover:
    crossing = pair.crossing
    return Crossover(
        tuned=pair.tuned,
        prompted=pair.prompted,
        labels=_end(crossing.labels),
        interval=None if crossing.interval is None else (_end(crossing.interval[0]), _end(crossing.interval[1])),
        crosses=crossing.crosses,
        draws=crossing.draws,
        differences=tuple(
            Difference(labels=labels, difference=difference, interval=interval)
            for labels, difference, interval in crossing.differences
        ),
    )


def _end(value: float) -> Labels:
    if value == float("-inf"):
        return "below"
    return "beyond" if value == float("inf") else value


def _break_even(pair: TunedPair, curve: CurveRuns, rate: float) -> Iterator[BreakEven]:
    """At each size of the pair."""
    by_place = {(point.rung, point.size): list(point.results.values()) for point in curve.points}
    for size in pair.sizes:
        ours = by_place[pair.tuned, size]
        theirs = by_place.get((pair.prompted, size)) or [curve.flat[pair.prompted]]
        calls, reason = pays_from(pair.tuned, pair.prompted, cost_of(ours, rate), cost_of(theirs, rate))
        yield BreakEven(tuned=pair.tuned, prompted=pair.prompted, size=size, calls=calls, reason=reason)


# --- sentences


def curve_sentences(
    crossovers: Sequence[Crossover], break_even: Sequence[BreakEven], labels: Sequence[float]
) -> list[str]:
    """The crossover of the first pair, and from when on its tuned rung has paid for itself. labels: all sizes' own."""
    if not crossovers:
        return ["There is no prompted and no tuned rung at one size, so nothing is said of a crossover."]
    return [_crossover_says(crossovers[0], min(labels), max(labels)), _pays_says(crossovers[0], break_even)]


def _crossover_says(crossover: Crossover, min_labels: float, max_labels: float) -> str:
    names = f"tuning ({crossover.tuned}) overtakes prompting ({crossover.prompted})"
    at = crossover.labels
    if at == "beyond":
        sentence = f"On this task {names} not within the {max_labels:,.0f} labels there are"
    elif at == "below":
        sentence = f"On this task {names} at {min_labels:,.0f} labels already, the fewest that were tried"
    else:
        sentence = f"On this task {names} at about {at:,.0f} labels"
    if crossover.interval is None:
        return f"{sentence}; valid has too few groups for an interval."
    words = {"below": f"{min_labels:,.0f} or fewer", "beyond": f"more than the {max_labels:,.0f} there are"}
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


Cost = tuple[float, float]
"""USD of making it (training, or the search of a prompt), and of one call."""


def cost_of(results: Sequence[RungResult], usd_per_hour: float) -> Cost:
    """The cost of a rung, averaged over its draws."""
    fixed_costs = [r.train_seconds * usd_per_hour / 3600 + r.usd for r in results]
    calls = [r.price(usd_per_hour, r.latency.mean) for r in results]
    return sum(fixed_costs) / len(fixed_costs), sum(calls) / len(calls)


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
