"""Groups that exist and are not declared: how often do rows that are split at random pass, and are the groups found?

Candidates are right on nine rows in ten, which is the bar; three of eight, the best on valid, are nominees. Groups of
one size stand in valid and in test, with the rates that they have, as they do where rows are split at random. PASS with
rows taken as independent; the share of runs that what is found stops, where the groups are a column (of rows in any
order), where they are the order of a file without such a column, and where there are none but such a column (false
stops); what passes unseen; and PASS with the groups declared and kept whole.

Labels of a group are as alike as its scores, and each text has that share of its words from five of its group's own.
Needs nothing but a processor.

usage: gate_groups.py [--runs 1000] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

from bedplate.core.statistics import clusters, multiplicity
from bedplate.data.rows import SourceRows
from bedplate.evaluation.leaks.hidden_groups import hidden_groups, table_of
from bedplate.evaluation.task import Task
from comparison import start
from gate import BAR, LEVEL, NOMINEES, table
from gate_rows import SHARED, equal

CANDIDATES, MOST_STOPPED_FALSELY, LEAST_STOPPED = 8, 0.05, 0.9
WORDS = np.array([f"{a}{b}" for a in "bcdfghklmnprstvz" for b in ("ad", "el", "im", "or", "un", "ast", "ent", "ick")])
TASK = Task.model_validate(
    {
        "task": "simulated",
        "inputs": {"text": {"column": "text"}},
        "output": {"kind": "label", "labels": ["no", "yes"]},
        "metric": "accuracy",
        "data": {"source": "rows", "target": "label", "split": {"train": 0.6, "valid": 0.2, "test": 0.2}},
    }
)


@lru_cache(maxsize=2)
def _rate_quantiles(icc: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normal deviates, and those of the Beta rates of groups that they stand for."""
    grid, spread = np.linspace(-6, 6, 4001), 1 / icc - 1
    return grid, ndtri(betaincinv(BAR * spread, (1 - BAR) * spread, ndtr(grid)))


def passes(rng: np.random.Generator, rows: int, groups: int, icc: float, *, declared: bool) -> bool:
    """Whether any nominee passes. Not declared: valid and test have the same groups, and rows count as independent."""
    codes = np.repeat(np.arange(groups), equal(rows, groups))
    grid, quantiles = _rate_quantiles(icc)

    def normals(size: int) -> NDArray[np.float64]:
        individual = rng.standard_normal((CANDIDATES, size))
        return np.sqrt(SHARED) * rng.standard_normal((1, size)) + np.sqrt(1 - SHARED) * individual

    rates = normals(groups)
    sides: list[NDArray[np.bool_]] = []
    for _ in ("valid", "test"):
        sides.append(normals(rows) < np.interp(rates, grid, quantiles)[:, codes])
        rates = normals(groups) if declared else rates
    valid, test = sides
    chosen = np.argsort(-valid.mean(1), kind="stable")[:NOMINEES]
    units = codes if declared else None
    bounds = [partial(_lower, test[c].astype(float), units) for c in chosen]
    return any(bound.passed for bound in multiplicity.holm_bounds(bounds, BAR, LEVEL))


def _lower(right: NDArray[np.float64], units: NDArray[np.int64] | None, level: float) -> float:
    return clusters.effective_n_bound(right, units, level).value


def stopped(rng: np.random.Generator, rows: int, groups: int, icc: float, evidence: str) -> bool:
    """Whether a file of such rows stops a run that does not declare its groups."""
    records: list[dict[str, str]] = []
    half = 0.5 * (1 / icc - 1)
    for group, size in enumerate(equal(rows, groups).tolist()):
        group_words, rate = rng.choice(WORDS, 5), 0.5 if evidence == "nothing" else rng.beta(half, half)
        for _ in range(size):
            from_group = rng.random(12) < (0 if evidence == "nothing" else icc)
            words = np.where(from_group, rng.choice(group_words, 12), rng.choice(WORDS, 12))
            records.append(
                {"text": " ".join(words), "label": "yes" if rng.random() < rate else "no", "user": f"u{group}"}
            )
    if evidence == "order":
        records = [{name: row[name] for name in ("text", "label")} for row in records]
    else:
        records = [records[i] for i in rng.permutation(rows)]
    columns = tuple(records[0])
    source = SourceRows(tuple(records), tuple(range(1, rows + 1)), columns, {}, "0" * 64, "rows", Path("rows"))
    return any(suspect.strong for suspect in hidden_groups(table_of(TASK, {"": source}))[0])


def lines(runs: int, seed: int) -> Iterator[tuple[str, int]]:
    for rows, groups in ((600, 60), (2000, 60), (2000, 300)):
        for icc in (0.05, 0.2):
            rng = np.random.default_rng([seed, rows, groups, round(100 * icc)])
            undeclared, declared = (
                float(np.mean([passes(rng, rows, groups, icc, declared=whole) for _ in range(runs)]))
                for whole in (False, True)
            )
            stop_runs = max(runs // 20, 20)
            rates = {
                evidence: float(np.mean([stopped(rng, 2 * rows, groups, icc, evidence) for _ in range(stop_runs)]))
                for evidence in ("column", "order", "nothing")
            }
            silent = undeclared * (1 - rates["column"])
            wrong = rates["nothing"] > MOST_STOPPED_FALSELY + 2 * (0.05 * 0.95 / stop_runs) ** 0.5
            wrong |= rates["column"] < LEAST_STOPPED
            columns = f"{undeclared:.3f} | {rates['column']:.2f} | {rates['order']:.2f} | {rates['nothing']:.2f}"
            yield f"| {rows}, {groups} | {icc:g} | {columns} | {silent:.3f} | {declared:.3f} |", int(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="of each cell; a twentieth for what is found")
    parser.add_argument("--seed", type=int, default=0)
    options = start(parser).options
    missed = table(
        f"PASS of {NOMINEES} of {CANDIDATES} candidates at the bar of {BAR}; {options.runs} runs a cell",
        "| n, groups | correlation | PASS | stopped: column | order | no groups | PASS unseen | PASS, declared |",
        lines(options.runs, options.seed),
    )
    print(f"\nfound as a column in {LEAST_STOPPED:.0%}, false stops at most {MOST_STOPPED_FALSELY:.0%}: ", end="")
    print("met in every cell" if not missed else f"MISSED in {missed} cells")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
