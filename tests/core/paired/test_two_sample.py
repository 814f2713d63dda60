"""The difference of two independent estimates, against statsmodels."""

from __future__ import annotations

import pytest

from bedplate.core.errors import UsageError
from bedplate.core.statistics import paired

proportion = pytest.importorskip("statsmodels.stats.proportion")


@pytest.mark.parametrize(("a", "n", "b", "m"), [(45, 60, 30, 55), (0, 20, 3, 90), (9, 9, 80, 100)])
def test_the_difference_of_two_shares_is_newcombes(a: int, n: int, b: int, m: int) -> None:
    expected = proportion.confint_proportions_2indep(a, n, b, m, compare="diff", method="newcomb", alpha=0.1)
    bounds = [proportion.proportion_confint(k, size, 0.1, method="wilson") for k, size in ((a, n), (b, m))]
    assert paired.independent_difference(a / n, b / m, *bounds) == pytest.approx(expected, abs=1e-9)


def test_an_estimate_outside_its_bounds_is_refused() -> None:
    with pytest.raises(UsageError, match="between their bounds"):
        paired.independent_difference(0.5, 0.5, (0.6, 0.7), (0.4, 0.6))
