"""Learning curves: what each rung makes of 50, 100, 200, … labels, on valid alone (test is not in a context).

A draw of the labels is an order of whole groups, and its sets are nested. Rungs are climbed as they are, on a context
whose train is the set, with one seed of their own for each draw; each point is kept, and the same command goes on.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bedplate.adaptation.context.outcome import RungOutcome, RungResult
from bedplate.adaptation.curve.crossover import Crossing, OverDraws, Resamples, crossing
from bedplate.adaptation.curve.curve_values import CurveRuns, SizedRung, TunedPair, curve_values
from bedplate.adaptation.rungs.rung import Side
from bedplate.adaptation.search.candidates import Candidate
from bedplate.adaptation.search.run_rung import climb
from bedplate.adaptation.search.rung_files import PLAN_FILE, RESULT_FILE
from bedplate.core.errors import UsageError
from bedplate.core.progress import Progress
from bedplate.data.splits import SplitRecord, nested
from bedplate.evaluation.examples import Example
from bedplate.report.schema_parts import Curve

DRAWS = 3
DIRECTORY = "curve"


def possible_sizes(requested_sizes: Sequence[int], train: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The sizes to do, ascending, and what cannot be done: all of train stands for what is more than it has.

    UsageError for sizes that are no counts of labels, are named twice, or are all more than train has.
    """
    if (
        not requested_sizes
        or any(size < 2 for size in requested_sizes)
        or len(set(requested_sizes)) < len(requested_sizes)
    ):
        raise UsageError(f"--curve {','.join(map(str, requested_sizes))}: name different numbers of labels from 2 on")
    over = [size for size in sorted(requested_sizes) if size > train]
    if len(over) == len(requested_sizes):
        raise UsageError(
            f"--curve {','.join(map(str, requested_sizes))}: train has {train:,} rows; name sizes up to that"
        )
    notes = [f"{size:,} labels are more than train has; the last point is all {train:,} of it" for size in over]
    return tuple(sorted({*(size for size in requested_sizes if size <= train), *([train] if over else [])})), tuple(
        notes
    )


def parse_sizes(text: str) -> list[int]:
    """Sizes of `50,100,200`. UsageError for anything else."""
    try:
        return [int(part.strip().replace("_", "")) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--curve {text!r}: write numbers of labels, such as 50,100,200,500") from None


def learning_curve(
    candidates: Mapping[str, Candidate], outcomes: Mapping[str, RungOutcome], requested_sizes: Sequence[int]
) -> Curve:
    """report.json's `curve`. candidates, outcomes: those of the ladder and what became of them; those that need no
    labels are flat lines.

    What the time does not allow is left out and said. Raises UsageError for sizes that cannot be.
    """
    context = next(iter(candidates.values())).context
    sizes, left_out = possible_sizes(requested_sizes, len(context.train))
    shown = {name: candidate for name, candidate in candidates.items() if candidate.traits.no_curve is None}
    learning = [candidate for candidate in shown.values() if candidate.traits.learns and candidate.unfit is None]
    points, missing = _points(learning, sizes)
    results = {name: o.result for name, o in outcomes.items() if o.result is not None}
    flat = {name: results[name] for name, candidate in shown.items() if not candidate.traits.learns and name in results}
    sides: dict[str, Side] = {name: candidate.traits.side for name, candidate in shown.items()}
    sample_evaluation = next((result.evaluation for point in points for result in point.results.values()), None)
    resamples = None if sample_evaluation is None else Resamples(sample_evaluation, context.seed)
    pairs = [] if resamples is None else _crossings(resamples, points, flat, sides)
    curve = CurveRuns(requested_sizes, sizes, points, flat, resamples, pairs, (*left_out, *missing))
    return curve_values(curve, context.task.metric_name, len(context.valid), context.spec.machine.usd_per_hour)


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
                    outcome = _point(candidate, train, size, draw)
                    bar.advance(1, rung=candidate.name, labels=len(train))
                    if outcome.result is None:
                        why = f"{outcome.status}, {outcome.reason}"
                        missing.setdefault((candidate.name, why), []).append(f"{size:,} labels (draw {draw})")
                    else:
                        results[candidate.name, size][draw] = outcome.result
    sized_rungs = [SizedRung(name, size, by_draw, labels[size]) for (name, size), by_draw in results.items() if by_draw]
    return sized_rungs, [f"{name} at {', '.join(places)}: {why}" for (name, why), places in missing.items()]


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
    resamples: Resamples, points: Sequence[SizedRung], flat: Mapping[str, RungResult], sides: Mapping[str, Side]
) -> list[TunedPair]:
    """Every tuned rung against every prompted one; first the pair of the best of each side at the most labels."""
    by_rung: dict[str, dict[int, SizedRung]] = {}
    for point in points:
        by_rung.setdefault(point.rung, {})[point.size] = point
    flats = {name: OverDraws({0: result.evaluation}, flat=True) for name, result in flat.items()}
    tuned = _best_first({name: by_size for name, by_size in by_rung.items() if sides[name] == "weights"}, {})
    prompted = _best_first({name: by_size for name, by_size in by_rung.items() if sides[name] == "prompt"}, flats)
    pairs: list[TunedPair] = []
    for ours in tuned:
        for theirs in prompted:
            pair = _pair(resamples, by_rung[ours], by_rung.get(theirs), flats.get(theirs))
            if pair is not None:
                sizes, crossed = pair
                pairs.append(TunedPair(ours, theirs, sizes, crossed))
    return pairs


def _best_first(by_rung: Mapping[str, Mapping[int, SizedRung]], flats: Mapping[str, OverDraws]) -> list[str]:
    last = {name: by_size[max(by_size)].measured.estimate for name, by_size in by_rung.items()}
    last |= {name: flat.estimate for name, flat in flats.items()}
    return sorted(last, key=lambda name: (-last[name], name))


def _pair(
    resamples: Resamples, ours: Mapping[int, SizedRung], theirs: Mapping[int, SizedRung] | None, flat: OverDraws | None
) -> tuple[tuple[int, ...], Crossing] | None:
    """Over the sizes at which both have the first draw, with the draws that both have at all of them."""
    sizes = sorted(ours if theirs is None else ours.keys() & theirs.keys())
    sides = [ours] if theirs is None else [ours, theirs]
    draw_sets = [side[size].results.keys() for side in sides for size in sizes]
    first = min(draw_sets[0]) if draw_sets else None
    sizes = [size for size in sizes if all(first in side[size].results for side in sides)]
    draws = set.intersection(*(set(side[size].results) for side in sides for size in sizes)) if sizes else set[int]()
    if not draws:
        return None

    def measured(side: Mapping[int, SizedRung], size: int) -> OverDraws:
        return OverDraws({draw: side[size].results[draw].evaluation for draw in draws})

    labels = [sum(ours[size].labels[draw] for draw in draws) / len(draws) for size in sizes]
    against = [flat if theirs is None else measured(theirs, size) for size in sizes]
    assert all(measurement is not None for measurement in against)
    crossed = crossing(
        resamples,
        labels,
        [measured(ours, size) for size in sizes],
        [measurement for measurement in against if measurement is not None],
    )
    return tuple(sizes), crossed
