"""Does the gate hold? False PASS, coverage and power by simulation, where the truth is known.

Binary rows, all candidates right on nine rows in ten, which is the bar; three correlated nominees at a first verdict:
how often any of them passes, how often the 95% interval that is shown holds the truth, and what was refused for want of
groups. Groups of one size, by Zipf's law and the demo's own; correlations within groups of 0, 0.05 and 0.2. The same of
scores between 0 and 1. Power of one nominee 0.05 above the bar with groups of one size, beside what Korn and Graubard's
bound with G - 1 degrees of freedom has. Nominees that have lost all that their guards allow. Rows that a verdict says
are needed, and the power that as many rows have.

"Worth" is n²/Σm², how many groups of one size groups are as good as. Needs nothing but a processor.

usage: gate.py [--runs 4000] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

from bedplate.adaptation.climb.guard_drops import GuardResult, bounded, drop_of, hold
from bedplate.adaptation.verdict import gate
from bedplate.core import statistics
from bedplate.core.statistics import InsufficientGroups
from bedplate.core.statistics.proportions import Side
from bedplate.report.schema_plan import GuardRow
from comparison import start

BAR, NOMINEES, SHARED, CONFIDENCE = 0.9, 3, 0.6, 0.95
LEVEL = 1 - statistics.spent_alpha(1 - CONFIDENCE, 1)
"""Of all nominees together, at a first verdict on some rows."""
MOST_FALSE, LEAST_COVERED, MOST_LOST = 0.05, 0.93, 0.03
CORRELATIONS = (0.0, 0.05, 0.2)
SCORE_CORRELATIONS = (0.0, 0.07, 0.28)
DEMO = (
    *(1, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 8, 8),
    *(8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 11, 11, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 16, 18, 19, 24, 27, 28, 30, 39),
)
"""Sentences of each review in the test rows of examples/reviews."""
AT_ONCE = 200
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def equal(rows: int, groups: int) -> Ints:
    sizes = np.full(groups, rows // groups)
    sizes[: rows - sizes.sum()] += 1
    return sizes


def zipf(rows: int, groups: int) -> Ints:
    """Sizes as c, c/2, c/3, …, at least one row each, with the c that comes nearest to so many rows."""
    rank = np.arange(1, groups + 1)
    low, high = 0.0, float(rows)
    while high - low > 1e-6:
        middle = (low + high) / 2
        short = np.maximum(1, np.round(middle / rank)).sum() < rows
        low, high = (middle, high) if short else (low, middle)
    sizes = np.maximum(1, np.round(high / rank)).astype(np.int64)
    sizes[0] += rows - sizes.sum()
    return sizes


def layouts() -> Iterator[tuple[str, Ints]]:
    yield "singletons", equal(200, 200)
    for rows in (200, 600, 2000):
        for groups in (40, 60, 300):
            if groups < rows:
                yield "equal", equal(rows, groups)
                yield "Zipf", zipf(rows, groups)
    yield "the demo's", np.array(DEMO)


def correct(
    rng: np.random.Generator, sizes: Ints, truth: float, icc: float, runs: int, candidates: int
) -> Iterator[NDArray[np.bool_]]:
    """Right or wrong [≤ AT_ONCE, candidates, n] until there are `runs`. Rates of groups are Beta, and the normals
    behind rates and rows are shared in part by the candidates (a Gaussian copula): what is hard for one is for others.
    """
    grid = np.linspace(-6, 6, 4001)
    codes = np.repeat(np.arange(sizes.size), sizes)
    spread = 1 / icc - 1 if icc else 0.0
    table = ndtri(betaincinv(truth * spread, (1 - truth) * spread, ndtr(grid))) if icc else None

    def normals(runs: int, size: int) -> Floats:
        own = rng.standard_normal((runs, candidates, size))
        return np.sqrt(SHARED) * rng.standard_normal((runs, 1, size)) + np.sqrt(1 - SHARED) * own

    for first in range(0, runs, AT_ONCE):
        some = min(AT_ONCE, runs - first)
        below = ndtri(truth)
        if table is not None:
            below = np.interp(normals(some, sizes.size), grid, table)[:, :, codes]
        yield normals(some, int(sizes.sum())) < below


def scores(u: Floats) -> Floats:
    """0 in a tenth, 1 in six tenths and evenly between: mean 0.75."""
    return np.where(u < 0.1, 0.0, np.where(u > 0.4, 1.0, (u - 0.1) / 0.3))


@dataclass
class Cell:
    """One layout of groups and correlation: what became of the runs."""

    name: str
    passed: int = 0
    covered: int = 0
    refused: int = 0
    runs: int = 0

    @property
    def held(self) -> bool:
        return self.passed <= MOST_FALSE * self.runs and self.covered >= LEAST_COVERED * self.runs

    def said(self) -> str:
        refused = f" ({self.refused / self.runs:.0%} INSUFFICIENT_DATA)" if self.refused else ""
        missed = "" if self.held else "  MISSED"
        return f"{self.passed / self.runs:.3f} {self.covered / self.runs:.3f}{refused}{missed}"


def bound_or_less(bound: Callable[[float], float], level: float) -> float:
    try:
        return bound(level)
    except InsufficientGroups:
        return -1.0


def binary_cell(sizes: Ints, icc: float, runs: int, seed: int) -> Cell:
    rng = np.random.default_rng([seed, sizes.size, int(sizes.sum()), round(100 * icc)])
    codes = np.repeat(np.arange(sizes.size), sizes)
    cell = Cell(f"{icc:g}", runs=runs)

    def lower(right: Floats, level: float) -> float:
        return statistics.effective_n_bound(right, codes, level).value

    for right in correct(rng, sizes, BAR, icc, runs, NOMINEES):
        for one in right.astype(np.float64):
            bounds = [partial(bound_or_less, partial(lower, nominee)) for nominee in one]
            found = statistics.holm_bounds(bounds, BAR, LEVEL)
            cell.passed += any(bound.passed for bound in found)
            cell.refused += found[0].lower < 0
            low, high = statistics.effective_n_interval(one[0], codes, CONFIDENCE, minimum_groups=2)
            cell.covered += low <= BAR <= high
    return cell


def scored_cell(sizes: Ints, alike: float, runs: int, seed: int) -> Cell:
    """One candidate at a first verdict."""
    rng = np.random.default_rng([seed, sizes.size, round(100 * alike)])
    n, codes = int(sizes.sum()), np.repeat(np.arange(sizes.size), sizes).tolist()
    cell = Cell(f"{alike:g}", runs=runs)
    for _ in range(runs):
        normal = np.sqrt(alike) * rng.standard_normal(sizes.size)[codes] + np.sqrt(1 - alike) * rng.standard_normal(n)
        rows = np.stack([scores(ndtr(normal)), np.ones(n)], axis=1)
        shown, judged = (
            statistics.bca_of_sums(rows, statistics.mean_of_sums, codes, level, resamples=1500, minimum_groups=2)
            for level in (CONFIDENCE, LEVEL)
        )
        cell.covered += shown.interval[0] <= 0.75 <= shown.interval[1]
        if statistics.enough_groups(codes):
            cell.passed += judged.lower > 0.75
        else:
            cell.refused += 1
    return cell


def counted_alike(right: Floats, sizes: Ints, level: float) -> float:
    """Korn and Graubard's lower bound with G - 1 degrees of freedom, whatever the sizes."""
    n, groups, mean = right.size, sizes.size, float(right.mean())
    codes = np.repeat(np.arange(groups), sizes)
    plain = float(right.var(ddof=1)) / n
    clustered = statistics.clustered_mean(right, codes).se ** 2
    effect = max(1.0, clustered / plain if plain > 0 else n / groups)
    effective = n / effect * float(stdtrit(n - 1, level) / stdtrit(groups - 1, level)) ** 2
    return statistics.binomial_lower(mean * effective, effective, level)


def power(sizes: Ints, icc: float, runs: int, seed: int) -> tuple[float, float]:
    """Of one nominee at 0.85 with a bar of 0.8: now, and with every group counted alike."""
    rng = np.random.default_rng([seed, sizes.size, int(sizes.sum()), round(100 * icc), 1])
    codes = np.repeat(np.arange(sizes.size), sizes)
    now = before = 0
    for right in correct(rng, sizes, 0.85, icc, runs, 1):
        for one in right[:, 0].astype(np.float64):
            now += statistics.effective_n_bound(one, codes, LEVEL).value > 0.8
            before += counted_alike(one, sizes, LEVEL) > 0.8
    return now / runs, before / runs


def table(heading: str, header: str, lines: Iterator[tuple[str, int]]) -> int:
    """Prints it as it is made; how many of its cells missed their goal."""
    print(f"\n{heading}\n{header}\n{'|'.join(['', *['---'] * (header.count('|') - 1), ''])}")
    missed = 0
    for line, wrong in lines:
        print(line, flush=True)
        missed += wrong
    return missed


def line_of(kind: str, sizes: Ints, cells: Sequence[Cell]) -> tuple[str, int]:
    worth = statistics.worth(sizes.astype(np.float64))
    said = " | ".join(cell.said() for cell in cells)
    return f"| {sizes.sum()}, {sizes.size} | {kind} ({worth:.0f}) | {said} |", sum(not cell.held for cell in cells)


def binary_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for kind, sizes in layouts():
        cells = CORRELATIONS[: 1 if kind == "singletons" else 3]
        yield line_of(kind, sizes, [binary_cell(sizes, icc, runs, seed) for icc in cells])


def scored_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for kind, sizes in (("equal", equal(600, 60)), ("Zipf", zipf(600, 60)), ("Zipf", zipf(600, 300))):
        yield line_of(kind, sizes, [scored_cell(sizes, alike, runs, seed) for alike in SCORE_CORRELATIONS])


def power_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for rows, groups in ((200, 60), (600, 60), (600, 300), (2000, 60)):
        found = [power(equal(rows, groups), icc, runs, seed) for icc in CORRELATIONS]
        lost = [before - now > MOST_LOST for now, before in found]
        said = [
            f"{now:.3f} / {before:.3f}{'  MISSED' if more else ''}"
            for (now, before), more in zip(found, lost, strict=True)
        ]
        yield f"| {rows}, {groups} | {' | '.join(said)} |", sum(lost)


@dataclass(frozen=True, eq=False)
class Judged:
    """Independent 0/1 rows, as the gate asks for them."""

    scores: Floats
    design_effect: float = 1.0
    row_variance: None = None

    @property
    def n(self) -> int:
        return self.scores.size

    @property
    def estimate(self) -> float:
        return float(self.scores.mean())

    def bound(self, confidence: float, side: Side = "lower") -> float:
        return statistics.effective_n_bound(self.scores, None, confidence, side).value


def kept(rng: np.random.Generator, lost: float, items: int) -> GuardResult:
    """A retention guard of a child that has lost this share of what its parent knew, which is the limit."""
    after = (rng.random(items) >= lost).astype(float).tolist()
    rows = tuple(GuardRow(id=str(i), group=str(i), parent=1.0, child=child) for i, child in enumerate(after))
    known = {"guard": "retention", "measure": "accuracy", "parent": 1.0, "child": sum(after) / items, "limit": lost}
    made = bounded("retention", "accuracy", 1.0, sum(after) / items, drop_of("retention", rows, CONFIDENCE), lost)
    return GuardResult.model_validate({**known, **made, "details": {}, "rows": rows})


def guard_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """Nominees that clear the target with room, on a child base each."""
    rng = np.random.default_rng([seed, 2])
    clear = Judged((np.arange(400) < 380).astype(float))
    for nominees in (1, 2, 3):
        names = tuple("abc"[:nominees])
        tested = dict.fromkeys(names, clear)
        nomination = gate.Nomination(names, "a", None, {})
        passed = alone = 0
        for _ in range(runs):
            guards = {name: [kept(rng, 0.05, 300)] for name in names}
            alone += any(made[0].holds for made in guards.values())
            holds = {name: partial(hold, made) for name, made in guards.items()}
            found = gate.confirm(list(tested.items()), tested, target=0.8, alpha=1 - CONFIDENCE, holds=holds)
            shown = {one.rung: [guard.at(one.lower_confidence) for guard in guards[one.rung]] for one in found}
            verdict = gate.decide(nomination, found, metric="accuracy", target=0.8, n=400, groups=400, guards=shown)
            passed += verdict.status == "PASS"
        wrong = passed > MOST_FALSE * runs + 2 * (MOST_FALSE * (1 - MOST_FALSE) * runs) ** 0.5
        yield f"| {nominees} | {passed / runs:.3f}{'  MISSED' if wrong else ''} | {alone / runs:.3f} |", int(wrong)


def needed_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """Eight candidates on 587 independent rows, bar 0.8, where the first verdict does not pass: the median of rows told
    for the best on valid, and the mean power of as many at the next verdict (1 where none are promised)."""
    rng = np.random.default_rng([seed, 3])
    level = 1 - statistics.spent_alpha(1 - CONFIDENCE, 2)
    for what, truths in (("all at 0.83", [0.83] * 8), ("0.70 to 0.83", [0.7, 0.75, 0.78, 0.8, 0.81, 0.82, 0.83, 0.83])):
        truth = np.array(truths)[:, None]
        told: list[int | None] = []
        powers: list[float] = []
        for _ in range(runs):
            shared = rng.standard_normal((2, 1, 587)) * np.sqrt(0.5)
            right = (shared + np.sqrt(0.5) * rng.standard_normal((2, 8, 587)) < ndtri(truth)).astype(float)
            valid = {str(i): Judged(right[0, i]) for i in range(8)}
            chosen = sorted(valid, key=lambda name: -valid[name].estimate)[:NOMINEES]
            tested = [(name, Judged(right[1, int(name)])) for name in chosen]
            found = gate.confirm(tested, valid, target=0.8, alpha=1 - LEVEL, next_alpha=1 - level)
            if not any(one.passed for one in found):
                told.append(found[0].needed_n)
                powers.append(_power(found[0].needed_n, truths[int(chosen[0])], level))
        promised = [n for n in told if n is not None]
        some = len(promised) / max(1, len(told))
        yield f"| {what} | {np.median(promised):,.0f} ({some:.0%}) | {np.mean(powers):.2f} |", 0


def _power(rows: int | None, truth: float, level: float) -> float:
    if rows is None:
        return 1.0
    critical = 0.8 + ndtri(level) * np.sqrt(0.16 / rows)
    return float(ndtr((truth - critical) / np.sqrt(truth * (1 - truth) / rows)))


def header(first: str, correlations: Sequence[float]) -> str:
    return f"| {first} | {' | '.join(f'correlation {icc:g}' for icc in correlations)} |"


def runs_asked(description: str | None, default: int) -> tuple[int, int]:
    """How many runs of a cell the command line asks for, and its seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=default, help="of each cell")
    parser.add_argument("--seed", type=int, default=0)
    asked = start(parser).options
    return asked.runs, asked.seed


def main() -> None:
    runs, seed = runs_asked(__doc__, 4000)
    missed = table(
        f"PASS of {NOMINEES} nominees at the bar of {BAR}, and coverage of the shown 95% interval; {runs} runs a cell",
        header("n, groups | sizes (worth)", CORRELATIONS),
        binary_lines(runs, seed),
    )
    missed += table(
        "The same of scores between 0 and 1 (mean 0.75), one candidate at a first verdict",
        header("n, groups | sizes (worth)", SCORE_CORRELATIONS),
        scored_lines(max(runs // 2, 100), seed),
    )
    missed += table(
        "Power of one nominee at 0.85, bar 0.8, groups of one size: now / with every group counted alike",
        header("n, groups", CORRELATIONS),
        power_lines(runs, seed),
    )
    missed += table(
        "PASS of nominees that clear the target and have lost all that their guard allows; each guard by itself",
        "| nominees | PASS | any guard at 95% |",
        guard_lines(max(runs // 4, 100), seed),
    )
    table(
        "Rows that are needed, as told (and in how many verdicts any are), and the power of the next verdict with them",
        "| eight candidates | rows | power |",
        needed_lines(max(runs // 8, 100), seed),
    )
    goals = f"PASS at most {MOST_FALSE:g}, coverage at least {LEAST_COVERED:g}, at most {MOST_LOST:g} of power lost"
    print(f"\n{goals}: {'met in every cell' if not missed else f'MISSED in {missed} cells'}")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
