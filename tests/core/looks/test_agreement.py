"""The ceiling of rows with two labels: formulas, and simulated annotators whose best answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from bedplate.core.errors import UsageError
from bedplate.core.statistics.agreement import agreement_ceiling, ceiling


@given(st.floats(0.02, 0.98), st.integers(2, 30))
def test_with_one_rate_of_error_it_is_that_rate(error: float, labels: int) -> None:
    right = 1 - error
    agreement = right**2 + error**2 / (labels - 1)
    # the equation is of second degree: of annotators worse than guessing it gives who would be better
    expected = max(right, 2 / labels - right)
    assert ceiling(agreement, labels) == pytest.approx(expected, abs=1e-6)
    assert ceiling(agreement, None) >= ceiling(agreement, labels) - 1e-9


@given(st.lists(st.lists(st.floats(0.01, 1), min_size=4, max_size=4), min_size=1, max_size=20))
def test_no_answer_is_right_more_often(rows: list[list[float]]) -> None:
    p = np.array(rows) / np.array(rows).sum(1, keepdims=True)
    agreement, best = float((p**2).sum(1).mean()), float(p.max(1).mean())
    assert agreement - 1e-9 <= best <= ceiling(agreement, 4) + 1e-9


def test_two_annotators_of_whom_nobody_is_always_right() -> None:
    rng = np.random.default_rng(1)
    n, error = 20_000, 0.1
    truth = rng.integers(0, 2, n)
    first, second = (np.where(rng.random(n) < error, 1 - truth, truth) for _ in range(2))
    estimate = agreement_ceiling(first == second, range(n), 2)
    assert estimate.rate == pytest.approx(accuracy_score(first, second))
    assert estimate.value == pytest.approx(accuracy_score(first, truth), abs=0.005)  # what a perfect model would read
    assert estimate.highest is not None
    assert estimate.value < estimate.highest < estimate.interval[1]  # one-sided, and two-sided


def covered(grouped: bool, runs: int, seed: int) -> float:
    """How often the upper bound is at least what the best answers read; rows of a group are as hard as each other."""
    rng = np.random.default_rng(seed)
    sizes = np.full(80, 5) if grouped else np.ones(400, int)
    groups = np.repeat(np.arange(sizes.size), sizes)
    covered_runs = 0
    for _ in range(runs):
        sure = np.where(rng.random(sizes.size) < 0.5, 0.95, 0.85)[groups]
        first, second = (rng.random(groups.size) < sure for _ in range(2))
        highest = agreement_ceiling(first == second, groups.tolist(), 2).highest
        assert highest is not None
        covered_runs += highest >= 0.9
    return covered_runs / runs


@pytest.mark.parametrize("grouped", [False, True])
def test_the_bound_holds_where_rows_are_not_equally_hard(grouped: bool) -> None:
    assert covered(grouped, 300, seed=2) >= 0.93


def test_weighted_rows_count_by_their_weights() -> None:
    """Rows of weight 2 say what the same rows twice would say of the rate; that they are fewer widens the bound."""
    rng = np.random.default_rng(3)
    agreed, weights = rng.random(200) < 0.8, rng.integers(1, 3, 200)
    estimate = agreement_ceiling(agreed, range(200), 2, weights=weights.tolist())
    plain = agreement_ceiling(np.repeat(agreed, weights), range(int(weights.sum())), 2)
    assert estimate.rate == pytest.approx(accuracy_score(np.ones(200), agreed, sample_weight=weights))
    assert estimate.rate == pytest.approx(plain.rate)
    assert estimate.highest is not None
    assert plain.highest is not None
    assert estimate.highest > plain.highest > estimate.value
    assert agreement_ceiling(agreed, range(200), 2, weights=[3.0] * 200) == agreement_ceiling(agreed, range(200), 2)


def test_what_cannot_be_bounded_says_why() -> None:
    estimate = agreement_ceiling([1, 1, 0, 1, 1, 1], ["a", "a", "b", "b", "c", "c"], 2)
    assert estimate.highest is None
    assert estimate.reason is not None
    assert "3 groups" in estimate.reason
    assert ceiling(0.3, 2) == 0.5  # less than by chance: guessing is as good
    with pytest.raises(UsageError, match="two or more"):
        ceiling(0.9, 1)
