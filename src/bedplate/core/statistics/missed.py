"""What groups that were missed could hide: a bound of a proportion where few groups hold a failure.

Where rates of groups are nearly always 1 and now and then low, a sample that has missed the low ones looks like one
that has none: the share reads high, and the correlation within groups, by which that would be known, reads low. So a
mean is asked about: if it were that, what correlations do the rows leave likely, and how likely are so few failures
then? Rates of groups are taken to be Beta around the mean, failures of a group are beta-binomial (Skellam 1948, JRSS B
10:257), and the tail of their sum is averaged over the correlations that the rows leave (a posterior predictive
p-value: Meng 1994, Annals of Statistics 22:1142), which are Beta(1/2, 5) before any row was seen: half of them under
0.05, one in twenty over 0.3.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from bedplate.core.statistics.unequal import Floats, Ints, worth

FEW_FAILING, MANY_FAILING = 15, 22
"""Numbers of groups with a failure, in groups of one size. From the second on they say by themselves how
alike their rows are: by simulation (benchmarks/gate.py) the spread that they show then holds the error. Between the two
what follows counts in part, so that no bound leaps; whole up to 30 it costs 3.6 points of power where 200 independent
rows stand in 60 groups (truth 0.85, bar 0.8)."""
_NODES = 32
_UNSEEN = 1e-9  # correlations that are so much less likely than another one are left out
_DAMPED = 1e-8  # how much of the coefficients that a transform folds back onto those that are asked for is left


@functools.cache
def _correlations() -> Floats:
    """Correlations within groups, of equal weight before any row was seen [_NODES]."""
    from scipy.special import betaincinv

    return np.asarray(betaincinv(0.5, 5.0, (np.arange(_NODES) + 0.5) / _NODES))


class FewFailures:
    """Failures and rows of groups [G], whole numbers, and how likely so few are."""

    def __init__(self, failures: Ints, sizes: Ints) -> None:
        self.total = int(failures.sum())
        self._max_size = int(sizes.max())
        pairs, self._times = np.unique(sizes * (self._max_size + 1) + failures, return_counts=True)
        self._pair_sizes, self._pair_failures = np.divmod(pairs, self._max_size + 1)
        self._sizes, self._multiplicities = np.unique(sizes, return_counts=True)
        self._factorials = _log_rising(np.ones(1), self._max_size)[0]
        length = 1 << math.ceil(math.log2(4 * (self.total + 1)))
        self._length = min(length, 1 << math.ceil(math.log2(int(sizes.sum()) + 1)))
        self._radius = _DAMPED ** (1 / self._length)

    def chance(self, mean: float) -> float:
        """The probability of no more failures than there are, if this were the mean of the groups' rates (0 to 1)."""
        spread = 1 / _correlations() - 1
        shapes = (1 - mean) * spread, mean * spread, spread
        fails, passes, any_of = (_log_rising(shape, self._max_size) for shape in shapes)

        def log_chance(size: Ints, failures: Ints) -> Floats:
            log_combinations = self._factorials[size] - self._factorials[failures] - self._factorials[size - failures]
            return log_combinations + fails[:, failures] + passes[:, size - failures] - any_of[:, size]

        likely = log_chance(self._pair_sizes, self._pair_failures) @ self._times
        weight = np.exp(likely - likely.max())
        mask = weight > _UNSEEN
        weight, fails, passes, any_of = (array[mask] for array in (weight, fails, passes, any_of))
        product = np.ones((1, 1), dtype=np.complex128)
        for size, multiplicity in zip(self._sizes, self._multiplicities.tolist(), strict=True):
            failures = np.arange(min(int(size), self.total) + 1)
            damped = np.exp(log_chance(np.full(1, size), failures) + failures * math.log(self._radius))
            transform = np.fft.rfft(damped, self._length, axis=1)
            product = product * (transform if multiplicity == 1 else transform**multiplicity)
        counts = np.arange(self.total + 1)
        tails = np.fft.irfft(product, self._length, axis=1)[:, : self.total + 1] @ self._radius ** (-counts)
        return float(weight @ np.clip(tails, 0.0, 1.0) / weight.sum())

    def lower(self, start: float, error: float) -> float:
        """The largest mean up to `start` at which the chance is at most `error`."""
        from scipy.optimize import brentq
        from scipy.special import ndtri

        if start <= 0:
            return start

        def beyond(mean: float) -> float:  # in normal quantiles, in which it is nearly straight
            chance = self.chance(mean) if mean > 0 else 0.0
            return float(ndtri(min(max(chance, 1e-12), 1 - 1e-12))) - float(ndtri(error))

        bracket_high = start
        if beyond(start) <= 0:
            return start
        step = (1 - start) / 8
        bracket_low = max(start - step, 0.0)
        low = beyond(bracket_low)
        while low > 0:
            bracket_high, step = bracket_low, 2 * step
            bracket_low = max(bracket_low - step, 0.0)
            low = beyond(bracket_low)
        root: Any = brentq(beyond, bracket_low, bracket_high, xtol=1e-5)
        return float(root)


def missed_groups_bound(failures: Floats, sizes: Floats, rows: float, start: float, confidence: float) -> float:
    """The lower bound of a share of successes that is no nearer than `start`, nor than what missed groups could hide.

    failures, sizes: of the groups [G], or what those rows weigh; `rows` is what all of them are worth, of one weight:
    groups count as so many whole rows as their weight is of it.
    """
    failing = sizes[failures > 0]
    failing_worth = worth(failing) if failing.size else 0.0
    part = min((MANY_FAILING - failing_worth) / (MANY_FAILING - FEW_FAILING), 1.0)
    if part <= 0:
        return start
    unit = sizes.sum() / rows
    whole = np.maximum(np.rint(sizes / unit), 1).astype(np.int64)
    failed = np.minimum(np.rint(failures / unit).astype(np.int64), whole)
    return start - part * (start - FewFailures(failed, whole).lower(start, 1 - confidence))


def _log_rising(first: Floats, max_steps: int) -> Floats:
    """log of x (x + 1) ... (x + j - 1) for each x in `first` [K] and j from 0 to `max_steps` [K, most + 1]."""
    logs = np.log(first[:, None] + np.arange(max_steps))
    return np.concatenate([np.zeros((first.size, 1)), np.cumsum(logs, axis=1)], axis=1)
