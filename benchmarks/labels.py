"""Do verdicts hold that buy their labels as they go? False PASS, power and labels saved by simulation.

Looks: candidates at a bar of 0.8 are judged when a fifth, two fifths … of the test rows have labels, three correlated
nominees with Holm at each look: how often any passes at any look, beside looking as often without a correction. Rows
independent and in groups. Power of one nominee and the share of the labels that it takes, beside one look at all of
them. Orders: eight candidates of rising price, nominated on valid; Holm beside a fixed order. Ceilings: how often the
bound of rows with two labels is above what the best answers read, where rows are not equally hard. Choosing: the mean
over test rows that were chosen by doubt, beside the mean over rows drawn at random, of the same skin.

Needs nothing but a processor.

usage: labels.py [--runs 4000] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bedplate.core.statistics import clusters, multiplicity, proportions
from bedplate.core.statistics.agreement import agreement_ceiling
from bedplate.core.statistics.multiplicity import look_levels
from bedplate.core.statistics.unequal import InsufficientGroups
from comparison import start
from gate import table
from gate_rows import correct, equal

BAR, LOOKS = 0.8, 5
ALPHA = multiplicity.spent_alpha(0.05, 1)
MOST_FALSE, LEAST_COVERED, MOST_LOST = 0.05, 0.93, 0.05
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def shares() -> tuple[float, ...]:
    return tuple((k + 1) / LOOKS for k in range(LOOKS))


def any_passes(right: Floats, codes: Ints, levels: Sequence[float]) -> int:
    """The look at which one of the nominees [c, n] passes by Holm, counted from 1, or 0. levels: per look, the error of
    one that has the whole; a nominee among m has the level of the whole error's m-th part."""
    n = right.shape[1]
    for look in range(LOOKS):
        end = round(n * (look + 1) / LOOKS)

        def lower(nominee: Floats, confidence: float, look: int = look, end: int = end) -> float:
            level = levels[look] if levels else look_levels(1 - confidence, shares()[: look + 1])[-1]
            try:
                return clusters.effective_n_bound(nominee[:end], codes[:end], 1 - level).value
            except InsufficientGroups:
                return -1.0

        bounds = [lambda confidence, nominee=nominee: lower(nominee, confidence) for nominee in right]
        if any(bound.passed for bound in multiplicity.holm_bounds(bounds, BAR, 1 - ALPHA)):
            return look + 1
    return 0


def look_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """Rows in a random order, as they are drawn."""
    for rows, groups, icc in ((100, 100, 0.0), (500, 500, 0.0), (600, 120, 0.05), (600, 120, 0.2), (600, 60, 0.2)):
        rng = np.random.default_rng([seed, rows, groups, round(100 * icc)])
        sizes = equal(rows, groups)
        codes = np.repeat(np.arange(groups), sizes)
        false = plain = 0
        for right in correct(rng, sizes, BAR, icc, runs, 3):
            for answers in right.astype(np.float64):
                order = rng.permutation(rows)
                drawn = answers[:, order]
                false += any_passes(drawn, codes[order], []) > 0
                plain += any_passes(drawn, codes[order], [ALPHA / 3] * LOOKS) > 0
        wrong = false > MOST_FALSE * runs
        yield (
            f"| {rows}, {groups} | {icc:g} | {false / runs:.3f}{'  MISSED' if wrong else ''} | {plain / runs:.3f} |",
            wrong,
        )


def saved_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """One nominee, 500 independent rows, judged by the exact bound."""
    rng = np.random.default_rng([seed, 1])
    n = 500
    ends = [round(n * share) for share in shares()]
    levels = look_levels(ALPHA, shares())
    thresholds = [int(stats.binom.isf(level, end, BAR)) + 1 for level, end in zip(levels, ends, strict=True)]
    single_threshold = int(stats.binom.isf(ALPHA, n, BAR)) + 1
    for truth in (0.82, 0.84, 0.86, 0.88, 0.9, 0.95):
        right = (rng.random((runs, n)) < truth).cumsum(1)[:, [end - 1 for end in ends]]
        passed = right >= np.array(thresholds)
        labels_used = np.where(passed.any(1), np.array(ends)[passed.argmax(1)], n)
        power, whole = float(passed.any(1).mean()), float((right[:, -1] >= single_threshold).mean())
        wrong = whole - power > MOST_LOST
        yield (
            f"| {truth} | {power:.3f} / {whole:.3f}{'  MISSED' if wrong else ''} | {labels_used.mean() / n:.0%} |",
            int(wrong),
        )


def order_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """600 rows of valid and of test; the three cheapest that look good enough and the best are nominated."""
    for title, truths in (
        ("rising with the price", [0.78, 0.80, 0.82, 0.84, 0.85, 0.86]),
        ("all 0.84", [0.84] * 6),
        ("only the dearest good", [0.76, 0.77, 0.78, 0.79, 0.80, 0.86]),
        ("all 0.83, three", [0.83] * 3),
        ("all at the bar", [BAR] * 6),
    ):
        rng = np.random.default_rng([seed, 2, len(truths), round(1000 * truths[0])])
        tallies = {"holm": [0, 0], "best first": [0, 0], "cheapest first": [0, 0]}
        for _ in range(runs):
            shared = np.sqrt(0.6) * rng.standard_normal((2, 1, 600))
            individual = np.sqrt(0.4) * rng.standard_normal((2, len(truths), 600))
            counts = (shared + individual < stats.norm.ppf(truths)[:, None]).sum(-1)
            for name, passed in judged(counts[0] / 600, counts[1]).items():
                tallies[name][0] += bool(passed)
                tallies[name][1] += min(passed, default=0)
        columns = " | ".join(f"{won / runs:.3f} ({place / max(1, won):.2f})" for won, place in tallies.values())
        wrong = truths[0] == BAR and any(won > MOST_FALSE * runs for won, _ in tallies.values())
        yield f"| {title} | {columns}{'  MISSED' if wrong else ''} |", int(wrong)


def judged(valid: Floats, right: Ints) -> dict[str, list[int]]:
    """Who passes by each rule: numbers of candidates, cheapest first."""
    clear = BAR + stats.norm.isf(ALPHA / 3) * np.sqrt(BAR * (1 - BAR) / 600)
    pool = np.flatnonzero(valid >= clear).tolist() or np.flatnonzero(valid > BAR).tolist() or [int(valid.argmax())]
    best, chosen = int(valid.argmax()), pool[:3]
    if best in pool and best not in chosen:
        chosen = [*chosen[:2], best]
    bounds = [
        lambda level, candidate=candidate: proportions.binomial_lower(int(right[candidate]), 600, level)
        for candidate in chosen
    ]
    by_valid = sorted(range(len(chosen)), key=lambda i: -valid[chosen[i]])
    rules = {
        "holm": multiplicity.holm_bounds(bounds, BAR, 1 - ALPHA),
        "best first": multiplicity.sequence_bounds(bounds, BAR, 1 - ALPHA, None, by_valid),
        "cheapest first": multiplicity.sequence_bounds(bounds, BAR, 1 - ALPHA),
    }
    return {
        rule: [candidate for candidate, bound in zip(chosen, rule_bounds, strict=True) if bound.passed]
        for rule, rule_bounds in rules.items()
    }


def ceiling_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """Annotators who are right on 95% of rows of one kind and 85% of the other: no answer reads more than 0.9."""
    for rows, groups in ((100, 100), (400, 400), (400, 80)):
        rng = np.random.default_rng([seed, 3, rows, groups])
        codes = np.repeat(np.arange(groups), equal(rows, groups))
        covered = 0
        for _ in range(runs):
            sure = np.where(rng.random(groups) < 0.5, 0.95, 0.85)[codes]
            first, second = (rng.random(rows) < sure for _ in range(2))
            highest = agreement_ceiling(first == second, codes.tolist(), 2).highest
            covered += highest is None or highest >= 0.9
        wrong = covered < LEAST_COVERED * runs
        yield f"| {rows}, {groups} | {covered / runs:.3f}{'  MISSED' if wrong else ''} |", int(wrong)


def chosen_lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    """A skin that knows how sure it is: it is right with probability c, which is uniform from 0.6 to 1 (mean 0.8)."""
    rng = np.random.default_rng([seed, 4])
    means: dict[str, list[float]] = {"drawn at random": [], "chosen by doubt": []}
    for _ in range(runs):
        sure = rng.uniform(0.6, 1.0, 1000)
        right = rng.random(1000) < sure
        means["drawn at random"].append(float(right[:200].mean()))
        means["chosen by doubt"].append(float(right[np.argsort(sure)[:200]].mean()))
    for title, estimates in means.items():
        yield (
            f"| {title} | {np.mean(estimates):.3f} |",
            int(title == "drawn at random" and abs(np.mean(estimates) - 0.8) > 0.005),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=4000, help="of each cell; a tenth for cells with groups and nominees"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = start(parser).options
    runs, seed = options.runs, options.seed
    cell_runs = max(200, runs // 4)
    missed = table(
        f"PASS of three nominees at the bar at any of five looks; {cell_runs} runs a cell, nominal {ALPHA:.3f}",
        "| n, groups | correlation | levels of looks | each look at the whole level |",
        look_lines(cell_runs, seed),
    )
    missed += table(
        f"One nominee, 500 labels at most: power at five looks and at one, and the labels it takes; {runs} runs",
        "| truth | power | labels |",
        saved_lines(runs, seed),
    )
    missed += table(
        f"PASS of any, and the mean place (by price, from 0) of the cheapest that passed; {cell_runs} runs a line",
        "| truths | Holm | best on valid first | cheapest first |",
        order_lines(cell_runs, seed),
    )
    missed += table(
        f"The ceiling's upper bound at 95% covers what the best answers read; {runs} runs a line",
        "| n, groups | covered |",
        ceiling_lines(runs, seed),
    )
    missed += table(
        f"Mean over 200 of 1,000 test rows whose mean is 0.8; {runs} runs", "| rows | mean |", chosen_lines(runs, seed)
    )
    print(f"\n{missed} cells missed their goal" if missed else "\nevery cell reached its goal")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
