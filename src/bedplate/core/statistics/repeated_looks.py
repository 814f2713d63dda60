"""Looking at a test before all of its rows are there, at one error for all looks together.

Alpha spending (Lan & DeMets 1983, Biometrika 70:659): by the time a share t of the planned rows is there, at most
alpha t^rho has been spent (the power family of Kim & DeMets 1987, Biometrika 74:149), whenever looks are taken, as long
as their times do not depend on what was seen. A look's level follows from what was spent before, because sums over
growing sets of rows have independent increments: integrated numerically (Armitage, McPherson & Rowe 1969, JRSS A
132:235; Jennison & Turnbull 2000, Group Sequential Methods, ch. 19). Bounds taken at these levels are repeated
confidence bounds (Jennison & Turnbull 1989, JRSS B 51:305): all of them hold together, whatever made one stop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bedplate.core.errors import UsageError

SPENDING = 2.0
"""The power rho. By simulation (benchmarks/labels.py) small powers stop earliest where the truth is far from the bar,
large ones lose least where it is near; this one costs at most 3 points of power."""
Floats = NDArray[np.float64]
_REACH = 8.5
_LEAST_NODES, _MOST_NODES = 300, 3000


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
        x, weights = np.polynomial.legendre.leggauss(min(_MOST_NODES, max(_LEAST_NODES, node_count)))
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
