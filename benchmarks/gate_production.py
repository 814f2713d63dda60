"""Do verdicts on what runs today, on costs, on weighted rows and on several requirements hold? By simulation.

The truth is at the bar, so that every PASS is false: a skin that is worse than what runs today by all of its margin, or
as good where it has to be better; what it lost standing in few groups; expected costs at the bar with a rare, dear
mistake; shares of the traffic that rows do not have, with a few heavy rows or groups; groups whose sizes are drawn as
they are and go with quality; one requirement of three at its bar, for two nominees; the conditions of a FAIL that all
just hold. Levels are those of a first verdict. And how often the shown interval of a paired difference covers it where
few rows differ, and how often the bounds of the calibration error miss it. Layouts of groups are those of `gate.py`.
Needs nothing but a processor.

usage: gate_production.py [--runs 2000] [--seed 0] [--tables against lost costs weights heavy sizes ...]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from scipy.special import ndtri
from scipy.stats import multinomial, poisson

from bedplate.adaptation.context.outcome import latency
from bedplate.adaptation.verdict.gate import p95_limit
from bedplate.adaptation.verdict.requirements import RequirementResult
from bedplate.core.statistics import bootstrap, clusters, proportions
from bedplate.core.statistics.noninferiority import calibration_bounds, mean_drop
from bedplate.core.statistics.paired import paired_difference
from bedplate.core.statistics.unequal import InsufficientGroups
from gate import (
    CONFIDENCE,
    CORRELATIONS,
    LEAST_COVERED,
    LEVEL,
    MOST_FALSE,
    Judged,
    Table,
    header,
    retention_guard,
    run_tables,
)
from gate_rows import GIANT, Floats, Ints, beyond, correct, covers, equal, same_resamples, zipf

LAYOUTS = (
    ("singletons", equal(200, 200)),
    ("singletons", equal(600, 600)),
    ("equal", equal(600, 60)),
    ("Zipf", zipf(600, 300)),
    ("Zipf", zipf(2000, 300)),
    ("a giant", GIANT),
)
TRUTH, MARGIN = 0.85, 0.05
"""Of what runs today; by how much a skin may be worse."""


POWER_RUNS = 5
"""One in so many runs is for power, whose bounds are all asked for."""


def paired(sizes: Ints, icc: float, runs: int, seed: int) -> tuple[float, float, float]:
    """PASS of a skin that is worse by the margin, of one that is equal and has to be better, and of one that is equal
    and may be worse by the margin, which is power."""
    rng = np.random.default_rng([seed, sizes.size, int(sizes.sum()), round(100 * icc)])
    codes = np.repeat(np.arange(sizes.size), sizes)
    groups = codes.tolist()
    worse = better = power = powers = 0
    for right in correct(rng, sizes, TRUTH, icc, runs, 2):
        for place, (incumbent, skin) in enumerate(right.astype(np.float64)):
            weaker = skin * (rng.random(skin.size) >= MARGIN / TRUTH)
            worse += _shown(incumbent, weaker, codes, groups, MARGIN)
            better += _shown(incumbent, skin, codes, groups, 0.0)
            if place % POWER_RUNS == 0:
                powers += 1
                power += _shown(incumbent, skin, codes, groups, MARGIN)
    return worse / runs, better / runs, power / powers


def _shown(incumbent: Floats, skin: Floats, codes: Ints, groups: list[int], margin: float) -> bool:
    """As `drop_between` has it; whole bounds are asked for where those by the spread alone, which are no further, show
    it."""
    if skin.mean() <= incumbent.mean() - margin:
        return False
    effect = max(1.0, *(clusters.design_effect(answers, codes) for answers in (incumbent, skin)))
    drop = partial(mean_drop, incumbent, skin, groups, LEVEL, units=max(incumbent.size / effect, 1.0))
    return drop(scattered=True).is_within(margin) is True and drop().is_within(margin) is True


def paired_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for layout, sizes in LAYOUTS:
        rates = [paired(sizes, icc, runs, seed) for icc in CORRELATIONS[: 1 if layout == "singletons" else 3]]
        wrong = sum(max(worse, better) > MOST_FALSE for worse, better, _ in rates)
        columns = " | ".join(" / ".join(f"{rate:.3f}" for rate in cell) for cell in rates)
        yield f"| {sizes.sum()}, {sizes.size} | {layout} | {columns} |{'  MISSED' if wrong else ''}", wrong


def lost_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """A skin that has lost all of the margin, in rows that are alike within groups."""
    for margin in (0.05, 0.02, 0.01):
        for layout, sizes in (*LAYOUTS[1:4], LAYOUTS[-1]):
            codes = np.repeat(np.arange(sizes.size), sizes)
            groups, rates = codes.tolist(), list[float]()
            for icc in CORRELATIONS[: 1 if layout == "singletons" else 3]:
                rng = np.random.default_rng([seed, sizes.size, codes.size, round(1000 * margin), round(100 * icc)])
                shown = 0
                for retained in correct(rng, sizes, 1 - margin / TRUTH, icc, runs, 1):
                    for mask in retained[:, 0]:
                        incumbent = (rng.random(mask.size) < TRUTH).astype(float)
                        shown += _shown(incumbent, incumbent * mask, codes, groups, margin)
                rates.append(shown / runs)
            wrong = sum(rate > MOST_FALSE for rate in rates)
            columns = " | ".join(f"{rate:.3f}{'  MISSED' if rate > MOST_FALSE else ''}" for rate in rates)
            yield f"| {margin:g} | {sizes.sum()}, {sizes.size} {layout} | {columns} |", wrong


def costs(rng: np.random.Generator, n: int, rare: float) -> Floats:
    """Of rows: $5 with probability `rare`, $0.40 with a tenth, else nothing; as scores with $5 the worst."""
    u = rng.random(n)
    return 1 - np.where(u < rare, 5.0, np.where(u < rare + 0.1, 0.4, 0.0)) / 5.0


def cost_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for n in (200, 600, 2000):
        for rare in (0.01, 0.03, 0.1):
            rng = np.random.default_rng([seed, n, round(1000 * rare)])
            truth = 1 - (5.0 * rare + 0.04) / 5.0
            passed = covered = 0
            with same_resamples():
                for _ in range(runs):
                    rows = np.stack([costs(rng, n, rare), np.ones(n)], axis=1)
                    judged = bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, range(n), LEVEL, resamples=1500)
                    shown = bootstrap.bca_of_sums(rows, bootstrap.mean_of_sums, range(n), CONFIDENCE, resamples=1500)
                    passed += judged.lower > truth
                    covered += shown.interval[0] <= truth <= shown.interval[1]
            wrong = int(passed > MOST_FALSE * runs or covered < 0.93 * runs)
            columns = f"{passed / runs:.3f} | {covered / runs:.3f}"
            yield f"| {n} | {rare:g} ({n * rare:g} rows) | {columns} |{'  MISSED' if wrong else ''}", wrong


WEIGHTS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "copies, squared Poisson": lambda rng, n: np.float64(1) + rng.poisson(0.5, n) ** 2,
    "a quarter is two thirds": lambda rng, n: np.where(np.arange(n) % 4 == 0, 6.0, 1.0),
    "Pareto (1.5), cut at 20": lambda rng, n: np.minimum(rng.pareto(1.5, n) + 1.0, np.float64(20)),
}


def weighted_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for name, draw in WEIGHTS.items():
        for layout, sizes in (*LAYOUTS[:1], *LAYOUTS[2:4]):
            cells: list[str] = []
            wrong = 0
            for icc in CORRELATIONS[: 1 if layout == "singletons" else 3]:
                rng = np.random.default_rng([seed, sizes.size, round(100 * icc)])
                codes = np.repeat(np.arange(sizes.size), sizes)
                passed = covered = refused = 0
                for right in correct(rng, sizes, 0.9, icc, runs, 1):
                    for answers in right[:, 0].astype(np.float64):
                        weights = draw(rng, answers.size)
                        covered += covers(0.9, answers, codes, CONFIDENCE, weights=weights)
                        try:
                            passed += beyond(0.9, answers, codes, LEVEL, weights=weights)
                        except InsufficientGroups:
                            refused += 1
                missed = passed > MOST_FALSE * runs or covered < 0.93 * runs
                wrong += missed
                refusals = f" ({refused / runs:.0%} INSUFFICIENT_DATA)" if refused else ""
                cells.append(f"{passed / runs:.3f} {covered / runs:.3f}{refusals}{'  MISSED' if missed else ''}")
            yield f"| {name} | {sizes.sum()}, {sizes.size} {layout} | {' | '.join(cells)} |", wrong


HEAVY = (
    (1000, 1, 8, 0.5, 0.95),
    (1000, 1, 50, 0.5, 0.98),
    (600, 1, 30, 0.3, 0.98),
    (1000, 1, 30, 0.5, 0.9),
    (600, 1, 20, 0.1, 0.95),
    (120, 5, 12, 0.4, 0.95),
    (200, 3, 20, 0.3, 0.9),
)
"""Groups, rows of each, heavy groups, their share of the traffic, and the truth, which is the bar."""


def heavy_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for count, size, heavy, share, bar in HEAVY:
        sizes = np.full(count, size)
        codes = np.repeat(np.arange(count), size)
        weights = np.where(codes < heavy, share / heavy, (1 - share) / (count - heavy))
        rng = np.random.default_rng([seed, count, heavy, round(1000 * bar)])
        passed = covered = failed = 0
        for right in correct(rng, sizes, bar, 0.1 if size > 1 else 0.0, runs, 1):
            for answers in right[:, 0].astype(np.float64):
                covered += covers(bar, answers, codes, CONFIDENCE, weights=weights)
                passed += beyond(bar, answers, codes, LEVEL, weights=weights)
                failed += beyond(bar, answers, codes, LEVEL, "upper", weights=weights)
        wrong = int(max(passed, failed) > MOST_FALSE * runs or covered < LEAST_COVERED * runs)
        columns = f"{passed / runs:.3f} | {failed / runs:.3f} | {covered / runs:.3f}"
        yield f"| {heavy} of {count} ({size}) | {share:g} | {bar:g} | {columns} |{'  MISSED' if wrong else ''}", wrong


DRAWN: dict[str, tuple[int, Callable[[Floats], Floats]]] = {
    "Poisson, mean 10": (60, lambda u: 1 + poisson.ppf(u, 9)),
    "lognormal, 0.5": (100, lambda u: np.maximum(np.rint(8 * np.exp(0.5 * ndtri(u))), 1)),
    "lognormal, 1": (100, lambda u: np.maximum(np.rint(4 * np.exp(ndtri(u))), 1)),
    "Pareto, 3": (300, lambda u: np.floor(3 * (1 - u) ** (-1 / 3))),
    "Pareto, 2": (300, lambda u: np.floor(3 * (1 - u) ** (-1 / 2))),
    "Pareto, 1.5": (150, lambda u: np.floor((1 - u) ** (-1 / 1.5))),
    "Pareto, 1.5 ": (400, lambda u: np.floor((1 - u) ** (-1 / 1.5))),
}
"""Groups, and their sizes from evenly spread numbers."""
TRENDS: dict[str, Callable[[Floats, float], Floats]] = {
    "none": lambda sizes, _: np.full(sizes.shape, 0.9),
    "above a size": lambda sizes, typical: np.where(sizes > 1.3 * typical, 0.85, 0.97),
    "below a size": lambda sizes, typical: np.where(sizes > 1.3 * typical, 0.97, 0.85),
    "without end": lambda sizes, typical: np.clip(0.95 - 0.05 * np.log(sizes / typical), 0.05, 0.99),
}
"""How often groups are right by their sizes: worse above a size, or below it; of the last, e times as large is 0.05
worse."""


NOT_HELD = {("Pareto, 2", "without end"), ("Pareto, 1.5", "without end"), ("Pareto, 1.5 ", "without end")}
"""What docs/verdict.md says is not held: it is shown, and no miss."""


def drawn_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for name, (count, sizes_of) in DRAWN.items():
        population = sizes_of((np.arange(4_000_000) + 0.5) / 4_000_000)
        typical, cells, missed = float(np.median(population)), list[str](), 0
        for trend, rates_of in TRENDS.items():
            truth = float(np.average(rates_of(population, typical), weights=population))
            rng = np.random.default_rng([seed, count, len(name), len(trend)])
            passed = failed = covered = refused = 0
            for _ in range(runs):
                sizes = sizes_of(rng.random(count))
                codes = np.repeat(np.arange(count), sizes.astype(np.int64))
                spread = 49.0  # a correlation of 0.02 besides
                rates = rates_of(sizes, typical)
                answers = (rng.random(codes.size) < rng.beta(spread * rates, spread * (1 - rates))[codes]).astype(float)
                covered += covers(truth, answers, codes, CONFIDENCE)
                try:
                    passed += beyond(truth, answers, codes, LEVEL)
                    failed += beyond(truth, answers, codes, LEVEL, "upper")
                except InsufficientGroups:
                    refused += 1
            wrong = max(passed, failed) > MOST_FALSE * runs or covered < LEAST_COVERED * runs
            missed += wrong and (name, trend) not in NOT_HELD
            verdict = "" if not wrong else "  not held" if (name, trend) in NOT_HELD else "  MISSED"
            refusals = f" ({refused / runs:.0%} INSUFFICIENT_DATA)" if refused else ""
            columns = f"{passed / runs:.3f} / {failed / runs:.3f} {covered / runs:.3f}"
            cells.append(f"{columns}{refusals}{verdict}")
        yield f"| {name} | {count} | {' | '.join(cells)} |", missed


def required_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """Slices of a third of the rows each; two nominees that have no bar beside them, and one whose bar is its truth."""
    for at_bar in (1, 2, 3):
        rng = np.random.default_rng([seed, at_bar])
        rates = np.where(np.arange(3) < at_bar, 0.8, 0.95)
        level, shared = 1 - (1 - LEVEL) / 2, 1 - (1 - LEVEL) / 4  # Holm; three requirements and the bar
        passed = failed = 0
        for _ in range(runs):
            right = (rng.random((2, 3, 200)) < rates[None, :, None]).sum(2)
            passed += any(
                min(proportions.binomial_lower(s, 200, level) for s in nominee) > 0.8 for nominee in right.tolist()
            )
            whole, slices = int(right[0].sum()), right[0].tolist()
            broken = min(proportions.binomial_upper(s, 200, shared) for s in slices) < 0.8
            failed += broken or proportions.binomial_upper(whole, 600, shared) < rates.mean()
        wrong = int(max(passed, failed) > MOST_FALSE * runs)
        yield f"| {at_bar} | {passed / runs:.3f} | {failed / runs:.3f} |{'  MISSED' if wrong else ''}", wrong


FEW_DIFFER = ((60, 0.1, 0.8), (100, 0.05, 1.0), (200, 0.03, 0.9), (400, 0.01, 1.0), (1000, 0.01, 0.9), (400, 0.1, 0.6))
"""Rows, the share of them on which two candidates differ, and how much of that is one way."""


def pair_lines(_runs: int, _seed: int) -> Iterator[tuple[str, int]]:
    """Exactly, over all outcomes that have a chance."""
    for n, differ, one_way in FEW_DIFFER:
        shares = [differ * one_way, differ * (1 - one_way), 1 - differ]
        truth, rows = shares[0] - shares[1], np.arange(n)
        a, b = (counts.ravel() for counts in np.meshgrid(np.arange(min(n, 90)), np.arange(min(n, 90))))
        a, b = a[a + b <= n], b[a + b <= n]
        chances = multinomial.pmf(np.stack([a, b, n - a - b], axis=1), n, shares)
        coverage = 0.0
        for only_a, only_b, chance in zip(a.tolist(), b.tolist(), chances.tolist(), strict=True):
            if chance > 1e-7:
                changed = (rows >= only_a) & (rows < only_a + only_b)
                low, high = paired_difference(rows < only_a, changed).interval
                coverage += chance * (low <= truth <= high)
        wrong = int(coverage < LEAST_COVERED)
        yield f"| {n} | {differ:g} | {one_way:g} | {coverage:.3f}{'  MISSED' if wrong else ''} |", wrong


GUARDS = 3


def edge_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """A nominee that clears its bar, and whose limit, requirement and guards all just hold: FAIL where the claims that
    one is broken share the error, and where each has it whole."""
    rng, budget_ms = np.random.default_rng([seed, 5]), 100.0
    counted = {"shared": GUARDS + 1, "whole": 0}
    failed = dict.fromkeys(counted, 0)
    for _ in range(runs):
        guards = [retention_guard(rng, 0.05, 300) for _ in range(GUARDS)]
        calls = latency(np.exp(rng.standard_normal(64) - ndtri(0.95)) * budget_ms / 1000)
        right = (rng.random(400) < 0.8).astype(float)
        for name, conditions in counted.items():
            requirement = RequirementResult("", "", None, 0.8, Judged(right), 400, claims=2 if conditions else 1)
            claims = 2 + conditions if conditions else 1
            broken = [
                requirement.at(LEVEL, conditions).holds,
                p95_limit(calls, budget_ms, LEVEL, claims).holds,
                *(guard.at(LEVEL, claims).holds for guard in guards),
            ]
            failed[name] += False in broken
    rates = [count / runs for count in failed.values()]
    wrong = int(rates[0] > MOST_FALSE)
    yield f"| {rates[0]:.3f}{'  MISSED' if wrong else ''} | {rates[1]:.3f} |", wrong


def calibration_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for n in (200, 600):
        for over in (0.0, 0.05, 0.15):
            rng = np.random.default_rng([seed, n, round(100 * over)])
            truth = over * (1 - ((0.8 - 0.5) / 0.499) ** 3)
            lower_misses = below = 0
            width = 0.0
            for _ in range(runs):
                confidences = 0.5 + 0.499 * rng.beta(3, 1, n)
                right = rng.random(n) < confidences - np.where(confidences > 0.8, over, 0.0)
                bins = np.ceil(confidences * 10).astype(np.int64) - 1
                bounds = calibration_bounds(confidences - right, bins, range(n), CONFIDENCE)
                lower_misses, below = lower_misses + (bounds.lower > truth), below + (bounds.upper < truth)
                width += (bounds.upper - truth) / runs
            wrong = int(
                max(lower_misses, below) > MOST_FALSE * runs + 2 * (MOST_FALSE * (1 - MOST_FALSE) * runs) ** 0.5
            )
            yield f"| {n} | {truth:.3f} | {below / runs:.3f} | {lower_misses / runs:.3f} | {width:.3f} |", wrong


TABLES: dict[str, Table] = {
    "against": (
        f"Against what runs today ({TRUTH}): PASS of a skin worse by the margin of {MARGIN} / of an equal one that has "
        "to be better / of an equal one that may be worse by it (power)",
        header("n, groups | sizes", CORRELATIONS),
        paired_lines,
        1,
    ),
    "lost": (
        "Against what runs today: PASS of a skin that has lost all of the margin, in rows that are alike within groups",
        header("margin | n, groups", CORRELATIONS),
        lost_lines,
        2,
    ),
    "costs": (
        "Expected costs at the bar, a mistake of $5 being rare: PASS, and coverage of the shown 95% interval",
        "| rows | of them dear | PASS | coverage |",
        cost_lines,
        4,
    ),
    "weights": (
        "Weighted rows at the bar of 0.9: PASS, and coverage of the shown 95% interval",
        header("weights | n, groups", CORRELATIONS),
        weighted_lines,
        1,
    ),
    "heavy": (
        "A few heavy rows or groups at the bar: PASS, FAIL, and coverage of the shown 95% interval",
        "| heavy (rows of a group) | share | bar | PASS | FAIL | coverage |",
        heavy_lines,
        2,
    ),
    "sizes": (
        "Sizes drawn as groups are, by where these are worse: PASS / FAIL at the truth, coverage of the shown 95%",
        f"| sizes | groups | {' | '.join(TRENDS)} |",
        drawn_lines,
        4,
    ),
    "requirements": (
        "Three requirements: PASS of two nominees, FAIL of one at its bar, by how many requirements are at theirs",
        "| at the bar | PASS | FAIL |",
        required_lines,
        1,
    ),
    "pairs": (
        "Two candidates that differ on few rows: coverage of the shown 95% interval",
        "| rows | differ | one way | coverage |",
        pair_lines,
        1,
    ),
    "edges": (
        "FAIL of a nominee whose limit, requirement and three guards all just hold: one error for all, one each",
        "| one error | one each |",
        edge_lines,
        4,
    ),
    "calibration": (
        "Calibration error, bounds at 95%: truth above the upper, truth below the lower, mean distance of the upper",
        "| rows | truth | above | below | distance |",
        calibration_lines,
        8,
    ),
}
"""By name."""


if __name__ == "__main__":
    run_tables(__doc__, TABLES, "PASS")
