"""Whole ladders drawn at random, whose truth is known, and judged by the gate itself.

A candidate is right on row i of group g when a standard normal falls below the quantile of the group's own rate. Rates
are Beta(p (1/ρ - 1), (1 - p) (1/ρ - 1)): right on p of all rows, with correlation ρ between two rows of a group. The
normals behind rates and rows are shared in part by all candidates of a ladder (a Gaussian copula), because what is hard
for one skin is hard for another. Valid and test are drawn anew from the same populations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri
from tests.core import grouped

from bedplate.adaptation.task.spec import BudgetSpec
from bedplate.adaptation.verdict import gate
from bedplate.adaptation.verdict.decision import GateVerdict, Nominable
from bedplate.core.statistics import clusters, multiplicity, proportions

# Sentences for each review, of the splits that examples/reviews makes of vader-amazon: 587 rows in 60 groups each.
VALID_SIZES = (
    *(1, 2, 2, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 8, 8),
    *(8, 8, 8, 9, 9, 9, 9, 9, 10, 10, 11, 11, 11, 11, 12, 12, 13, 13, 14, 14, 15, 16, 17, 18, 18, 23, 27, 28, 30, 40),
)
TEST_SIZES = (
    *(1, 1, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 5, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 7, 8, 8),
    *(8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 11, 11, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 16, 18, 19, 24, 27, 28, 30, 39),
)
BAR, ICC, CONFIDENCE = 0.80, 0.05, 0.95
SHARED_GROUP, SHARED_ROW = 0.5, 0.5
CHUNK = 200


class Rows:
    """The rows of one split, and the candidates' own normals on them (kept, so that an edit can be drawn near one)."""

    def __init__(
        self, rng: np.random.Generator, sizes: tuple[int, ...], ladders: int, truth: np.ndarray, icc: float
    ) -> None:
        self.rng, self.sizes, self.truth = rng, np.array(sizes), truth
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.n, self.groups = int(self.sizes.sum()), len(sizes)
        self.codes = np.repeat(np.arange(self.groups), self.sizes)
        self.easy_groups = rng.standard_normal((ladders, 1, self.groups), np.float32)
        self.easy_rows = rng.standard_normal((ladders, 1, self.n), np.float32)
        self.own_groups = rng.standard_normal((ladders, len(truth), self.groups), np.float32)
        self.own_rows = rng.standard_normal((ladders, len(truth), self.n), np.float32)
        self.grid = np.linspace(-6, 6, 4001)
        spread = 1 / icc - 1
        self.table = {p: ndtri(betaincinv(p * spread, (1 - p) * spread, ndtr(self.grid))) for p in set(truth)}

    def outcomes(self) -> np.ndarray:
        """Right or wrong, bool [ladders, candidates, n]."""
        level = np.sqrt(SHARED_GROUP) * self.easy_groups + np.sqrt(1 - SHARED_GROUP) * self.own_groups
        bound = np.empty(level.shape, np.float32)
        for c, p in enumerate(self.truth):
            bound[:, c] = np.interp(level[:, c], self.grid, self.table[p])
        row = np.float32(np.sqrt(SHARED_ROW)) * self.easy_rows + np.float32(np.sqrt(1 - SHARED_ROW)) * self.own_rows
        return row < bound[:, :, self.codes]

    def edit(self, parents: np.ndarray, likeness: float) -> None:
        """New candidates on the same rows: each an edit of its ladder's `parents` [ladders], with this correlation."""
        fresh = np.sqrt(1 - likeness**2)
        for name in ("own_groups", "own_rows"):
            before = getattr(self, name)
            parent = before[np.arange(len(parents)), parents][:, None]
            noise = self.rng.standard_normal(before.shape, np.float32)
            setattr(self, name, np.float32(likeness) * parent + np.float32(fresh) * noise)

    def retain(self, alive: np.ndarray) -> None:
        """Goes on with some of the ladders only."""
        for name in ("easy_groups", "easy_rows", "own_groups", "own_rows"):
            setattr(self, name, getattr(self, name)[alive])


@dataclass(frozen=True, eq=False)
class Judged:
    """What the gate asks of an evaluation, by the same functions, without a record for each row."""

    scores: np.ndarray
    groups: np.ndarray
    estimate: float
    design_effect: float
    row_variance: None = None

    @property
    def n(self) -> int:
        return len(self.scores)

    def bound(self, confidence: float, side: str = "lower") -> float:
        return clusters.effective_n_bound(self.scores, self.groups, confidence, side).value


def summaries(rows: Rows, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Estimates and design effects [ladders, candidates] of outcomes [ladders, candidates, n], all at once."""
    sums = np.add.reduceat(right, rows.starts, axis=2, dtype=np.float64)
    return sums.sum(axis=2) / rows.n, grouped.design_effect(sums, rows.sizes.astype(float))


@dataclass
class Outcome:
    """How one ladder ended. nominees: candidate numbers. naive: the best of all on test reads above the bar; bounded:
    and so does its own 95% bound that takes rows for independent."""

    status: str
    winner: int | None
    nominees: tuple[int, ...]
    naive: bool
    bounded: bool
    best: int = 0
    tested: dict[str, object] = field(default_factory=dict)


def judge(valid: list[Judged], tests: list[Judged], n: int, groups: int, alpha: float) -> tuple[str, list[int], str]:
    """Nominate, confirm, decide, as the ladder does: the status, the nominees, the winner's name."""
    candidates = [
        Nominable(str(i), v.estimate, v.design_effect, 0.001 * (i + 1), 100.0, 50) for i, v in enumerate(valid)
    ]
    confidence = 1 - multiplicity.spent_alpha(1 - CONFIDENCE, 1)
    nomination = gate.nominate(candidates, BudgetSpec(), target=BAR, confidence=confidence, test_n=n, baseline="0")
    confirmed = gate.confirm(
        [(name, tests[int(name)]) for name in nomination.nominees],
        {str(i): v for i, v in enumerate(valid)},
        target=BAR,
        alpha=alpha,
    )
    decision = GateVerdict(nomination, confirmed, metric="accuracy", target=BAR, n=n, groups=groups).decision
    return decision.status, [int(name) for name in nomination.nominees], decision.rung or ""


def judged(rows: Rows, right: np.ndarray, ladder: int, mean: np.ndarray, effect: np.ndarray) -> list[Judged]:
    return [
        Judged(right[ladder, c].astype(float), rows.codes, float(mean[ladder, c]), float(effect[ladder, c]))
        for c in range(right.shape[1])
    ]


def round_of(valid: Rows, test: Rows, alpha: float) -> list[Outcome]:
    """One round of every ladder on its present candidates."""
    looked, closed = valid.outcomes(), test.outcomes()
    v_mean, v_effect = summaries(valid, looked)
    t_mean, t_effect = summaries(test, closed)
    plain = proportions.binomial_lower
    outcomes: list[Outcome] = []
    for ladder in range(len(looked)):
        status, nominees, winner = judge(
            judged(valid, looked, ladder, v_mean, v_effect),
            judged(test, closed, ladder, t_mean, t_effect),
            test.n,
            test.groups,
            alpha,
        )
        top = float(t_mean[ladder].max())
        best = max(nominees, key=lambda c, ladder=ladder: t_mean[ladder, c])
        bounded = plain(round(top * test.n), test.n, CONFIDENCE) > BAR
        passed = int(winner) if status == "PASS" else None
        outcomes.append(Outcome(status, passed, tuple(nominees), top > BAR, bounded, best))
    return outcomes


def climb(ladders: int, truth: list[float], seed: int, icc: float = ICC) -> Iterator[Outcome]:
    """Ladders with the demo's groups, candidates right on `truth` of all rows, first verdict on fresh test rows."""
    rng = np.random.Generator(np.random.PCG64(seed))
    alpha = multiplicity.spent_alpha(1 - CONFIDENCE, 1)
    for start in range(0, ladders, CHUNK):
        size = min(CHUNK, ladders - start)
        valid = Rows(rng, VALID_SIZES, size, np.array(truth), icc)
        test = Rows(rng, TEST_SIZES, size, np.array(truth), icc)
        yield from round_of(valid, test, alpha)


def edit_and_rerun(ladders: int, rounds: int, likeness: float, seed: int, candidates: int = 8) -> list[int]:
    """How many ladders have passed by the end of each round: every candidate at the bar, each round's candidates edits
    of the nominee that read best on test, judged on the same rows at the alpha that is left for the round."""
    rng = np.random.Generator(np.random.PCG64(seed))
    truth = np.full(candidates, BAR)
    passed = [0] * rounds
    for start in range(0, ladders, CHUNK):
        size = min(CHUNK, ladders - start)
        valid, test = (Rows(rng, sizes, size, truth, ICC) for sizes in (VALID_SIZES, TEST_SIZES))
        for number in range(rounds):
            outcomes = round_of(valid, test, multiplicity.spent_alpha(1 - CONFIDENCE, number + 1))
            alive = np.array([o.status != "PASS" for o in outcomes])
            for later in range(number, rounds):
                passed[later] += int((~alive).sum())
            parents = np.array([o.best for o in outcomes])[alive]
            for rows in (valid, test):
                rows.retain(alive)
                rows.edit(parents, likeness)
    return passed
