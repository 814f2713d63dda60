"""Several nominees on one test, several verdicts on the same rows, and how many rows a verdict needs.

Holm (1979), Scandinavian Journal of Statistics 6:65. In a fixed order: Maurer, Hothorn & Lehmacher (1995), in
Biometrie in der chemisch-pharmazeutischen Industrie 6:3. Spending over repeated verdicts: the sum of 6/(pi^2 j^2)
over all j is 1, so that any number of verdicts on the same rows stays within alpha (Foster & Stine 2008 use the same
series).

Several looks before all rows are there: alpha spending (Lan & DeMets 1983, Biometrika 70:659): by the time a share t of
the planned rows is there, at most alpha t^rho has been spent (Kim & DeMets 1987, Biometrika 74:149), whenever looks are
taken, as long as their times do not depend on what was seen. A look's level follows from what was spent before, because
sums over growing sets of rows have independent increments: integrated numerically (Armitage, McPherson & Rowe 1969,
JRSS A 132:235). Bounds taken at these levels all hold together (Jennison & Turnbull 1989, JRSS B 51:305).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bedplate.core.errors import UsageError
from bedplate.core.statistics.proportions import check_confidence
from bedplate.core.statistics.unequal import Floats


@dataclass(frozen=True)
class HolmBound:
    """One nominee after Holm: its lower bound at the last level looked at, and whether that clears the target."""

    lower: float
    confidence: float
    passed: bool
    reached: bool = True
    """Whether it was tested: in a fixed order those behind the first that fails are not."""


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given."""
    for p in pvalues:
        if not 0 <= p <= 1:
            raise UsageError(f"a p-value must be between 0 and 1, not {p}")
    order = sorted(range(len(pvalues)), key=lambda i: pvalues[i])
    adjusted = [0.0] * len(pvalues)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(pvalues) - rank) * pvalues[i]))
        adjusted[i] = running
    return adjusted


def holm_bounds(
    lower_at: Sequence[Callable[[float], float]],
    target: float,
    confidence: float = 0.95,
    conditions: Sequence[Callable[[float], bool]] | None = None,
) -> list[HolmBound]:
    """Which nominees' lower bounds clear `target` with the family-wise error held at 1 - confidence.

    `lower_at[i](level)` is nominee i's one-sided lower bound at confidence `level`. With m nominees left, those whose
    bound at 1 - alpha/m clears the target pass and leave; the rest are looked at again with the smaller m. This is
    Holm's procedure on the p-values that the bounds invert.

    conditions: what else has to be shown of each nominee, at the same level. Its p-value is then the larger of the two
    (intersection-union, Berger 1982), and one that clears the target and does not hold stays among those left.
    """
    check_confidence(confidence)
    alpha = 1 - confidence
    passed: dict[int, HolmBound] = {}
    while True:
        remaining = [i for i in range(len(lower_at)) if i not in passed]
        if not remaining:
            break
        level = 1 - alpha / len(remaining)
        looked = {i: HolmBound(value, level, value > target) for i in remaining for value in [lower_at[i](level)]}
        cleared = {i: b for i, b in looked.items() if b.passed and (conditions is None or conditions[i](level))}
        if not cleared:
            passed.update(looked)
            break
        # only the best leaves at this level, as in Holm: the next is looked at with one nominee fewer
        best = max(cleared, key=lambda i: cleared[i].lower)
        passed[best] = cleared[best]
    return [passed[i] for i in range(len(lower_at))]


def sequence_bounds(
    lower_at: Sequence[Callable[[float], float]],
    target: float,
    confidence: float = 0.95,
    conditions: Sequence[Callable[[float], bool]] | None = None,
    order: Sequence[int] | None = None,
) -> list[HolmBound]:
    """Which nominees' lower bounds clear `target`, each looked at with the whole error in an order that was fixed
    before (by default as given), until the first that does not (Maurer, Hothorn & Lehmacher 1995; Hsu & Berger 1999,
    JASA 94:468). The arguments are those of `holm_bounds`, and so is the family-wise error.

    Those behind the first that does not pass are not `passed`, whatever their bound, and not `reached`.
    """
    check_confidence(confidence)
    places = range(len(lower_at)) if order is None else order
    if sorted(places) != list(range(len(lower_at))):
        raise UsageError(f"an order names each of {len(lower_at)} nominees once, not {list(places)}")
    bounds: dict[int, HolmBound] = {}
    reached = True
    for i in places:
        value = lower_at[i](confidence)
        bounds[i] = HolmBound(value, confidence, reached and value > target, reached)
        reached = bounds[i].passed and (conditions is None or conditions[i](confidence))
    return [bounds[i] for i in range(len(lower_at))]


def simultaneous(confidence: float, comparisons: int) -> float:
    """The level each of `comparisons` bounds needs so that all hold together at `confidence` (Bonferroni)."""
    check_confidence(confidence)
    if comparisons < 1:
        raise UsageError(f"comparisons must be at least 1, not {comparisons}")
    return 1 - (1 - confidence) / comparisons


def spent_alpha(alpha: float, j: int) -> float:
    """What the j-th verdict (from 1) on the same rows may spend: 6 alpha / (pi^2 j^2)."""
    if not 0 < alpha < 1:
        raise UsageError(f"alpha must be between 0 and 1, not {alpha}")
    if j < 1:
        raise UsageError(f"verdicts are counted from 1, not {j}")
    return 6 * alpha / (math.pi**2 * j**2)


def needed_n(
    estimate: float,
    target: float,
    confidence: float = 0.95,
    power: float = 0.8,
    deff: float = 1.0,
    variance: float | None = None,
) -> int | None:
    """Rows needed for the one-sided bound to clear `target` with probability `power` if `estimate` is the truth.

    Of a share: normal approximation (Fleiss, Levin & Paik 2003, §2.4, with their continuity correction: the bound is
    the exact one). `variance`, of one row, is for what is no share: (z[confidence] + z[power])² variance / gap².
    Both times the design effect. None where the estimate is not above the target: no n would do.
    """
    from scipy.special import ndtri

    check_confidence(confidence)
    if not (0 <= estimate <= 1 and 0 <= target <= 1 and 0 < power < 1 and deff > 0):
        raise UsageError(f"shares lie in 0 to 1, and deff above 0: {estimate=} {target=} {power=} {deff=}")
    if variance is not None and not variance >= 0:
        raise UsageError(f"a variance is at least 0: {variance=}")
    if estimate <= target:
        return None
    gap = estimate - target
    if variance is not None:
        reach = max(0.0, float(ndtri(confidence)) + float(ndtri(power))) / gap
        return max(1, math.ceil(reach**2 * variance * max(1.0, deff)))
    at_target = float(ndtri(confidence)) * math.sqrt(target * (1 - target))
    at_estimate = float(ndtri(power)) * math.sqrt(estimate * (1 - estimate))
    plain = max(0.0, (at_target + at_estimate) / gap) ** 2
    if plain == 0:
        plain = 1.0
    corrected = plain / 4 * (1 + math.sqrt(1 + 2 / (plain * gap))) ** 2
    return math.ceil(corrected * max(1.0, deff))


def more_rows(confidence: float, later: float, power: float = 0.8) -> float:
    """By which share the rows have to grow that a bound at the confidence `later` has the power of one at
    `confidence`."""
    from scipy.special import ndtri

    first, second = (float(ndtri(level)) + float(ndtri(power)) for level in (confidence, later))
    return (second / first) ** 2 - 1


def least_estimate(n: int, target: float, confidence: float, power: float = 0.8) -> float:
    """The least share whose bound of `n` independent rows clears `target` with probability `power`, to three digits; 1
    where none does."""
    steps = range(math.floor(1000 * target) + 1, 1000)
    return next((s / 1000 for s in steps if power_at(s / 1000, n, target, confidence) >= power), 1.0)


def power_at(
    truth: float, n: float, target: float, confidence: float = 0.95, deff: float = 1.0, variance: float | None = None
) -> float:
    """The probability that the one-sided bound of n rows clears `target` for this truth, which may lie below it: the
    inverse of `needed_n`, by the same approximation."""
    from scipy.special import ndtr, ndtri

    check_confidence(confidence)
    if not (0 <= truth <= 1 and 0 <= target <= 1 and n > 0 and deff > 0):
        raise UsageError(f"shares lie in 0 to 1, n and deff above 0: {truth=} {target=} {n=} {deff=}")
    root, z, gap = math.sqrt(n / max(1.0, deff)), float(ndtri(confidence)), truth - target
    if variance is not None:
        reach, spread = root * gap - z * math.sqrt(variance), math.sqrt(variance)
    else:
        reach = root * gap - 1 / (2 * root) - z * math.sqrt(target * (1 - target))
        spread = math.sqrt(truth * (1 - truth))
    return float(ndtr(reach / spread)) if spread > 0 else float(reach > 0)


SPENDING = 2.0
"""The power rho. By simulation (benchmarks/labels.py) small powers stop earliest where the truth is far from the bar,
large ones lose least where it is near; this one costs at most 3 points of power."""
_REACH = 8.5
_MIN_NODES, _MAX_NODES = 300, 3000


def look_levels(alpha: float, shares: Sequence[float], rho: float = SPENDING) -> tuple[float, ...]:
    """The one-sided error at which each look is to be judged, so that all of them together err in at most `alpha`.

    shares: of the planned rows, those that were there at each look, ascending, in (0, 1]. UsageError for others.
    """
    if not 0 < alpha < 0.5:
        raise UsageError(f"the error of all looks must be above 0 and below 0.5, not {alpha}")
    if not rho > 0:
        raise UsageError(f"the power of spending must be above 0, not {rho}")
    pairs = zip((0.0, *shares), (*shares, math.inf), strict=True)
    if not shares or any(not before < after for before, after in pairs) or shares[-1] > 1 + 1e-12:
        raise UsageError(f"the shares of looks must grow and lie above 0 and up to 1, not {list(shares)}")
    return _levels(alpha, tuple(shares), rho)


@lru_cache(maxsize=256)
def _levels(alpha: float, shares: tuple[float, ...], rho: float) -> tuple[float, ...]:
    """Brownian motion over time t: `mass` is what has crossed no boundary so far, on nodes below the last one."""
    from scipy.special import ndtr

    levels: list[float] = []
    nodes, mass = np.zeros(1), np.ones(1)  # at time 0 everything is at 0
    times, spent = (0.0, *shares), (0.0, *(alpha * min(share, 1.0) ** rho for share in shares))
    steps = np.sqrt(np.diff(times)).tolist()
    for number, share in enumerate(shares):
        step, reach = steps[number], _REACH * math.sqrt(share)
        boundary = _boundary(nodes, mass, step, spent[number + 1] - spent[number], reach)
        levels.append(float(ndtr(-boundary / math.sqrt(share))))
        if number + 1 == len(shares):
            break
        width = boundary + reach
        node_count = math.ceil(8 * width / min(step, steps[number + 1]))
        x, weights = np.polynomial.legendre.leggauss(min(_MAX_NODES, max(_MIN_NODES, node_count)))
        points = (x + 1) * width / 2 - reach
        distances = (points[:, None] - nodes[None, :]) / step
        density = np.exp(-(distances**2) / 2) @ mass / (step * math.sqrt(2 * math.pi))
        nodes, mass = points, density * weights * width / 2
    return tuple(levels)


def _boundary(nodes: Floats, mass: Floats, step: float, probability: float, reach: float) -> float:
    """What a normal step of this size from `nodes` crosses with the probability `probability`."""
    from scipy.optimize import brentq
    from scipy.special import ndtr

    def excess(at: float) -> float:
        return float(mass @ ndtr((nodes - at) / step)) - probability

    return float(brentq(excess, -reach, reach, xtol=1e-10))  # pyright: ignore[reportArgumentType]
