"""The score interval of a paired difference: against published figures, a likelihood maximised numerically, and exact
coverage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from bedplate.core.statistics import paired


def score(delta: float, only_a: int, only_b: int, n: int) -> float:
    """The standardised score of a difference, with the likelihood of the three outcomes maximised by search."""

    def loss(b: float) -> float:
        a, neither = b + delta, 1 - 2 * b - delta
        counts = zip((only_a, only_b, n - only_a - only_b), (a, b, neither), strict=True)
        return -sum(count * np.log(max(share, 1e-300)) for count, share in counts if count)

    low, high = max(0.0, -delta), (1 - delta) / 2
    fit: Any = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    return (only_a - only_b - n * delta) / np.sqrt(n * (2 * fit.x + delta - delta**2))


def test_the_interval_is_tangos() -> None:
    """21 children before and after a transplantation, as Fagerland, Lydersen and Laake (2014) print it."""
    assert paired.score_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(40, 20, 160), (7, 1, 200), (3, 0, 100), (2, 2, 60), (0, 30, 400)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_its_ends_are_what_a_score_test_just_excludes(only_a: int, only_b: int, n: int, confidence: float) -> None:
    low, high = paired.score_interval(only_a, only_b, n, confidence)
    z = float(stats.norm.ppf((1 + confidence) / 2))
    assert score(low, only_a, only_b, n) == pytest.approx(z, abs=2e-3)
    assert score(high, only_a, only_b, n) == pytest.approx(-z, abs=2e-3)
    assert paired.score_interval(only_b, only_a, n, confidence) == pytest.approx((-high, -low))


def test_rows_that_all_differ_one_way_end_at_one() -> None:
    low, high = paired.score_interval(50, 0, 50)
    assert high == 1.0
    assert low == pytest.approx((50 - 1.96**2) / (50 + 1.96**2), abs=1e-3)  # no row is alike
    assert paired.score_interval(0, 0, 50)[1] == pytest.approx(1.96**2 / (50 + 1.96**2), abs=1e-3)


@pytest.mark.parametrize(
    ("n", "differ", "one_way"), [(100, 0.05, 1.0), (200, 0.03, 0.9), (400, 0.01, 1.0), (60, 0.1, 0.8)]
)
def test_the_difference_is_covered_where_few_rows_differ_and_mostly_one_way(
    n: int, differ: float, one_way: float
) -> None:
    """Exactly, over all outcomes that have a chance: by t the first three cover 0.859, 0.907 and 0.914."""
    shares = np.array([differ * one_way, differ * (1 - one_way), 1 - differ])
    truth, covered = shares[0] - shares[1], 0.0
    for a in range(n + 1):
        for b in range(n + 1 - a):
            chance = float(stats.multinomial.pmf([a, b, n - a - b], n, shares)) if a + b < 40 else 0.0
            if chance > 1e-7:
                change = np.zeros(n)
                change[:a], change[a : a + b] = 1.0, -1.0
                low, high = paired.paired_difference(change > 0, change < 0).interval
                covered += chance * (low <= truth <= high)
    assert covered >= 0.93
