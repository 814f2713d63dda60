"""Learning curves: what each rung makes of 50, 100, 200, … labels, on valid alone (test is not in a context).

A draw of the labels is an order of whole groups, and its sets are nested. Rungs are climbed as they are, on a context
whose train is the set, with one seed of their own for each draw; each point is kept, and the same command goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bedplate.adaptation.climb.candidates import Candidate
from bedplate.adaptation.climb.climb import climb
from bedplate.adaptation.climb.kept import PLAN_FILE, RESULT_FILE
from bedplate.adaptation.context.outcome import Result, RungOutcome
from bedplate.adaptation.curve.crossover import Crossing, OverDraws, Resamples, crossing
from bedplate.adaptation.curve.curve_values import CurveRuns, SizedRung, TunedPair, curve_values
from bedplate.adaptation.rungs.rung import Side
from bedplate.core.errors import UsageError
from bedplate.core.progress import Progress
from bedplate.data.splits import Record, nested
from bedplate.evaluation.examples import Example
from bedplate.report.schema_curve import Curve

DRAWS = 3
DIRECTORY = "curve"


def possible_sizes(asked: Sequence[int], train: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The sizes to do, ascending, and what cannot be done: all of train stands for what is more than it has.

    UsageError for sizes that are no counts of labels, are named twice, or are all more than train has.
    """
    if not asked or any(size < 2 for size in asked) or len(set(asked)) < len(asked):
        raise UsageError(f"--curve {','.join(map(str, asked))}: name different numbers of labels from 2 on")
    over = [size for size in sorted(asked) if size > train]
    if len(over) == len(asked):
        raise UsageError(f"--curve {','.join(map(str, asked))}: train has {train:,} rows; name sizes up to that")
    notes = [f"{size:,} labels are more than train has; the last point is all {train:,} of it" for size in over]
    return tuple(sorted({*(size for size in asked if size <= train), *([train] if over else [])})), tuple(notes)


def parse_sizes(text: str) -> list[int]:
    """Sizes of `50,100,200`. UsageError for anything else."""
    try:
        return [int(part.strip().replace("_", "")) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--curve {text!r}: write numbers of labels, such as 50,100,200,500") from None


def learning_curve(
    candidates: Mapping[str, Candidate], outcomes: Mapping[str, RungOutcome], asked: Sequence[int]
) -> Curve:
    """report.json's `curve`. candidates, outcomes: those of the ladder and what became of them; those that need no
    labels are flat lines.

    What the time does not allow is left out and said. Raises UsageError for sizes that cannot be.
    """
    context = next(iter(candidates.values())).context
    sizes, left_out = possible_sizes(asked, len(context.train))
    shown = {name: one for name, one in candidates.items() if one.traits.no_curve is None}
    learning = [one for one in shown.values() if one.traits.learns and one.unfit is None]
    points, missing = _points(learning, sizes)
    results = {name: o.result for name, o in outcomes.items() if o.result is not None}
    flat = {name: results[name] for name, one in shown.items() if not one.traits.learns and name in results}
    sides: dict[str, Side] = {name: one.traits.side for name, one in shown.items()}
    some = next((result.evaluation for point in points for result in point.results.values()), None)
    resamples = None if some is None else Resamples(some, context.seed)
    pairs = [] if resamples is None else _crossings(resamples, points, flat, sides)
    curve = CurveRuns(asked, sizes, points, flat, resamples, pairs, (*left_out, *missing))
    return curve_values(curve, context.task.metric_name, len(context.valid), context.spec.machine.usd_per_hour)


# --- points


def _points(learning: Sequence[Candidate], sizes: Sequence[int]) -> tuple[list[SizedRung], list[str]]:
    """All points that the time allows, a draw at a time, small sizes and cheap rungs first; and what is missing."""
    results: dict[tuple[str, int], dict[int, Result]] = {(one.name, size): {} for one in learning for size in sizes}
    labels: dict[int, dict[int, int]] = {size: {} for size in sizes}
    missing: dict[tuple[str, str], list[str]] = {}
    if not learning:
        return [], ["no rung of this ladder learns from labels"]
    context = learning[0].context
    records = [Record(e.id, e.row_hash, e.target, e.group) for e in context.train]
    by_id = {e.id: e for e in context.train}
    with Progress("learning curve", DRAWS * len(results), "points") as bar:
        for draw in range(context.seed, context.seed + DRAWS):
            for size, drawn in zip(sizes, nested(records, sizes, draw), strict=True):
                train = [by_id[record.id] for record in drawn]
                labels[size][draw] = len(train)
                for one in learning:
                    outcome = _point(one, train, size, draw)
                    bar.advance(1, rung=one.name, labels=len(train))
                    if outcome.result is None:
                        why = f"{outcome.status}, {outcome.reason}"
                        missing.setdefault((one.name, why), []).append(f"{size:,} labels (draw {draw})")
                    else:
                        results[one.name, size][draw] = outcome.result
    done = [SizedRung(name, size, found, labels[size]) for (name, size), found in results.items() if found]
    return done, [f"{name} at {', '.join(places)}: {why}" for (name, why), places in missing.items()]


def _point(candidate: Candidate, train: Sequence[Example], size: int, draw: int) -> RungOutcome:
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


# --- crossings


def _crossings(
    resamples: Resamples, points: Sequence[SizedRung], flat: Mapping[str, Result], sides: Mapping[str, Side]
) -> list[TunedPair]:
    """Every tuned rung against every prompted one; first the pair of the best of each side at the most labels."""
    by_rung: dict[str, dict[int, SizedRung]] = {}
    for point in points:
        by_rung.setdefault(point.rung, {})[point.size] = point
    flats = {name: OverDraws({0: result.evaluation}, flat=True) for name, result in flat.items()}
    tuned = _best_first({name: found for name, found in by_rung.items() if sides[name] == "weights"}, {})
    prompted = _best_first({name: found for name, found in by_rung.items() if sides[name] == "prompt"}, flats)
    found: list[TunedPair] = []
    for ours in tuned:
        for theirs in prompted:
            pair = _pair(resamples, by_rung[ours], by_rung.get(theirs), flats.get(theirs))
            if pair is not None:
                sizes, crossed = pair
                found.append(TunedPair(ours, theirs, sizes, crossed))
    return found


def _best_first(by_rung: Mapping[str, Mapping[int, SizedRung]], flats: Mapping[str, OverDraws]) -> list[str]:
    last = {name: found[max(found)].measured.estimate for name, found in by_rung.items()}
    last |= {name: one.estimate for name, one in flats.items()}
    return sorted(last, key=lambda name: (-last[name], name))


def _pair(
    resamples: Resamples, ours: Mapping[int, SizedRung], theirs: Mapping[int, SizedRung] | None, flat: OverDraws | None
) -> tuple[tuple[int, ...], Crossing] | None:
    """Over the sizes at which both have the first draw, with the draws that both have at all of them."""
    sizes = sorted(ours if theirs is None else ours.keys() & theirs.keys())
    sides = [ours] if theirs is None else [ours, theirs]
    every = [side[size].results.keys() for side in sides for size in sizes]
    first = min(every[0]) if every else None
    sizes = [size for size in sizes if all(first in side[size].results for side in sides)]
    draws = set.intersection(*(set(side[size].results) for side in sides for size in sizes)) if sizes else set[int]()
    if not draws:
        return None

    def measured(side: Mapping[int, SizedRung], size: int) -> OverDraws:
        return OverDraws({draw: side[size].results[draw].evaluation for draw in draws})

    labels = [sum(ours[size].labels[draw] for draw in draws) / len(draws) for size in sizes]
    against = [flat if theirs is None else measured(theirs, size) for size in sizes]
    assert all(one is not None for one in against)
    crossed = crossing(
        resamples, labels, [measured(ours, size) for size in sizes], [one for one in against if one is not None]
    )
    return tuple(sizes), crossed
