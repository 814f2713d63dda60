"""Tests the metric on new rows against the bound in the skin's report and against its bar.

The promise is the bound that the verdict showed, not the estimate: that was the best of several, and reads high. A mean
of row scores is bet on to have fallen below (`core.statistics.betting`), over all looks; other metrics are bounded at
each look by itself, the j-th with 6/(π²j²) of the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bedplate.core.errors import UsageError
from bedplate.core.statistics.betting import BettingEvidence, Gains, evidence, gains
from bedplate.core.statistics.multiplicity import needed_n, spent_alpha
from bedplate.core.statistics.unequal import InsufficientGroups
from bedplate.evaluation.evaluated import Evaluation


@dataclass(frozen=True)
class Promise:
    """What a skin's own record says of its quality: an estimate on a split with its two-sided 95% interval, the bar
    that it had to clear, and what it promises. floor: the verdict's own lower bound, at `confidence`; where no verdict
    gave one, the lower end of the interval. target: None where the skin was compared with another system on the test
    rows alone: what that scored there is no bar for other rows."""

    metric: str
    split: str
    estimate: float
    interval: tuple[float, float]
    n: int
    groups: int
    target: float | None
    floor: float
    confidence: float
    by_verdict: bool

    @property
    def bar(self) -> float:
        """What a skin is kept for: without a target, that it is what was promised."""
        return self.floor if self.target is None else self.target


@dataclass(frozen=True)
class Quality:
    """The metric on new rows. bounds: lower and upper of this look's rows by themselves, each one-sided at `level`;
    None, with the `reason`, where the rows allow none. worse, below_bar: whether all looks show it to be less than
    promised, under the bar; with their evidence, of a mean of rows (the others' is in the bounds). needed: rows in all
    that would show on which side of the bar the metric is, if it is what it reads. gains: what the bets of this look
    gained."""

    metric: str
    estimate: float
    level: float
    bounds: tuple[float, float] | None
    reason: str | None
    promise: Promise | None
    worse: bool
    below_bar: bool
    worse_evidence: BettingEvidence | None
    bar_evidence: BettingEvidence | None
    needed: int | None
    gains: dict[str, Gains]

    @property
    def above_bar(self) -> bool:
        """Whether this look shows it to be over the bar."""
        return self.promise is not None and self.bounds is not None and self.bounds[0] > self.promise.bar

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the bets."""
        plain = {key: value for key, value in vars(self).items() if key != "gains"}
        for name in ("promise", "worse_evidence", "bar_evidence"):
            plain[name] = None if plain[name] is None else asdict(plain[name])
        return {**plain, "above_bar": self.above_bar}


def quality(
    after: Evaluation,
    promise: Promise | None,
    level: float,
    *,
    look: int = 1,
    unseen: Sequence[bool] | None = None,
    earlier: Sequence[dict[str, Gains]] = (),
    largest: int = 1,
) -> Quality:
    """The metric on new rows against the promise and the bar, each with an error of `level` over all looks.

    unseen: the rows that no earlier look had; by default all. earlier: what earlier looks gained. largest: rows of a
    group that are bet on at most. UsageError where the promise is of another metric.
    """
    if promise is not None and promise.metric != after.metric:
        raise UsageError(
            f"the skin's report tells of {promise.metric}, but the task scores {after.metric}; give the task file that "
            "the skin was made for"
        )
    bounds, reason = None, None
    try:
        bounds = _bounds(after, level)
    except InsufficientGroups as error:
        reason = error.message
    if promise is None:
        return Quality(after.scored_as, after.estimate, level, bounds, reason, None, False, False, None, None, None, {})
    floors = {"promise": promise.floor, "bar": promise.target}
    floors = {name: floor for name, floor in floors.items() if floor is not None}
    needed = _needed(after, promise.bar, 1 - level)
    if after.scoring == "counts":
        at = None if bounds is None else _bounds(after, spent_alpha(level, look))[1]
        below = {name: at is not None and at < floor for name, floor in floors.items()}
        evidence_by_floor: dict[str, BettingEvidence | None] = dict.fromkeys(floors)
        gained: dict[str, Gains] = {}
    else:
        gained = {name: _gains(after, floor, unseen, largest) for name, floor in floors.items()}
        evidence_by_floor = {
            name: evidence([*(look_gains[name] for look_gains in earlier if name in look_gains), gained[name]])
            for name in floors
        }
        below = {
            name: floor_evidence is not None and floor_evidence.against(level)
            for name, floor_evidence in evidence_by_floor.items()
        }
    return Quality(
        after.scored_as,
        after.estimate,
        level,
        bounds,
        reason,
        promise,
        below["promise"],
        below.get("bar", False),
        evidence_by_floor["promise"],
        evidence_by_floor.get("bar"),
        needed,
        gained,
    )


def _bounds(after: Evaluation, level: float) -> tuple[float, float]:
    low, high = after.bound(1 - level, "lower"), after.bound(1 - level, "upper")
    return min(low, after.estimate), max(high, after.estimate)


def _gains(after: Evaluation, floor: float, unseen: Sequence[bool] | None, largest: int) -> Gains:
    """Gains of bets on the rows that the metric is a mean of: all, or those that were answered."""
    counted = np.ones(after.n, dtype=bool) if unseen is None else np.asarray(unseen, dtype=bool)
    row_indices = after.judged_rows[counted[after.judged_rows]]
    rows = [after.rows[row] for row in row_indices.tolist()]
    groups = [row.group for row in rows] if after.groups < after.n else None
    return gains([row.score for row in rows], groups, floor, largest)


def _needed(after: Evaluation, target: float, confidence: float) -> int | None:
    """Rows that would show on which side of the bar the metric is."""
    estimate = after.estimate
    if estimate < target:
        estimate, target = 1 - estimate, 1 - target
    return needed_n(estimate, target, confidence, deff=max(1.0, after.design_effect), variance=after.row_variance)
