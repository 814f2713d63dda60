"""Quality against the number of labels: intervals, and where tuning overtakes prompting. Pure functions of evaluations.

Everything is read off one set of resamples: whole groups of valid, and the draws of the labels, both with replacement
and the same for all rungs, so that differences are paired. Few draws spread too little in a bootstrap: their deviations
are scaled by √(S/(S−1)) (Rao & Wu 1988, JASA 83:231). Percentiles are expanded as quantiles of t are against normal
ones (Hesterberg 2015, https://arxiv.org/abs/1411.5279), with Satterthwaite's degrees of freedom of both parts of the
variance: few draws say little of how much draws differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError
from bedplate.core.statistics.bootstrap import unseen_ends
from bedplate.core.statistics.clusters import group_codes
from bedplate.core.statistics.unequal import enough_groups, stretch, worth
from bedplate.evaluation.harness import Evaluation

RESAMPLES = 2000
CONFIDENCE = 0.95
_TOLERANCE = 1e-12
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
        return sum(evaluation.estimate for evaluation in self.by_draw.values()) / len(self.by_draw)

    @property
    def estimates(self) -> NDArray[np.float64]:
        """[S], of each draw in order."""
        return np.array([self.by_draw[draw].estimate for draw in sorted(self.by_draw)])


class Resamples:
    """Resamples of valid's rows, by their groups, and of draws. Whatever is asked has these rows in this order."""

    def __init__(self, reference: Evaluation, seed: int = 0, count: int = RESAMPLES) -> None:
        self._hashes = [row.row_hash for row in reference.rows]
        self._codes, self.groups = group_codes([row.group for row in reference.rows])
        self._seed, self.count = seed, count
        sizes = np.bincount(self._codes, minlength=self.groups).astype(np.float64)
        self.worth, self.enough = worth(sizes), enough_groups(self._codes.tolist())
        self._stretch, self._freedom = stretch(sizes, 1.0) if self.groups > 1 else (1.0, 1.0)

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

    def interval(self, measured: OverDraws) -> Ends:
        """The interval of a metric between 0 and 1, two-sided at CONFIDENCE: it holds the estimate, and no end is
        nearer than groups of a kind that was not seen could make it. One group says nothing about others."""
        estimate, draws = measured.estimate, self.of(measured)
        if self.groups < 2:
            return 0.0, 1.0
        low, high = self._percentiles(draws, measured.estimates)
        floor, ceiling = unseen_ends(estimate, (0.0, 1.0), self.worth, (1 - CONFIDENCE) / 2)
        return max(0.0, min(low, floor)), min(1.0, max(high, ceiling))

    def interval_of_difference(self, difference: float, draws: Draws, by_draw: NDArray[np.float64]) -> Ends:
        """The same for a paired difference, by_draw [S] of each draw; where all resamples agree, what unseen groups
        could hide."""
        if self.groups < 2:
            return -1.0, 1.0
        low, high = self._percentiles(draws, by_draw)
        if high - low <= _TOLERANCE:
            return unseen_ends(difference, (-1.0, 1.0), self.worth, (1 - CONFIDENCE) / 2)
        return max(-1.0, min(low, difference)), min(1.0, max(high, difference))

    def _percentiles(self, draws: Draws, by_draw: NDArray[np.float64]) -> Ends:
        """Quantiles of the resamples, and past the outermost of them what t says."""
        from scipy.special import ndtr

        z_score = self.reach(draws, by_draw)
        tail = float(ndtr(-z_score))
        low, high = (float(np.quantile(draws, at)) for at in (tail, 1 - tail))
        if tail * self.count < 10:  # hardly any resample lies there
            middle, spread = float(draws.mean()), z_score * float(draws.std(ddof=1))
            low, high = min(low, middle - spread), max(high, middle + spread)
        return low, high

    def reach(self, draws: Draws, by_draw: NDArray[np.float64]) -> float:
        """How many standard errors each end is off: the quantile of t, with the degrees of freedom of groups and draws
        together, of a value in each resample [B] that is by_draw [S] in each draw on all rows."""
        from scipy.special import stdtrit

        number = by_draw.size
        of_draws = float(by_draw.var(ddof=1)) / number if number > 1 else 0.0
        of_groups = max(float(draws.var(ddof=1)) - of_draws, 0.0)
        parts = of_groups**2 / self._freedom + of_draws**2 / max(number - 1, 1)
        freedom = self._freedom if parts == 0 else (of_groups + of_draws) ** 2 / parts
        return self._stretch * float(stdtrit(freedom, (1 + CONFIDENCE) / 2))


@dataclass(frozen=True)
class Crossing:
    """From how many labels on one rung stays above another: −∞ at the smallest size already, ∞ not with the labels
    there are. interval: None where there are too few groups. crosses: share of the resamples that are not ∞.
    differences: (labels, difference, interval)."""

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
    from scipy.special import ndtr

    estimates = np.array([a.estimate - b.estimate for a, b in zip(tuned, prompted, strict=True)])
    draws = np.stack([resamples.of(a) - resamples.of(b) for a, b in zip(tuned, prompted, strict=True)], axis=1)
    draw_differences = [a.estimates - b.estimates for a, b in zip(tuned, prompted, strict=True)]
    places = np.log(np.asarray(labels, dtype=np.float64))
    log_labels, spread = float(crossing_of(places, estimates[None])[0]), crossing_of(places, draws)
    interval = None
    if resamples.enough:
        nearest = int(np.argmin(np.abs(estimates)))  # where the crossing is, draws differ by so much
        tail = float(ndtr(-resamples.reach(draws[:, nearest], draw_differences[nearest])))
        low, high = (float(np.quantile(spread, at, method="inverted_cdf")) for at in (tail, 1 - tail))
        interval = _labels(min(low, log_labels)), _labels(max(high, log_labels))
    return Crossing(
        labels=_labels(log_labels),
        interval=interval,
        crosses=float((spread < math.inf).mean()),
        draws=max(len(measurement.by_draw) for measurement in tuned),
        differences=tuple(
            (
                float(n),
                float(estimate),
                resamples.interval_of_difference(float(estimate), draws[:, i], draw_differences[i]),
            )
            for i, (n, estimate) in enumerate(zip(labels, estimates, strict=True))
        ),
    )


def crossing_of(places: NDArray[np.float64], differences: NDArray[np.float64]) -> Draws:
    """Where each line of `differences` [B, K] over `places` [K], ascending, rises above zero for the last time; −∞
    where it is above everywhere, ∞ where it does not end above."""
    positive = differences > 0
    count = positive.shape[1]
    # the last place not above
    last = np.where(positive.all(axis=1), -1, count - 1 - np.argmin(positive[:, ::-1], axis=1))
    crossings = np.where(last < 0, -math.inf, math.inf)
    inside = np.flatnonzero((last >= 0) & (last < count - 1))
    i = last[inside]
    before, after = differences[inside, i], differences[inside, i + 1]
    crossings[inside] = places[i] + (places[i + 1] - places[i]) * -before / (after - before)
    return crossings


def _labels(place: float) -> float:
    return math.exp(place) if math.isfinite(place) else place
