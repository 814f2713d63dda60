"""Quality against the number of labels: intervals, and where tuning overtakes prompting. Pure functions of evaluations.

Everything is read off one set of resamples: whole groups of valid, and the draws of the labels, both with replacement
and the same for all rungs, so that differences are paired. Few draws spread too little in a bootstrap: their deviations
are scaled by √(S/(S−1)) (Rao & Wu 1988, JASA 83:231). Percentiles are expanded for the number of groups (Hesterberg
2015, https://arxiv.org/abs/1411.5279).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError
from bedplate.core.statistics import MINIMUM_GROUPS
from bedplate.core.statistics.bootstrap import unseen_ends
from bedplate.core.statistics.clusters import group_codes
from bedplate.evaluation.harness import Evaluation

RESAMPLES = 2000
CONFIDENCE = 0.95
_SAME = 1e-12
Ends = tuple[float, float]
Draws = NDArray[np.float64]
"""[B]: a number in each resample."""


@dataclass(frozen=True)
class OverDraws:
    """One rung at one size: its evaluation on valid for each draw of the labels. A rung that needs no labels has one,
    which stands for all draws."""

    by_draw: Mapping[int, Evaluation]
    flat: bool = False

    @property
    def estimate(self) -> float:
        """The mean over the draws."""
        return sum(one.estimate for one in self.by_draw.values()) / len(self.by_draw)


class Resamples:
    """Resamples of valid's rows, by their groups, and of draws. Whatever is asked has these rows in this order."""

    def __init__(self, like: Evaluation, seed: int = 0, count: int = RESAMPLES) -> None:
        self._hashes = [row.row_hash for row in like.rows]
        self._codes, self.groups = group_codes([row.group for row in like.rows])
        self._seed, self.count = seed, count

    @cached_property
    def _times(self) -> NDArray[np.float64]:
        """[B, G]: how often each group was drawn."""
        rng = np.random.Generator(np.random.PCG64([self._seed, 0]))
        return rng.multinomial(self.groups, np.full(self.groups, 1 / self.groups), self.count).astype(np.float64)

    def _shares(self, draws: Sequence[int]) -> NDArray[np.float64]:
        """[B, S]: the weight of each draw; the same for the same draws."""
        number = len(draws)
        if number == 1:
            return np.ones((self.count, 1))
        rng = np.random.Generator(np.random.PCG64([self._seed, 1, *draws]))
        drawn = rng.multinomial(number, np.full(number, 1 / number), self.count) / number
        return 1 / number + math.sqrt(number / (number - 1)) * (drawn - 1 / number)

    def of(self, measured: OverDraws) -> Draws:
        """The metric, averaged over draws, in each resample."""
        draws = sorted(measured.by_draw)
        values = np.stack([self._values(measured.by_draw[draw]) for draw in draws], axis=1)
        return (values * (np.ones((1, 1)) if measured.flat else self._shares(draws))).sum(axis=1)

    def _values(self, evaluation: Evaluation) -> Draws:
        if [row.row_hash for row in evaluation.rows] != self._hashes:
            raise UsageError("a learning curve compares evaluations of the same rows in the same order")
        sums = np.zeros((self.groups, evaluation.parts.shape[1]))
        np.add.at(sums, self._codes, evaluation.parts)
        return evaluation.of_sums(self._times @ sums)

    def interval(self, estimate: float, draws: Draws) -> Ends:
        """Of a metric between 0 and 1, two-sided at CONFIDENCE: it holds the estimate, and no end is nearer than groups
        of a kind that was not seen could make it. One group says nothing about others."""
        if self.groups < 2:
            return 0.0, 1.0
        low, high = self._percentiles(draws)
        least, most = unseen_ends(estimate, (0.0, 1.0), self.groups, (1 - CONFIDENCE) / 2)
        return max(0.0, min(low, least)), min(1.0, max(high, most))

    def interval_of_difference(self, difference: float, draws: Draws) -> Ends:
        """The same for a paired difference; where all resamples agree, what unseen groups could hide."""
        if self.groups < 2:
            return -1.0, 1.0
        low, high = self._percentiles(draws)
        if high - low <= _SAME:
            return unseen_ends(difference, (-1.0, 1.0), self.groups, (1 - CONFIDENCE) / 2)
        return max(-1.0, min(low, difference)), min(1.0, max(high, difference))

    def _percentiles(self, draws: Draws) -> Ends:
        low, high = np.quantile(draws, [self.tail, 1 - self.tail])
        return float(low), float(high)

    @property
    def tail(self) -> float:
        """What is cut off on each side: (1 − CONFIDENCE) / 2, less for few groups."""
        from scipy.special import ndtr, stdtrit

        wide = math.sqrt(self.groups / (self.groups - 1)) * float(stdtrit(self.groups - 1, (1 + CONFIDENCE) / 2))
        return float(ndtr(-wide))


@dataclass(frozen=True)
class Crossing:
    """From how many labels on one rung stays above another: −∞ at the smallest size already, ∞ not with the labels
    there are. interval: None under 40 groups. crosses: share of the resamples that are not ∞. differences: (labels,
    difference, interval)."""

    labels: float
    interval: Ends | None
    crosses: float
    draws: int
    differences: tuple[tuple[float, float, Ends], ...]


def crossing(
    resamples: Resamples, labels: Sequence[float], tuned: Sequence[OverDraws], prompted: Sequence[OverDraws]
) -> Crossing:
    """Where `tuned` overtakes `prompted`, each measured at `labels` (ascending) with the same draws: the difference is
    a straight line between two sizes, over the logarithm of the labels, and only its last rise above zero counts."""
    estimates = np.array([a.estimate - b.estimate for a, b in zip(tuned, prompted, strict=True)])
    draws = np.stack([resamples.of(a) - resamples.of(b) for a, b in zip(tuned, prompted, strict=True)], axis=1)
    places = np.log(np.asarray(labels, dtype=np.float64))
    found, spread = float(crossing_of(places, estimates[None])[0]), crossing_of(places, draws)
    interval = None
    if resamples.groups >= MINIMUM_GROUPS:
        tail = resamples.tail
        low, high = (float(np.quantile(spread, at, method="inverted_cdf")) for at in (tail, 1 - tail))
        interval = _labels(min(low, found)), _labels(max(high, found))
    return Crossing(
        labels=_labels(found),
        interval=interval,
        crosses=float((spread < math.inf).mean()),
        draws=max(len(one.by_draw) for one in tuned),
        differences=tuple(
            (float(n), float(estimate), resamples.interval_of_difference(float(estimate), draws[:, i]))
            for i, (n, estimate) in enumerate(zip(labels, estimates, strict=True))
        ),
    )


def crossing_of(places: NDArray[np.float64], differences: NDArray[np.float64]) -> Draws:
    """Of each line of `differences` [B, K] over `places` [K], ascending: where its last rise above zero is; −∞ where it
    is above everywhere, ∞ where it does not end above."""
    above = differences > 0
    count = above.shape[1]
    last = np.where(above.all(axis=1), -1, count - 1 - np.argmin(above[:, ::-1], axis=1))  # the last place not above
    found = np.where(last < 0, -math.inf, math.inf)
    inside = np.flatnonzero((last >= 0) & (last < count - 1))
    i = last[inside]
    before, after = differences[inside, i], differences[inside, i + 1]
    found[inside] = places[i] + (places[i + 1] - places[i]) * -before / (after - before)
    return found


def _labels(place: float) -> float:
    return math.exp(place) if math.isfinite(place) else place
