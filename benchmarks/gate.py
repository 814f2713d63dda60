"""Does the gate hold? False PASS, coverage and power by simulation, where the truth is known.

Binary rows, all candidates right as often as the bar says; three correlated nominees at a first verdict: how often any
of them passes, how often the 95% interval that is shown holds the truth, and what was refused for want of groups. Runs
that the spread of the groups alone keeps from passing are counted so at once, for what verdicts use is no nearer.
Groups of one size, by Zipf's law and the demo's own; correlations within groups of 0, 0.05 and 0.2. The same of scores
between 0 and 1. Power of one nominee above its bar with groups of one size, beside what Korn and Graubard's bound with
G - 1 degrees of freedom has (which lets more than 5% pass at bars from 0.95 on). Nominees that have lost all that their
guards allow. Rows that a verdict says are needed, and the power that as many rows have.

"Worth" is n²/Σm², how many groups of one size groups are as good as. Needs nothing but a processor; tables may be
asked for one by one.

usage: gate.py [--runs 4000] [--seed 0] [--bars 0.9 0.95 0.98 0.99] [--tables pass scores power guards needed]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from bedplate.adaptation.search.guards import GuardResult, bounded, drop_of, guards_pass
from bedplate.adaptation.verdict import gate
from bedplate.adaptation.verdict.decision import GateVerdict, Nomination
from bedplate.core.statistics import bootstrap, clusters, multiplicity, proportions, unequal
from bedplate.core.statistics.proportions import Side
from bedplate.report.schema_parts import GuardRow
from comparison import start
from gate_rows import Floats, Ints, beyond, correct, covers, equal, layouts, same_resamples, scores

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.core import grouped

BAR, NOMINEES, CONFIDENCE = 0.9, 3, 0.95
BARS = (BAR, 0.95, 0.98, 0.99)
LEVEL = 1 - multiplicity.spent_alpha(1 - CONFIDENCE, 1)
"""Of all nominees together, at a first verdict on some rows."""
MOST_FALSE, LEAST_COVERED, MOST_LOST = 0.05, 0.93, 0.03
CORRELATIONS = (0.0, 0.05, 0.2)
SCORE_MEANS = (0.75, 0.95, 0.98)
SCORE_CORRELATIONS = (0.0, 0.07, 0.28)
POWERS = ((0.8, 0.85), (0.9, 0.94), (0.95, 0.98), (0.98, 0.995), (0.99, 0.998))
"""Bars, and the truth of a nominee above each; the first has a goal."""
TABLES = ("pass", "scores", "power", "guards", "needed")


@dataclass
class Cell:
    """One layout of groups and correlation: what became of the runs."""

    name: str
    passed: int = 0
    covered: int = 0
    refused: int = 0
    runs: int = 0

    @property
    def within_goals(self) -> bool:
        return self.passed <= MOST_FALSE * self.runs and self.covered >= LEAST_COVERED * self.runs

    def summary(self) -> str:
        refused = f" ({self.refused / self.runs:.0%} INSUFFICIENT_DATA)" if self.refused else ""
        missed = "" if self.within_goals else "  MISSED"
        return f"{self.passed / self.runs:.3f} {self.covered / self.runs:.3f}{refused}{missed}"


def nearest(right: NDArray[np.bool_], sizes: Ints, level: float, side: Side) -> Floats:
    """Bounds [...] of right answers [..., n] in groups that stand one after the other, at the nearest: by the spread of
    the groups alone. What verdicts use is no nearer, and is asked for where these are beyond the bar."""
    if sizes.max() == 1 or unequal.dominating(sizes.astype(float)).any():
        return np.full(right.shape[:-1], 1.0 if side == "lower" else 0.0)  # exact, and quick as it is
    sums = np.add.reduceat(right, np.cumsum(sizes) - sizes, axis=-1, dtype=np.float64)
    return grouped.bounds(sums, sizes, level, side)


def binary_cell(sizes: Ints, bar: float, icc: float, runs: int, seed: int) -> Cell:
    """Holm passes some nominee where one has its bound at the third part of the error above the bar."""
    rng = np.random.default_rng([seed, sizes.size, int(sizes.sum()), round(100 * icc), round(1000 * bar)])
    codes = np.repeat(np.arange(sizes.size), sizes)
    cell = Cell(f"{icc:g}", runs=runs)
    enough = sizes.max() == 1 or unequal.enough_groups(codes.tolist())
    nominee_level, half = 1 - (1 - LEVEL) / NOMINEES, 1 - (1 - CONFIDENCE) / 2
    for right in correct(rng, sizes, bar, icc, runs, NOMINEES):
        first = right[:, 0]
        far = (nearest(first, sizes, half, "lower") > bar) | (nearest(first, sizes, half, "upper") < bar)
        cell.covered += int((~far).sum())
        cell.covered += sum(covers(bar, answers, codes, CONFIDENCE) for answers in first[far].astype(np.float64))
        if not enough:
            cell.refused += len(right)
            continue
        clearing = nearest(right, sizes, nominee_level, "lower") > bar
        for nominees, clear_mask in zip(right.astype(np.float64), clearing, strict=True):
            cell.passed += any(beyond(bar, nominee, codes, nominee_level) for nominee in nominees[clear_mask])
    return cell


def scored_cell(sizes: Ints, mean: float, correlation: float, runs: int, seed: int) -> Cell:
    """One candidate at a first verdict."""
    rng = np.random.default_rng([seed, sizes.size, round(100 * correlation), round(1000 * mean)])
    n, codes = int(sizes.sum()), np.repeat(np.arange(sizes.size), sizes).tolist()
    cell = Cell(f"{correlation:g}", runs=runs)
    enough = unequal.enough_groups(codes)
    with same_resamples():
        for _ in range(runs):
            shared, individual = rng.standard_normal(sizes.size)[codes], rng.standard_normal(n)
            normal = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * individual
            rows = np.stack([scores(ndtr(normal), mean), np.ones(n)], axis=1)
            shown, judged = (
                bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, codes, level, resamples=1500, minimum_groups=2)
                for level in (CONFIDENCE, LEVEL)
            )
            cell.covered += shown.interval[0] <= mean <= shown.interval[1]
            cell.passed += enough and judged.lower > mean
            cell.refused += not enough
    return cell


def counted_alike(right: Floats, sizes: Ints, level: float) -> float:
    """Korn and Graubard's lower bound with G - 1 degrees of freedom, whatever the sizes."""
    n, groups, mean = right.size, sizes.size, float(right.mean())
    codes = np.repeat(np.arange(groups), sizes)
    plain = float(right.var(ddof=1)) / n
    sums = np.bincount(codes, weights=right - mean)
    clustered = groups / (groups - 1) * float(sums @ sums) / n**2
    effect = max(1.0, clustered / plain if plain > 0 else n / groups)
    effective = n / effect * float(stdtrit(n - 1, level) / stdtrit(groups - 1, level)) ** 2
    return proportions.binomial_lower(mean * effective, effective, level)


def power(sizes: Ints, bar: float, truth: float, icc: float, runs: int, seed: int) -> tuple[float, float]:
    """Of one nominee: now, and with every group counted alike."""
    rng = np.random.default_rng([seed, sizes.size, int(sizes.sum()), round(100 * icc), round(1000 * bar), 1])
    codes = np.repeat(np.arange(sizes.size), sizes)
    current = before = 0
    for right in correct(rng, sizes, truth, icc, runs, 1):
        clearing = nearest(right[:, 0], sizes, LEVEL, "lower") > bar
        for answers, clears in zip(right[:, 0].astype(np.float64), clearing, strict=True):
            current += bool(clears) and beyond(bar, answers, codes, LEVEL)
            before += counted_alike(answers, sizes, LEVEL) > bar
    return current / runs, before / runs


def table(heading: str, header: str, lines: Iterator[tuple[str, int]]) -> int:
    """Prints it as it is made; how many of its cells missed their goal."""
    print(f"\n{heading}\n{header}\n{'|'.join(['', *['---'] * (header.count('|') - 1), ''])}")
    missed = 0
    for line, wrong in lines:
        print(line, flush=True)
        missed += wrong
    return missed


def line_of(layout: str, sizes: Ints, cells: Sequence[Cell]) -> tuple[str, int]:
    worth = unequal.worth(sizes.astype(np.float64))
    columns = " | ".join(cell.summary() for cell in cells)
    return f"| {sizes.sum()}, {sizes.size} | {layout} ({worth:.0f}) | {columns} |", sum(
        not cell.within_goals for cell in cells
    )


def binary_lines(bar: float, runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for layout, sizes in layouts():
        cells = CORRELATIONS[: 1 if layout == "singletons" else 3]
        yield line_of(layout, sizes, [binary_cell(sizes, bar, icc, runs, seed) for icc in cells])


def scored_lines(mean: float, runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for layout, sizes in layouts():
        if sizes.sum() == 600 or layout in ("singletons", "a giant"):
            cells = SCORE_CORRELATIONS[: 1 if layout == "singletons" else 3]
            yield line_of(layout, sizes, [scored_cell(sizes, mean, correlation, runs, seed) for correlation in cells])


def power_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for bar, truth in POWERS:
        for rows, groups in ((200, 200), (200, 60), (600, 60), (600, 300), (2000, 60), (2000, 300)):
            cells = CORRELATIONS[: 1 if groups == rows else 3]
            powers = [power(equal(rows, groups), bar, truth, icc, runs, seed) for icc in cells]
            lost = [bar == POWERS[0][0] and before - current > MOST_LOST for current, before in powers]
            columns = [
                f"{current:.3f} / {before:.3f}{'  MISSED' if missed else ''}"
                for (current, before), missed in zip(powers, lost, strict=True)
            ]
            yield f"| {truth:g}, {bar:g} | {rows}, {groups} | {' | '.join(columns)} |", sum(lost)


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
    def groups(self) -> int:
        return self.n

    @property
    def estimate(self) -> float:
        return float(self.scores.mean())

    def needed(self, bar: float, confidence: float) -> int | None:
        return multiplicity.needed_n(self.estimate, bar, confidence)

    def bound(self, confidence: float, side: Side = "lower") -> float:
        return clusters.effective_n_bound(self.scores, None, confidence, side).value


def retention_guard(rng: np.random.Generator, lost: float, row_count: int) -> GuardResult:
    """A retention guard of a child that has lost this share of what its parent knew, which is the limit."""
    after = (rng.random(row_count) >= lost).astype(float).tolist()
    rows = tuple(GuardRow(id=str(i), group=str(i), parent=1.0, child=child) for i, child in enumerate(after))
    fields = {
        "guard": "retention",
        "measure": "accuracy",
        "parent": 1.0,
        "child": sum(after) / row_count,
        "limit": lost,
    }
    bounds = bounded("retention", "accuracy", 1.0, sum(after) / row_count, drop_of("retention", rows, CONFIDENCE), lost)
    return GuardResult.model_validate({**fields, **bounds, "details": {}, "rows": rows})


def guard_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """Nominees that clear the target with room, on a child base each."""
    rng = np.random.default_rng([seed, 2])
    clear = Judged((np.arange(400) < 380).astype(float))
    for nominees in (1, 2, 3):
        names = tuple("abc"[:nominees])
        tested = dict.fromkeys(names, clear)
        nomination = Nomination(names, "a", None, {})
        passed = alone = 0
        for _ in range(runs):
            guards = {name: [retention_guard(rng, 0.05, 300)] for name in names}
            alone += any(results[0].holds for results in guards.values())
            guard_checks = {name: partial(guards_pass, results) for name, results in guards.items()}
            confirmations = gate.confirm(
                list(tested.items()), tested, target=0.8, alpha=1 - CONFIDENCE, checks=guard_checks
            )
            shown = {
                confirmation.rung: [guard.at(confirmation.lower_confidence) for guard in guards[confirmation.rung]]
                for confirmation in confirmations
            }
            verdict = GateVerdict(
                nomination, confirmations, metric="accuracy", target=0.8, n=400, groups=400, guards=shown
            )
            passed += verdict.decision.status == "PASS"
        wrong = passed > MOST_FALSE * runs + 2 * (MOST_FALSE * (1 - MOST_FALSE) * runs) ** 0.5
        yield f"| {nominees} | {passed / runs:.3f}{'  MISSED' if wrong else ''} | {alone / runs:.3f} |", int(wrong)


def needed_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """Eight candidates on 587 independent rows, bar 0.8, where the first verdict does not pass: the median of rows told
    for the best on valid, and the mean power of as many at the next verdict (1 where none are promised)."""
    rng = np.random.default_rng([seed, 3])
    level = 1 - multiplicity.spent_alpha(1 - CONFIDENCE, 2)
    for label, truths in (
        ("all at 0.83", [0.83] * 8),
        ("0.70 to 0.83", [0.7, 0.75, 0.78, 0.8, 0.81, 0.82, 0.83, 0.83]),
    ):
        truth = np.array(truths)[:, None]
        needed_rows: list[int | None] = []
        powers: list[float] = []
        for _ in range(runs):
            shared = rng.standard_normal((2, 1, 587)) * np.sqrt(0.5)
            right = (shared + np.sqrt(0.5) * rng.standard_normal((2, 8, 587)) < ndtri(truth)).astype(float)
            valid = {str(i): Judged(right[0, i]) for i in range(8)}
            chosen = sorted(valid, key=lambda name: -valid[name].estimate)[:NOMINEES]
            tested = [(name, Judged(right[1, int(name)])) for name in chosen]
            confirmations = gate.confirm(tested, valid, target=0.8, alpha=1 - LEVEL, next_alpha=1 - level)
            if not any(confirmation.passed for confirmation in confirmations):
                needed_rows.append(confirmations[0].needed_n)
                powers.append(_power(confirmations[0].needed_n, truths[int(chosen[0])], level))
        promised = [n for n in needed_rows if n is not None]
        promised_share = len(promised) / max(1, len(needed_rows))
        yield f"| {label} | {np.median(promised):,.0f} ({promised_share:.0%}) | {np.mean(powers):.2f} |", 0


def _power(rows: int | None, truth: float, level: float) -> float:
    if rows is None:
        return 1.0
    critical = 0.8 + ndtri(level) * np.sqrt(0.16 / rows)
    return float(ndtr((truth - critical) / np.sqrt(truth * (1 - truth) / rows)))


def header(first: str, correlations: Sequence[float]) -> str:
    return f"| {first} | {' | '.join(f'correlation {icc:g}' for icc in correlations)} |"


def options(description: str | None, default: int) -> argparse.ArgumentParser:
    """How many runs of a cell the command line may ask for, and its seed."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=default, help="of each cell")
    parser.add_argument("--seed", type=int, default=0)
    return parser


Table = tuple[str, str, Callable[[int, int], Iterator[tuple[str, int]]], int]
"""Heading and header of a table, its lines by runs and seed, and which part of the runs it takes."""


def run_tables(description: str | None, tables: Mapping[str, Table], rate: str) -> None:
    """The command line of a file of tables; exit code 1 where a cell missed its goal. rate: what is to be rare."""
    parser = options(description, 2000)
    parser.add_argument("--tables", choices=tables, nargs="+", default=list(tables))
    arguments = start(parser).options
    missed = 0
    for name in arguments.tables:
        heading, columns, lines, part = tables[name]
        missed += table(heading, columns, lines(max(arguments.runs // part, 100), arguments.seed))
    print(f"\n{rate} at most {MOST_FALSE:g}: {'met in every cell' if not missed else f'MISSED in {missed} cells'}")
    sys.exit(missed > 0)


def main() -> None:
    parser = options(__doc__, 4000)
    parser.add_argument("--bars", type=float, nargs="+", default=BARS, help="of the first table")
    parser.add_argument("--tables", choices=TABLES, nargs="+", default=TABLES)
    arguments = start(parser).options
    runs, seed = arguments.runs, arguments.seed
    missed = 0
    if "pass" in arguments.tables:
        for bar in arguments.bars:
            missed += table(
                f"PASS of {NOMINEES} nominees at the bar of {bar:g}, coverage of the shown 95%; {runs} runs a cell",
                header("n, groups | sizes (worth)", CORRELATIONS),
                binary_lines(bar, runs, seed),
            )
    if "scores" in arguments.tables:
        for mean in SCORE_MEANS:
            missed += table(
                f"The same of scores between 0 and 1 with a mean of {mean:g}, one candidate at a first verdict",
                header("n, groups | sizes (worth)", SCORE_CORRELATIONS),
                scored_lines(mean, max(runs // 2, 100), seed),
            )
    if "power" in arguments.tables:
        missed += table(
            "Power of one nominee, groups of one size: now / with every group counted alike",
            header("truth, bar | n, groups", CORRELATIONS),
            power_lines(runs, seed),
        )
    if "guards" in arguments.tables:
        missed += table(
            "PASS of nominees that clear the target and have lost all that their guard allows; each guard by itself",
            "| nominees | PASS | any guard at 95% |",
            guard_lines(max(runs // 4, 100), seed),
        )
    if "needed" in arguments.tables:
        table(
            "Rows that are needed, as told (and in how many verdicts any are), and the power of the next with as many",
            "| eight candidates | rows | power |",
            needed_lines(max(runs // 8, 100), seed),
        )
    goals = f"PASS at most {MOST_FALSE:g}, coverage at least {LEAST_COVERED:g}, at most {MOST_LOST:g} of power lost"
    print(f"\n{goals}: {'met in every cell' if not missed else f'MISSED in {missed} cells'}")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
