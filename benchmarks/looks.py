"""A year of daily looks at a skin: how often it is called worse although nothing has changed, and how soon it is when
it has.

Skins that passed: of eight candidates whose truths are drawn around 0.84, the three best on valid are nominated, and
one that clears the bar of 0.8 on test by the gate's bound at a first verdict is served. It is then looked at every day
on new rows of its own. Beside it stands the test that looks had before: the interval of a difference of two independent
estimates, the j-th look with 6/(π²j²) of the error. The same of inputs (six directions), where the old ones are 300
rows; beside them rank tests of each direction, corrected for all (Bonferroni), at the same levels. Needs a processor
only.

usage: looks.py [--runs 400] [--looks 365] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bedplate.core.statistics import betting, clusters, multiplicity, paired
from bedplate.evaluation.drift import Levels, Sample, shifts
from comparison import start

ALPHA, BAR, TRUTH, SPREAD = 0.05, 0.8, 0.84, 0.03
LEVELS = Levels(ALPHA)
FIRST = 1 - multiplicity.spent_alpha(ALPHA, 1)
CANDIDATES, NOMINEES, JUDGED = 8, 3, 600
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Served:
    """A skin that passed: its truth, its right answers on test, and the bound that the verdict showed."""

    truth: float
    right: Floats
    codes: NDArray[np.int64]
    floor: float


def drawn(rng: np.random.Generator, truth: float, rows: int, size: int, icc: float) -> Floats:
    """Right or wrong [rows], in groups of `size` whose rates are Beta."""
    if icc == 0 or truth in (0.0, 1.0):
        return (rng.random(rows) < truth).astype(float)
    spread = 1 / icc - 1
    rates = rng.beta(truth * spread, (1 - truth) * spread, -(-rows // size))
    return (rng.random(rows) < np.repeat(rates, size)[:rows]).astype(float)


def served(rng: np.random.Generator, size: int, icc: float) -> Served:
    """The next skin that passes."""
    codes = np.arange(JUDGED) // size
    while True:
        truths = np.clip(rng.normal(TRUTH, SPREAD, CANDIDATES), 0.5, 0.99)
        valid = [drawn(rng, truth, JUDGED, size, icc).mean() for truth in truths]
        chosen = sorted(range(CANDIDATES), key=lambda i: -valid[i])[:NOMINEES]
        tested = [drawn(rng, truths[i], JUDGED, size, icc) for i in chosen]
        bounds = multiplicity.holm_bounds([_lower(answers, codes) for answers in tested], BAR, FIRST)
        for place, bound in enumerate(bounds):
            if bound.passed:
                return Served(truths[chosen[place]], tested[place], codes, bound.lower)


def _lower(right: Floats, codes: NDArray[np.int64]) -> Callable[[float], float]:
    return lambda level: clusters.effective_n_bound(right, codes, level).value


@dataclass
class Alarms:
    """The look of each run's first alarm; None where there was none. seconds: of the last look, on average."""

    new: list[int | None]
    old: list[int | None]
    seconds: float = 0.0

    def rates(self) -> tuple[float, float]:
        new, old = (
            sum(look is not None for look in alarm_looks) / len(alarm_looks) for alarm_looks in (self.new, self.old)
        )
        return new, old

    def soon(self, begin: int) -> str:
        """Median looks from the change to the alarm, and the share that comes within 30."""
        columns: list[str] = []
        for alarm_looks in (self.new, self.old):
            after = [None if look is None or look < begin else look - begin + 1 for look in alarm_looks]
            early_share = sum(look is not None and look <= 30 for look in after) / len(after)
            median = float(np.median([np.inf if look is None else look for look in after]))
            columns.append(
                f"{median:.0f} ({early_share:.0%} in 30)" if np.isfinite(median) else f"never ({early_share:.0%} in 30)"
            )
        return " / ".join(columns)


def quality(
    runs: int, looks: int, rows: int, size: int, icc: float, seed: int, drop: float = 0.0, begin: int = 1
) -> Alarms:
    """Looks at skins that stay as they are, or lose `drop` from look `begin` on."""
    rng = np.random.default_rng([seed, rows, size, round(100 * icc), round(1000 * drop), begin])
    alarms = Alarms([], [])
    for _ in range(runs):
        skin = served(rng, size, icc)
        days = [drawn(rng, skin.truth - drop * (day >= begin), rows, size, icc) for day in range(1, looks + 1)]
        groups = None if size == 1 else (np.arange(rows) // size).tolist()
        since = time.perf_counter()
        log = betting.log_capital([betting.gains(day, groups, skin.floor, size) for day in days])
        alarms.seconds += (time.perf_counter() - since) / looks / runs
        alarms.new.append(next((day for day, value in enumerate(log, 1) if value >= -np.log(LEVELS.quality)), None))
        alarms.old.append(next((day for day, answers in enumerate(days, 1) if _worse(skin, answers, size, day)), None))
    return alarms


def _worse(skin: Served, right: Floats, size: int, look: int) -> bool:
    """As looks were judged before: the upper bound of new minus promised is below zero."""
    level = 1 - multiplicity.spent_alpha(ALPHA, look) / 4
    codes = np.arange(right.size) // size
    if right.mean() >= skin.right.mean():  # nothing to be shown
        return False
    sides: list[tuple[float, float]] = []
    for values, groups in ((right, codes), (skin.right, skin.codes)):
        ends = [
            clusters.effective_n_bound(values, groups, level, side, minimum_groups=2).value
            for side in ("lower", "upper")
        ]
        sides.append((min(ends[0], float(values.mean())), max(ends[1], float(values.mean()))))
    return paired.independent_difference(float(right.mean()), float(skin.right.mean()), *sides)[1] < 0


def inputs(runs: int, looks: int, rows: int, seed: int, shift: float = 0.0, begin: int = 1) -> Alarms:
    """Looks at inputs that stay as they are, or move in one of six directions from look `begin` on."""
    rng = np.random.default_rng([seed, rows, round(1000 * shift), begin])
    alarms = Alarms([], [])
    scale = np.linspace(2.0, 1.0, 6)
    for _ in range(runs):
        old = rng.standard_normal((300, 6)) * scale
        before: dict[str, list[betting.Gains]] = {"inputs": [], "length": []}
        first = None
        for day in range(1, looks + 1):
            new = rng.standard_normal((rows, 6)) * scale
            if day >= begin:
                new[:, 0] += 2 * shift
            old_side, new_side = (
                Sample(["a row"] * len(vectors), None, None, vectors, range(len(vectors))) for vectors in (old, new)
            )
            since = time.perf_counter()
            for change in shifts(old_side, new_side, LEVELS.shift):
                before[change.aspect].append(change.gains)
            alarms.seconds += (time.perf_counter() - since) / looks / runs
            level = multiplicity.spent_alpha(ALPHA, day) / 2 / 3 / 6
            if first is None and stats.mannwhitneyu(new, old, method="asymptotic").pvalue.min() <= level:
                first = day
        log = betting.log_capital(before["inputs"])
        alarms.new.append(next((day for day, value in enumerate(log, 1) if value >= np.log(2 / LEVELS.shift)), None))
        alarms.old.append(first)
    return alarms


def alarm_lines(runs: int, looks: int, seed: int) -> Iterator[tuple[str, bool]]:
    cases = [(20, 1, 0.0), (120, 1, 0.0), (120, 4, 0.1)]
    for rows, size, icc in cases:
        alarms = quality(runs, looks, rows, size, icc, seed)
        new, old = alarms.rates()
        how = "rows by themselves" if size == 1 else f"groups of {size}, correlation {icc:g}"
        missed = new > ALPHA
        yield f"| quality, {rows} {how} | {new:.3f}{' MISSED' if missed else ''} | {old:.3f} | {_ms(alarms)} |", missed
    alarms = inputs(max(runs // 8, 10), looks, 25, seed)
    new, old = alarms.rates()
    missed = new > ALPHA
    yield f"| inputs, 25 rows | {new:.3f}{' MISSED' if missed else ''} | {old:.3f} | {_ms(alarms)} |", missed


def _ms(alarms: Alarms) -> str:
    return f"{1000 * alarms.seconds:.2f} ms"


def power_lines(runs: int, seed: int) -> Iterator[tuple[str, bool]]:
    for drop in (0.05, 0.1, 0.15):
        cells = [quality(runs, b + 60, 60, 1, 0.0, seed, drop, b).soon(b) for b in (1, 60)]
        yield f"| quality, a loss of {drop:g}, 60 rows a look | {' | '.join(cells)} |", False
    for shift in (0.3, 0.6):
        cells = [inputs(max(runs // 8, 10), b + 60, 25, seed, shift, b).soon(b) for b in (1, 60)]
        yield f"| inputs, {shift:g} standard deviations, 25 rows a look | {' | '.join(cells)} |", False


def table(title: str, header: Sequence[str], lines: Iterator[tuple[str, bool]]) -> int:
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
    missed = 0
    for line, bad in lines:
        print(line, flush=True)
        missed += bad
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400, help="of each cell")
    parser.add_argument("--looks", type=int, default=365)
    parser.add_argument("--seed", type=int, default=0)
    options = start(parser).options
    missed = table(
        f"Called worse, or other, although nothing changed, in {options.looks} looks; {options.runs} skins a cell",
        ("looks of", "now", "before", "a look takes"),
        alarm_lines(options.runs, options.looks, options.seed),
    )
    table(
        "Looks from the change to the alarm, median and share within 30: now / before",
        ("change", "at the first look", "at the 60th"),
        power_lines(max(options.runs // 4, 20), options.seed),
    )
    goal = f"false alarms over all looks at most {ALPHA:g}"
    print(f"\n{goal}: {'met in every cell' if not missed else f'MISSED in {missed} cells'}")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
